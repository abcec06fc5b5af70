from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ahlm.kernels.snippet_scan import SnippetWeights, snippet_scan


def case(batch: int = 3, n: int = 8, z: int = 3, h: int = 5) -> tuple[Tensor, Tensor, SnippetWeights, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    weights = SnippetWeights(
        *(
            draw(*shape, scale=0.4)
            for shape in ((3 * h, z), (3 * h, h), (3 * h,), (3 * h,), (2 * z, h), (2 * z, h), (h,))
        )
    )
    change_points = torch.rand(batch, n, generator=generator) < 0.3
    noise = torch.randn(batch, n, z, generator=generator, dtype=torch.float64)
    return draw(batch, n, 2 * z), draw(batch, n, 2 * z), weights, noise, change_points


def test_state_follows_the_gru_and_starts_afresh_after_a_change() -> None:
    prior, posterior, weights, noise, change_points = case()
    output = snippet_scan(prior, posterior, weights, noise=noise, change_points=change_points)
    cell = torch.nn.GRUCell(3, 5).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: value.detach() for name, value in zip(names, weights[:4], strict=True)})
    for t in range(7):
        following = cell(output.latent[:, t], output.state[:, t])
        expected = torch.where(change_points[:, t, None], weights.initial_state, following)
        torch.testing.assert_close(output.state[:, t + 1], expected)
    assert change_points.any()
    assert (output.kl > 0).all()


def test_padding_is_never_read() -> None:
    prior, posterior, weights, noise, change_points = case()
    lengths = torch.tensor([8, 3, 1])
    poisoned = [tensor.detach().clone() for tensor in (prior, posterior, noise)]
    for row, length in enumerate(lengths.tolist()):
        for tensor in poisoned:
            tensor[row, length:] = torch.nan
    for tensor in poisoned[:2]:
        tensor.requires_grad_()
    output = snippet_scan(
        poisoned[0], poisoned[1], weights, noise=poisoned[2], change_points=change_points, lengths=lengths
    )
    clean = snippet_scan(prior, posterior, weights, noise=noise, change_points=change_points)
    for value, expected in zip(output, clean, strict=True):
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(value[row, :length], expected[row, :length])
            assert not value[row, length:].any()
    torch.stack([value.sum() for value in output]).sum().backward()
    assert torch.isfinite(poisoned[0].grad).all()
    assert torch.isfinite(poisoned[1].grad).all()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gradients_against_finite_differences(backend: str) -> None:
    """`auto` in float64 is the backward written by hand."""
    prior, posterior, weights, noise, change_points = case(batch=2, n=4, z=2, h=3)

    def run(prior: Tensor, posterior: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        weights = SnippetWeights(*values)
        return tuple(snippet_scan(prior, posterior, weights, noise=noise, change_points=change_points, backend=backend))

    assert torch.autograd.gradcheck(run, (prior, posterior, *weights))


@pytest.mark.parametrize("name", ["noise", "change_points", "lengths"])
def test_rejects(name: str) -> None:
    prior, posterior, weights, noise, change_points = case()
    arguments = {"noise": noise, "change_points": change_points, name: torch.zeros(1)}
    with pytest.raises(ValueError, match=f"{name} must be"):
        snippet_scan(prior, posterior, weights, **arguments)


def test_backward_by_hand_equals_autograd() -> None:
    gradients = []
    for backend in ("reference", "auto"):
        prior, posterior, weights, noise, change_points = case()
        lengths = torch.tensor([8, 3, 1])
        output = snippet_scan(
            prior, posterior, weights, noise=noise, change_points=change_points, lengths=lengths, backend=backend
        )
        generator = torch.Generator().manual_seed(9)
        weighted = [(v * torch.rand(v.shape, generator=generator, dtype=v.dtype)).sum() for v in output]
        gradients.append(torch.autograd.grad(torch.stack(weighted).sum(), (prior, posterior, *weights)))
    for by_hand, by_autograd in zip(*gradients, strict=True):
        torch.testing.assert_close(by_hand, by_autograd, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_registration(dtype: torch.dtype, requires_grad: bool) -> None:
    prior, posterior, weights, noise, change_points = case()
    floats = [t.detach().to(dtype).requires_grad_(requires_grad) for t in (prior, posterior, *weights)]
    arguments = (*floats, noise.to(dtype), change_points, torch.tensor([8, 3, 1]), "auto", "fp32")
    torch.library.opcheck(torch.ops.ahlm.snippet_scan.default, arguments)


def test_compiles() -> None:
    prior, posterior, weights, noise, change_points = case()
    compiled = torch.compile(snippet_scan, fullgraph=True, backend="aot_eager")
    arguments = {"noise": noise, "change_points": change_points}
    for one, other in zip(
        compiled(prior, posterior, weights, **arguments),
        snippet_scan(prior, posterior, weights, **arguments),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
