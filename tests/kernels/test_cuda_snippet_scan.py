"""The CUDA kernels of the snippet scan without a card: the same source, compiled for the CPU (`conftest.py`)."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.kernels import cuda
from ahlm.kernels.snippet_scan import SnippetOutput, SnippetWeights, snippet_scan
from ahlm.kernels.snippet_scan import fused_cuda as fused
from ahlm.kernels.snippet_scan.check import mismatch
from ahlm.kernels.snippet_scan.linear_backward import snippet_linear_backward
from ahlm.kernels.snippet_scan.reference_backward import snippet_scan_reference_backward

LENGTHS = torch.tensor([12, 3, 1, 7, 12, 9, 2, 5, 11, 4])

CARD = torch.device("cuda")


def case(n: int = 12, z: int = 12, h: int = 64) -> dict[str, Any]:
    """Random inputs, NaN past the videos' ends."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    batch, lengths = len(LENGTHS), (LENGTHS * max(1, n // 12)).clamp(max=n)
    weights = SnippetWeights(
        draw(3 * h, z, scale=z**-0.5),
        draw(3 * h, h, scale=h**-0.5),
        draw(3 * h, scale=0.1),
        draw(3 * h, scale=0.1),
        draw(2 * z, h, scale=h**-0.5),
        draw(2 * z, h, scale=h**-0.5),
        draw(h),
    )
    tensors = {"prior_stream": draw(batch, n, 2 * z), "posterior_stream": draw(batch, n, 2 * z)}
    tensors["noise"] = draw(batch, n, z)
    for tensor in tensors.values():
        tensor[torch.arange(n) >= lengths[:, None]] = torch.nan
    changes = torch.rand(batch, n, generator=generator) < 0.3
    return {**tensors, "weights": weights, "change_points": changes, "lengths": lengths}


def check(library: cuda.Library, inputs: dict[str, Any]) -> SnippetOutput:
    """Forward and backward."""
    expected = snippet_scan(**inputs, backend="reference")
    output = fused.forward(**inputs, library=library)
    for name, value in output._asdict().items():
        torch.testing.assert_close(value, getattr(expected, name), rtol=2e-5, atol=1e-4 if name == "kl" else 1e-5)
    generator = torch.Generator().manual_seed(1)
    gradients = SnippetOutput(*(torch.randn(v.shape, generator=generator).to(v.device) for v in expected))
    found = snippet_linear_backward(fused.solver("fp32", library), gradients, expected, **inputs)
    wanted = snippet_scan_reference_backward(gradients, expected, **inputs)
    for mine, theirs in zip((*found[:2], *found[2]), (*wanted[:2], *wanted[2]), strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm().clamp(min=1e-6)
    return output


@pytest.mark.parametrize("few_videos", [0, 10], ids=["many", "few"])
@pytest.mark.parametrize("size", [{}, {"n": 1}, {"n": 2, "z": 1}, {"z": 64, "n": 5}], ids=str)
def test_against_the_reference(
    emulated: cuda.Library, size: dict[str, int], few_videos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "FEW_VIDEOS", few_videos)
    check(emulated, case(**size))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_schedule_changes_a_bit(emulated: cuda.Library, precision: Any) -> None:
    results = []
    for seed in range(8):
        emulated.calls.ahlm_emulation_seed(ctypes.c_uint64(seed))
        results.append(fused.forward(**case(), precision=precision, library=emulated))
        if precision == "fp32":
            check(emulated, case())
    for result in results[1:]:
        for value, first in zip(result, results[0], strict=True):
            assert torch.equal(value, first)


@pytest.mark.parametrize("wait", [1, 2, 3, 4, 5, 6])
def test_a_missing_barrier_is_found(emulated: cuda.Library, wait: int) -> None:
    emulated.calls.ahlm_emulation_drop(wait)
    found = 0
    for seed in range(8):
        emulated.calls.ahlm_emulation_seed(ctypes.c_uint64(seed))
        try:
            check(emulated, case())
        except (AssertionError, RuntimeError):
            found += 1
    assert found > 0


def test_half_precision(emulated: cuda.Library) -> None:
    expected = snippet_scan(**case(), backend="reference")
    output = fused.forward(**case(), precision="fp16", library=emulated)
    torch.testing.assert_close(output.latent, expected.latent, rtol=0, atol=5e-2)
    torch.testing.assert_close(output.state, expected.state, rtol=0, atol=1e-2)
    torch.testing.assert_close(output.kl, expected.kl, rtol=2e-2, atol=2e-1)


@pytest.mark.slow
def test_at_the_size_of_the_device(emulated: cuda.Library) -> None:
    check(emulated, case(z=64, h=256))


@pytest.mark.skipif(cuda.obstacle(CARD) is not None, reason=str(cuda.obstacle(CARD)))
def test_on_the_card() -> None:
    library = cuda.installed()
    assert library is not None
    for precision in ("fp32", "fp16"):
        assert mismatch(fused, 64, cuda.STATE_SIZE, precision, torch.device("cuda")) is None
    inputs = case(z=64, n=40, h=cuda.STATE_SIZE)
    on_card = {name: value.cuda() for name, value in inputs.items() if isinstance(value, Tensor)}
    check(library, on_card | {"weights": SnippetWeights(*(tensor.cuda() for tensor in inputs["weights"]))})


def test_rejects(emulated: cuda.Library) -> None:
    with pytest.raises(ValueError, match=r"noise must be torch\.float32, got torch\.float64"):
        fused.forward(**case() | {"noise": case()["noise"].double()}, library=emulated)
    with pytest.raises(RuntimeError, match="no kernel of this size"):
        fused.forward(**case(h=32), library=emulated)
    doubled = {name: value.double() if name.endswith(("stream", "noise")) else value for name, value in case().items()}
    doubled["weights"] = SnippetWeights(*(weight.double() for weight in doubled["weights"]))
    output = snippet_scan(**doubled, backend="reference")
    with pytest.raises(ValueError, match=r"gru_input must be torch\.float32, got torch\.float64"):
        snippet_linear_backward(fused.solver("fp32", emulated), output, output, **doubled)
