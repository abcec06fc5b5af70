from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.kernels.change_point_scan import ScanOutput, ScanRules, ScanStreams, ScanWeights, change_point_scan, op
from ahlm.kernels.gaussian import Gaussian, fuse, kl, split

READINGS = [
    ScanRules(static_belief=belief, change_prior=prior, evidence=evidence, belief_weight=0.6, evidence_weight=0.4)
    for belief, prior, evidence in itertools.product(
        ("held", "prior"), ("state", "constant", "full"), ("start", "transition")
    )
]
LITERAL = ScanRules(
    static_belief="prior", change_prior="full", evidence="transition", belief_weight=0.0, evidence_weight=1.0
)
NAMES = ["-".join(map(str, rules[:3])) for rules in READINGS]


def case(
    rules: ScanRules, batch: int = 3, n: int = 12, z: int = 4, h: int = 6, seed: int = 0, dtype: Any = torch.float64
) -> dict[str, Any]:
    """Random inputs; streams and weights are those the rules need."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=dtype)).requires_grad_()

    needs_prior = rules.static_belief == "prior" or rules.change_prior == "full"
    streams = ScanStreams(
        draw(batch, n, 2 * z),
        draw(batch, n, 2 * z) if needs_prior else None,
        draw(batch, n, 2 * z) if rules.evidence == "transition" else None,
    )
    weights = ScanWeights(
        draw(3 * h, z, scale=0.4),
        draw(3 * h, h, scale=0.4),
        draw(3 * h, scale=0.1),
        draw(3 * h, scale=0.1),
        draw(2 * z, h, scale=0.4) if needs_prior or rules.change_prior == "state" else None,
        draw(2 * z) if rules.change_prior != "full" else None,
        draw(2 * z, h, scale=0.4) if rules.evidence == "transition" else None,
        draw(h),
    )
    noise = torch.randn(batch, n, z, generator=generator, dtype=dtype)
    return {"streams": streams, "weights": weights, "rules": rules, "noise": noise}


def float_sum(output: ScanOutput) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    parts = [value * torch.rand(value.shape, generator=generator, dtype=value.dtype) for value in output[1:]]
    return torch.stack([part.sum() for part in parts]).sum()


def test_kl_against_torch_and_near_equality() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = (
        Gaussian(torch.randn(50, 3, generator=generator), torch.randn(50, 3, generator=generator)) for _ in range(2)
    )
    normals = [torch.distributions.Normal(g.mean, g.log_std.exp()) for g in (q, p)]
    torch.testing.assert_close(kl(q, p), torch.distributions.kl_divergence(*normals).sum(-1), rtol=1e-4, atol=1e-5)
    # a float32 textbook form would lose all digits here
    close = Gaussian(torch.tensor([1e-4]), torch.tensor([1e-4]))
    assert kl(close, Gaussian(torch.zeros(1), torch.zeros(1))).item() == pytest.approx(1e-8 + 5e-9, rel=1e-3)


def test_filter_moves_a_part_of_the_way() -> None:
    belief, evidence = (Gaussian(torch.tensor([m]), torch.tensor([0.0])) for m in (0.0, 1.0))
    q = fuse(belief, evidence, 0.7, 0.3)
    assert q.mean.item() == pytest.approx(0.3)
    assert q.log_std.item() == pytest.approx(0.0, abs=1e-6)
    literal = fuse(belief, evidence, 0.0, 1.0)
    assert (literal.mean.item(), literal.log_std.item()) == (1.0, 0.0)


def test_heads_are_clamped() -> None:
    assert split(torch.tensor([0.0, 99.0])).log_std.item() == 2
    assert split(torch.tensor([0.0, -99.0])).log_std.item() == -5


def eq_8(output: ScanOutput, rules: ScanRules) -> Tensor:
    """The beta that each test of eq. 7 used (B, T - 1), from the decisions of a scan."""
    beta = torch.full(output.change_points.shape[:1], rules.beta0)
    column = []
    for change in output.change_points[:, 1:].unbind(1):
        column.append(beta)
        beta = (beta + torch.where(change, rules.alpha, -rules.alpha)).clamp(*rules.beta_range)
    return torch.stack(column, dim=1)


@pytest.mark.parametrize("rules", [*READINGS, LITERAL], ids=[*NAMES, "literal"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "no-reset"])
def test_backward_by_hand_equals_autograd(rules: ScanRules, reset: bool) -> None:
    rules = rules._replace(reset=reset, refractory=1)
    lengths = torch.tensor([12, 5, 1])
    forced = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.4
    for forced_changes in (None, forced):
        for noise in (None, case(rules)["noise"]):
            gradients = {}
            for backend in ("reference", "auto"):
                inputs = case(rules) | {"noise": noise}
                output = change_point_scan(**inputs, lengths=lengths, forced_changes=forced_changes, backend=backend)
                float_sum(output).backward()
                tensors = (*inputs["streams"], *inputs["weights"])
                # autograd leaves what the reading does not use without a gradient
                gradients[backend] = [0.0 * t if t.grad is None else t.grad for t in tensors if t is not None]
            for by_hand, by_autograd in zip(gradients["auto"], gradients["reference"], strict=True):
                torch.testing.assert_close(by_hand, by_autograd, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rules", [ScanRules(), LITERAL], ids=["filtered", "literal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_registration(rules: ScanRules, dtype: torch.dtype, requires_grad: bool) -> None:
    inputs = case(rules, dtype=dtype)
    tensors = [
        t if t is None else t.detach().requires_grad_(requires_grad) for t in (*inputs["streams"], *inputs["weights"])
    ]
    arguments = (*tensors, inputs["noise"], torch.tensor([12, 5, 1]), None, *op._flat(rules), "auto", "fp32")
    torch.library.opcheck(torch.ops.ahlm.change_point_scan.default, arguments)


@pytest.mark.parametrize("rules", [ScanRules(), LITERAL], ids=["filtered", "literal"])
def test_compiles_and_exports(rules: ScanRules) -> None:
    """One graph whatever the length, no unrolled loop, same results and gradients."""

    class Scan(torch.nn.Module):
        def forward(self, streams: list[Tensor | None], weights: list[Tensor | None], noise: Tensor) -> ScanOutput:
            return change_point_scan(ScanStreams(*streams), ScanWeights(*weights), rules, noise=noise)

    compiled = torch.compile(Scan(), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (12, 9):
        gradients = []
        for run in (Scan(), compiled):
            inputs = case(rules, n=n)
            output = run(list(inputs["streams"]), list(inputs["weights"]), inputs["noise"])
            float_sum(output).backward()
            gradients.append([t.grad for t in (*inputs["streams"], *inputs["weights"]) if t is not None])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)
    inputs = case(rules)
    arguments = (list(inputs["streams"]), list(inputs["weights"]), inputs["noise"])
    exported = torch.export.export(Scan(), arguments)
    assert sum(node.op == "call_function" for node in exported.graph.nodes) < 40
    for one, other in zip(exported.module()(*arguments), Scan()(*arguments), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_backward_within_autocast_is_not_in_16_bits(backend: str) -> None:
    def gradients(is_cast: bool) -> Tensor:
        inputs = case(LITERAL, dtype=torch.float32)
        lengths = torch.full((3,), 12)
        output = op.scan_op(
            inputs["streams"], inputs["weights"], LITERAL, inputs["noise"], lengths, None, backend, "fp32"
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            float_sum(output).backward()  # type: ignore[no-untyped-call]
        found = inputs["weights"].gru_state.grad
        assert found is not None
        return found

    assert torch.equal(gradients(True), gradients(False))


@pytest.mark.parametrize("rules", READINGS, ids=NAMES)
def test_gradients_reach_what_the_reading_uses(rules: ScanRules) -> None:
    inputs = case(rules)
    forced = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.3
    output = change_point_scan(**inputs, forced_changes=forced, lengths=torch.tensor([12, 5, 1]))
    float_sum(output).backward()
    for group in (inputs["streams"], inputs["weights"]):
        for name, value in group._asdict().items():
            if value is not None and not (name.startswith("gru") and rules[:3] == ("held", "constant", "start")):
                assert value.grad is not None, name
                assert value.grad.abs().sum() > 0, name


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("are_forced", [True, False], ids=["forced", "free"])
def test_gradients_against_finite_differences(are_forced: bool, backend: str) -> None:
    """`auto` in float64 is the backward written by hand."""
    forced = torch.tensor([[False, False, True, False, True]]) if are_forced else None
    for rules in (ScanRules(), LITERAL):
        inputs = case(rules, batch=1, n=5, z=2, h=3, seed=2)
        # finite differences must not step over the threshold of eq. 7
        output = change_point_scan(**inputs)
        beta = eq_8(output, rules)
        margin = output.kl_static[:, 1:] / (beta * output.kl_change[:, 1:])
        assert (margin.log().abs() > 1e-2).all()
        assert output.change_points.any()
        tensors = [t for group in (inputs["streams"], inputs["weights"]) for t in group if t is not None]

        def run(*values: Tensor, rules: ScanRules = rules, inputs: dict[str, Any] = inputs) -> tuple[Tensor, ...]:
            rest = iter(values)
            streams = ScanStreams(*(None if t is None else next(rest) for t in inputs["streams"]))
            weights = ScanWeights(*(None if t is None else next(rest) for t in inputs["weights"]))
            output = change_point_scan(
                streams, weights, rules, noise=inputs["noise"], forced_changes=forced, backend=backend
            )
            return tuple(output[1:])

        assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("rules", [*READINGS, LITERAL], ids=[*NAMES, "literal"])
def test_padding_is_never_read(rules: ScanRules) -> None:
    inputs = case(rules)
    lengths = torch.tensor([12, 5, 1])
    streams = ScanStreams(*(None if s is None else s.detach().clone() for s in inputs["streams"]))
    noise = inputs["noise"].clone()
    for row, length in enumerate(lengths.tolist()):
        for tensor in (*streams, noise):
            if tensor is not None:
                tensor[row, length:] = torch.nan
    streams = ScanStreams(*(None if s is None else s.requires_grad_() for s in streams))
    output = change_point_scan(streams, inputs["weights"], rules, noise=noise, lengths=lengths)
    float_sum(output).backward()
    for row, length in enumerate(lengths.tolist()):
        own = ScanStreams(*(None if s is None else s[row : row + 1, :length] for s in inputs["streams"]))
        alone = change_point_scan(own, inputs["weights"], rules, noise=inputs["noise"][row : row + 1, :length])
        for name, value in output._asdict().items():
            torch.testing.assert_close(value[row, :length], getattr(alone, name)[0], msg=name)
            assert not value[row, length:].any(), name
    for stream in streams:
        if stream is not None:
            assert torch.isfinite(stream.grad).all()


def test_equations_by_hand() -> None:
    """Two steps of the filtered reading with a constant change prior, written out."""
    rules = ScanRules(change_prior="constant")
    start = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [5.0, 0.0]]], dtype=torch.float64)  # Z = 1: mean, log std
    inputs = case(rules, batch=1, n=3, z=1, h=2)
    weights = inputs["weights"]._replace(prior_bias=torch.tensor([0.0, 1.0], dtype=torch.float64))
    output = change_point_scan(ScanStreams(start), weights, rules)

    def gauss_kl(mq: float, vq: float, mp: float, vp: float) -> float:
        return 0.5 * (torch.log(torch.tensor(vp / vq)).item() + (vq + (mq - mp) ** 2) / vp - 1)

    broad = torch.tensor(2.0, dtype=torch.float64).exp().item()
    # all evidence has variance 1, so the filter keeps it: the mean moves by 0.3 of the way
    static_1, change_1 = gauss_kl(0.03, 1, 0, 1), gauss_kl(0.03, 1, 0, broad)
    m2 = 0.7 * 0.03 + 0.3 * 5
    static_2, change_2 = gauss_kl(m2, 1, 0.03, 1), gauss_kl(m2, 1, 0, broad)
    assert static_1 <= 0.5 * change_1
    assert static_2 > 0.35 * change_2  # eq. 8 lowered beta from 0.5 to 0.35
    torch.testing.assert_close(output.kl_static[0], torch.tensor([0, static_1, static_2], dtype=torch.float64))
    torch.testing.assert_close(output.kl_change[0], torch.tensor([0, change_1, change_2], dtype=torch.float64))
    assert output.change_points[0].tolist() == [False, False, True]
    charged = [gauss_kl(0, 1, 0, 1), static_1, gauss_kl(5, 1, 0, broad)]  # a reset draws from r and pays for r
    torch.testing.assert_close(output.kl_charged[0], torch.tensor(charged, dtype=torch.float64))
    torch.testing.assert_close(output.belief_mean[0, :, 0], torch.tensor([0, 0.03, 5], dtype=torch.float64))


def ratio_streams(levels: list[float]) -> tuple[ScanStreams, ScanWeights]:
    start = torch.tensor([[[level, 0.0] for level in levels]], dtype=torch.float64)
    inputs = case(ScanRules(change_prior="constant"), batch=1, n=len(levels), z=1, h=2)
    return ScanStreams(start), inputs["weights"]._replace(prior_bias=torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_refractory_waits_and_holds_beta() -> None:
    streams, weights = ratio_streams([0, 8, -8, 8, -8, 8])
    rules = ScanRules(change_prior="constant", alpha=0.0, beta0=0.15)
    eager = change_point_scan(streams, weights, rules).change_points[0]
    assert eager.tolist() == [False, True, True, True, True, True]
    patient = change_point_scan(streams, weights, rules._replace(refractory=1)).change_points[0]
    assert patient.tolist() == [False, True, False, True, False, True]


def test_alpha_down_and_the_clip() -> None:
    """Equal snippets never fire; beta falls to the lower clip and no further, whatever the step."""
    streams, weights = ratio_streams([0.0] * 20 + [2.0])
    for alpha_down, lower, fires in ((None, 0.15, True), (None, 0.6, False), (0.001, 0.15, False)):
        rules = ScanRules(change_prior="constant", alpha_down=alpha_down, beta0=0.9, beta_range=(lower, 0.9))
        output = change_point_scan(streams, weights, rules)
        ratio = (output.kl_static[0, -1] / output.kl_change[0, -1]).item()
        assert 0.15 < ratio < 0.6
        assert output.change_points[0, -1].item() is fires


def test_reset_off_keeps_the_state() -> None:
    inputs = case(ScanRules(), n=6)
    forced = torch.zeros(3, 6, dtype=torch.bool)
    forced[:, 3] = True
    on = change_point_scan(**inputs, forced_changes=forced)
    off = change_point_scan(**inputs | {"rules": ScanRules(reset=False)}, forced_changes=forced)
    d0 = inputs["weights"].initial_state.expand(3, -1)
    torch.testing.assert_close(on.state[:, 3], d0)
    assert not torch.allclose(off.state[:, 3], d0)
    torch.testing.assert_close(on.kl_static[:, :4], off.kl_static[:, :4])


def test_forced_changes_ignore_column_0_and_the_test() -> None:
    inputs = case(ScanRules(refractory=5), n=7)
    forced = torch.ones(3, 7, dtype=torch.bool)
    output = change_point_scan(**inputs, forced_changes=forced, lengths=torch.tensor([7, 3, 1]))
    assert output.change_points.sum(1).tolist() == [6, 2, 0]
    assert not output.change_points[:, 0].any()
    assert (output.kl_static[0, 1:] > 0).all()


def test_no_noise_draws_the_mean() -> None:
    inputs = case(ScanRules()) | {"noise": None}
    output = change_point_scan(**inputs)
    torch.testing.assert_close(output.latent, output.belief_mean)


def test_one_snippet() -> None:
    output = change_point_scan(**case(ScanRules(), n=1))
    assert output.change_points.shape == (3, 1)
    assert not output.change_points.any()
    assert (output.kl_charged > 0).all()


def test_extreme_inputs_stay_finite() -> None:
    inputs = case(ScanRules(), dtype=torch.float32)
    streams = ScanStreams(inputs["streams"].start * 1e4)
    output = change_point_scan(streams, inputs["weights"], ScanRules(), noise=inputs["noise"])
    assert all(torch.isfinite(value).all() for value in output[1:])


def test_literal_reading_fires_often_where_the_filtered_one_is_quiet() -> None:
    """Constant input under noise: the filter shrinks D_static, the literal posterior follows every snippet."""
    generator = torch.Generator().manual_seed(3)
    start = torch.cat([torch.randn(4, 200, 4, generator=generator), torch.zeros(4, 200, 4)], dim=-1).double()
    inputs = case(ScanRules(change_prior="constant"), batch=4, n=200, z=4)
    weights = inputs["weights"]._replace(prior_bias=torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64))
    filtered = ScanRules(change_prior="constant", belief_weight=0.8, evidence_weight=0.2)
    rates = [
        change_point_scan(ScanStreams(start), weights, rules).change_points.double().mean().item()
        for rules in (filtered, filtered._replace(belief_weight=0.0, evidence_weight=1.0))
    ]
    assert rates[0] < 0.2 < rates[1], rates


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": torch.zeros(3, 12, 5).double()}, r"noise must be \(3, 12, 4\) under these rules, got \(3, 12, 5\)"),
        ({"lengths": torch.tensor([1])}, r"lengths must be \(3,\)"),
        ({"forced_changes": torch.zeros(3, 1, dtype=torch.bool)}, r"forced_changes must be \(3, 12\)"),
        ({"rules": ScanRules(change_prior="full")}, r"streams\.prior must be \(3, 12, 8\) under these rules, got None"),
        ({"rules": ScanRules(change_prior="constant")}, r"weights\.prior_state must be None under these rules"),
        ({"rules": LITERAL}, r"streams\.prior must be"),
        ({"backend": "quantum"}, "backend must be auto or one of"),
        ({"streams": ScanStreams(torch.zeros(3, 12, 7))}, r"streams\.start must be \(B, T >= 1, 2Z\)"),
        ({"lengths": torch.tensor([12, 0, 1])}, r"lengths must be in \[1, 12\], got 0 to 12"),
        ({"lengths": torch.tensor([13, 2, 1])}, r"lengths must be in \[1, 12\], got 1 to 13"),
        ({"lengths": torch.tensor([12, 2, 1]).int()}, r"lengths must be torch.int64, got torch.int32"),
        ({"noise": torch.zeros(3, 12, 4)}, r"noise must be torch.float64, got torch.float32"),
        ({"backend": "cpu"}, r"backend=cpu "),
        ({"streams": ScanStreams(torch.zeros(3, 0, 8))}, r"streams\.start must be \(B, T >= 1, 2Z\)"),
    ],
)
def test_rejects(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change_point_scan(**case(ScanRules()) | change)
