"""The Triton scans against the float64 reference: change-points equal, gradients close, nothing read past an end.

`test_triton.py` runs this file in a process of its own: on a GPU where there is one, and with TRITON_INTERPRET=1 on the
CPU, instruction by instruction. The compiled CPU scans have the same cases in `test_compiled_scans.py`.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.kernels.change_point_scan import ScanRules, ScanStreams, ScanWeights, change_point_scan, op
from ahlm.kernels.compiled import gpu_module
from ahlm.kernels.snippet_scan import SnippetWeights, snippet_scan

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

# largest error in units of the largest value; measured in the interpreter: 3e-6 and 2e-3
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}
READINGS = {
    "-".join(reading): ScanRules(*reading, belief_weight=0.6, evidence_weight=0.4)  # type: ignore[arg-type]
    for reading in itertools.product(("held", "prior"), ("state", "constant", "full"), ("start", "transition"))
}
FILTERED = ScanRules()
LITERAL = ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-reset": {"reset": False},
    "forced-mean": {"forced": True, "noise": False},
    "tracker": {"refractory": 1, "alpha": 0.1, "alpha_down": 0.02, "beta_range": (0.01, 2.0)},
}
# the fast suite gives each reading one variant in turn
CASES = {f"{name}-{variant}": (READINGS[name], VARIANTS[variant])
         for name, variant in zip(READINGS, itertools.cycle(VARIANTS), strict=False)}  # fmt: skip
READINGS |= {"filtered": FILTERED, "literal": LITERAL}
CASES["literal-plain"] = (LITERAL, {})
EVERY_CASE = {f"{name}-{variant}": (READINGS[name], VARIANTS[variant]) for name in READINGS for variant in VARIANTS}
EVERY_SIZE = [(1, 1, 1, 1), (1, 9, 16, 16), (9, 4, 64, 256), (3, 12, 3, 40)]


def leaf(*shape: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator)


def inputs(rules: ScanRules, batch: int, n: int, z: int, h: int, noise: bool, forced: bool) -> dict[str, Any]:
    """Float32 inputs of a scan, NaN past each video's end."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0, wanted: bool = True) -> Tensor | None:
        drawn = leaf(*shape, generator=generator, scale=scale)
        return drawn if wanted else None

    lengths = torch.tensor([n, max(1, n // 2), 1, n, max(1, n - 1)] * (batch // 5 + 1))[:batch]
    prior = rules.static_belief == "prior" or rules.change_prior == "full"
    transition, size, small = rules.evidence == "transition", (batch, n, 2 * z), h**-0.5
    streams = [draw(*size), draw(*size, wanted=prior), draw(*size, wanted=transition)]
    weights = [
        draw(3 * h, z, scale=small),
        draw(3 * h, h, scale=small),
        draw(3 * h, scale=0.1),
        draw(3 * h, scale=0.1),
        draw(2 * z, h, scale=small, wanted=prior or rules.change_prior == "state"),
        draw(2 * z, wanted=rules.change_prior != "full"),
        draw(2 * z, h, scale=small, wanted=transition),
        draw(h),
    ]
    draws = draw(batch, n, z, wanted=noise)
    for padded in (*streams, draws):
        if padded is not None:
            padded[torch.arange(n) >= lengths[:, None]] = torch.nan
    changes = torch.rand(batch, n, generator=generator) < 0.3 if forced else None
    return {"streams": streams, "weights": weights, "noise": draws, "lengths": lengths, "forced_changes": changes}


def run(rules: ScanRules, given: dict[str, Any], dtype: torch.dtype, device: str, **options: Any) -> tuple[Any, Any]:
    """A scan and the gradients of a random weighting of its results, back on the CPU."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    tensors = [moved(t) for t in (*given["streams"], *given["weights"])]
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    rest = {name: moved(given[name]) for name in ("noise", "lengths", "forced_changes")}
    output = change_point_scan(ScanStreams(*leaves[:3]), ScanWeights(*leaves[3:]), rules, **rest, **options)
    weighted(output[1:]).backward()
    return [t.detach().cpu() for t in output], [None if t is None else t.grad.cpu() for t in leaves]


def weighted(results: Any) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    terms = [(t * torch.rand(t.shape, generator=generator).to(t)).sum() for t in results]
    return torch.stack(terms).sum()


def assert_close(found: Any, expected: Any, precision: str) -> None:
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            assert torch.isfinite(one).all()
            error = (one - other).abs().max() / other.abs().max().clamp(min=1)
            assert error <= TOLERANCE[precision], error


def compare(rules: ScanRules, variant: dict[str, Any], size: tuple[int, ...]) -> None:
    variant = dict(variant)
    given = inputs(rules, *size, noise=variant.pop("noise", True), forced=variant.pop("forced", False))
    rules = rules._replace(**variant)
    output, gradients = run(rules, given, torch.float32, DEVICE, backend="triton")
    expected, by_reference = run(rules, given, torch.float64, "cpu")
    assert torch.equal(output[0], expected[0])
    assert_close(output[1:], expected[1:], "fp32")
    assert_close(gradients, by_reference, "fp32")
    for result in output:
        assert not result[torch.arange(size[1]) >= given["lengths"][:, None]].any()


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name: str) -> None:
    compare(*CASES[name], (3, 5, 4, 6))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_CASE)
def test_matches_reference_in_every_case(name: str) -> None:
    compare(*EVERY_CASE[name], (5, 7, 5, 21))


@pytest.mark.parametrize(
    ("name", "size"), [("filtered", (5, 3, 17, 33)), ("literal", (5, 3, 17, 33)), ("literal", (1, 1, 1, 1))]
)
def test_matches_reference_at_odd_sizes(name: str, size: tuple[int, ...]) -> None:
    compare(READINGS[name], {}, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", EVERY_SIZE)
@pytest.mark.parametrize("name", ["filtered", "literal", "held-constant-start"])
def test_matches_reference_at_every_size(name: str, size: tuple[int, ...]) -> None:
    compare(READINGS[name], {}, size)


@pytest.mark.parametrize(
    ("name", "size"),
    [("filtered", (16, 8, 16, 16)), pytest.param("literal", (16, 8, 16, 16), marks=pytest.mark.slow)],
)
def test_half_precision(name: str, size: tuple[int, ...]) -> None:
    """fp16 moves few change-points; along the same path results and gradients are close."""
    rules = READINGS[name]
    flips, n = half_precision_flips(rules, size)
    assert flips <= 0.01 * n, f"{flips} of {n}"
    given = inputs(rules, *size, noise=True, forced=True)
    output, gradients = run(rules, given, torch.float32, DEVICE, backend="triton", precision="fp16")
    expected, by_reference = run(rules, given, torch.float64, "cpu")
    assert_close(output[1:], expected[1:], "fp16")
    assert_close(gradients, by_reference, "fp16")


def half_precision_flips(rules: ScanRules, size: tuple[int, ...]) -> tuple[int, int]:
    """Change-points that fp16 moves, and snippets with a test."""
    given = inputs(rules, *size, noise=True, forced=False)
    given["lengths"] = torch.full_like(given["lengths"], size[1])
    for tensor in (*given["streams"], given["noise"]):
        if tensor is not None:
            tensor.nan_to_num_(0.5)
    found, expected = (
        run(rules, given, dtype, where, **options)[0][0]
        for dtype, where, options in (
            (torch.float32, DEVICE, {"backend": "triton", "precision": "fp16"}),
            (torch.float64, "cpu", {}),
        )
    )
    assert expected.any()
    return int((found != expected).sum()), size[0] * (size[1] - 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nan_comes_through(precision: str) -> None:
    """A diverged training must not look sound: what is NaN in the reference is NaN here."""
    given = inputs(LITERAL, 3, 4, 4, 6, noise=True, forced=True)
    given["lengths"] = torch.full_like(given["lengths"], 4)
    for tensor in (*given["streams"], given["noise"]):
        tensor.nan_to_num_(0.5)
    given["streams"][0][1, 1, 5] = torch.nan  # a log deviation
    given["forced_changes"][1, 1] = True
    output, gradients = run(LITERAL, given, torch.float32, DEVICE, backend="triton", precision=precision)
    expected, by_reference = run(LITERAL, given, torch.float64, "cpu")
    assert expected[4][1].isnan().any()
    for found, other in zip((*output, *gradients), (*expected, *by_reference), strict=True):
        if other is not None:
            assert torch.equal(found.isnan(), other.isnan())


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has one thread")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["filtered", "literal"])
def test_same_bits_every_time(name: str, precision: str) -> None:
    """A warp that reads what another has not written yet shows in one of twenty long runs, if anywhere."""
    given = inputs(READINGS[name], 37, 200, 64, 256, noise=True, forced=False)
    options = {"backend": "triton", "precision": precision}
    first, *others = (run(READINGS[name], given, torch.float32, DEVICE, **options) for _ in range(20))
    for other in others:
        for one, two in zip((*first[0], *first[1]), (*other[0], *other[1]), strict=True):
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["filtered", "literal"])
def test_half_precision_flips_few_change_points(name: str) -> None:
    flips, n = half_precision_flips(READINGS[name], (32, 40, 64, 256))
    print(f"fp16 moves {flips} of {n} decisions, {name} reading, random weights, Z 64, H 256")
    assert flips <= 0.01 * n


@pytest.mark.parametrize(
    ("size", "precision"), [((3, 5, 3, 5), "fp32"), ((5, 3, 17, 33), "fp32"), ((3, 5, 3, 5), "fp16")]
)
def test_snippet_scan_matches_reference(size: tuple[int, ...], precision: str) -> None:
    batch, n, z, h = size
    generator = torch.Generator().manual_seed(0)
    given = inputs(FILTERED, batch, n, z, h, noise=True, forced=True)
    second = torch.where(given["streams"][0].isnan(), torch.nan, leaf(batch, n, 2 * z, generator=generator))
    heads = [leaf(2 * z, h, generator=generator, scale=h**-0.5) for _ in range(2)]
    tensors = [given["streams"][0], second, *given["weights"][:4], *heads, given["weights"][7]]
    results = []
    for dtype, where, options in (
        (torch.float32, DEVICE, {"backend": "triton", "precision": precision}),
        (torch.float64, "cpu", {}),
    ):
        leaves = [t.to(where, dtype, copy=True).requires_grad_() for t in tensors]
        rest = {"noise": given["noise"].to(where, dtype), "change_points": given["forced_changes"].to(where)}
        output = snippet_scan(
            *leaves[:2], SnippetWeights(*leaves[2:]), **rest, lengths=given["lengths"].to(where), **options
        )
        weighted(output).backward()
        results.append([t.detach().cpu() for t in (*output, *(leaf.grad for leaf in leaves))])
    assert_close(*results, precision)
    for result in results[0][:3]:
        assert not result[torch.arange(n) >= given["lengths"][:, None]].any()


@pytest.mark.slow
def test_auto_trusts_a_kernel_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AHLM_BACKEND", "triton")
    monkeypatch.setenv("AHLM_CACHE", str(tmp_path))
    calls = []
    kernel = gpu_module("triton", op.SCAN)

    def forward(*arguments: Any, run: Any = kernel.forward) -> Any:
        calls.append("forward")
        return run(*arguments)

    monkeypatch.setattr(kernel, "forward", forward)
    given = inputs(FILTERED, 2, 2, 3, 5, noise=True, forced=False)
    run(FILTERED, given, torch.float32, DEVICE)
    (verdict,) = tmp_path.rglob("*.json")
    assert '"reason": ""' in verdict.read_text()
    assert len(calls) == 5  # the check, of few and many videos with noise and without, and the call


def test_registration() -> None:
    given = inputs(LITERAL, 2, 1, 2, 3, noise=True, forced=False)
    tensors = [None if t is None else t.nan_to_num(0.5).to(DEVICE).requires_grad_()
               for t in (*given["streams"], *given["weights"])]  # fmt: skip
    rest = (given["noise"].nan_to_num(0.5).to(DEVICE), given["lengths"].to(DEVICE), None)
    arguments = (*tensors, *rest, *op._flat(LITERAL), "triton", "fp32")
    torch.library.opcheck(torch.ops.ahlm.change_point_scan.default, arguments)
