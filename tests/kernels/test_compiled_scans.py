"""The compiled scans against the reference loops: both scans, every reading, each build that this machine runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.kernels import compiled
from ahlm.kernels.change_point_scan import ScanOutput, ScanRules, ScanStreams, ScanWeights, change_point_scan
from ahlm.kernels.snippet_scan import SnippetOutput, SnippetWeights, snippet_scan

pytestmark = pytest.mark.skipif(compiled.core is None, reason="installed without a C++ compiler")

FILTERED = ScanRules()
LITERAL = ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0)
READINGS = [
    ScanRules(*fields, belief_weight=0.6, evidence_weight=0.4)  # type: ignore[arg-type]
    for fields in itertools.product(("held", "prior"), ("state", "constant", "full"), ("start", "transition"))
] + [FILTERED._replace(reset=False), LITERAL._replace(reset=False), FILTERED._replace(refractory=2), LITERAL]
NAMES = ["-".join(map(str, rules[:3])) for rules in READINGS[:12]] + ["no-reset", "literal-no-reset", "wait", "literal"]
# batch, snippets, Z, H, lengths: one video, whole vectors, nothing a multiple of anything, more videos than a tile
SIZES = {
    "one": (1, 20, 16, 32, [20]),
    "even": (4, 17, 32, 64, [17, 17, 17, 17]),
    "odd": (3, 13, 5, 7, [13, 1, 6]),
    "ragged": (21, 11, 17, 33, [11, 3, 8, 1, 11, 7, 2, 9, 10, 4, 5, 6, 11, 1, 1, 8, 3, 2, 9, 7, 11]),
    "one snippet": (2, 1, 4, 6, [1, 1]),
    "wide": (1, 12, 40, 150, [12]),  # two threads share the video's products
    # more steps than the reverse scan takes at once: tiles of 2 and chunks of 48, tiles of 8 and chunks of 12
    "chunks": (8, 110, 6, 17, [110, 110, 98, 97, 96, 50, 49, 3]),
    "chunks of a full tile": (32, 30, 5, 9, [30] + [1 + 7 * i % 30 for i in range(31)]),
}


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Memory that a scan was to fill starts as NaN, so that what it leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Inputs:
    """Seeded inputs of one scan, and its differentiated outputs."""

    def __init__(
        self, rules: ScanRules | None, size: str, seed: int = 0, dtype: torch.dtype = torch.float32, rate: float = 0.3
    ) -> None:
        batch, n, z, h, lengths = SIZES[size]
        generator = torch.Generator().manual_seed(seed)
        self.leaves: list[Tensor] = []
        self.rules, self.lengths = rules, torch.tensor(lengths)

        def draw(*shape: int, scale: float = 1.0, wanted: bool = True) -> Tensor | None:
            values = scale * torch.randn(*shape, generator=generator)
            if not wanted:
                return None
            self.leaves.append(values.to(dtype).requires_grad_())
            return self.leaves[-1]

        gru = [((3 * h, z), 0.4), ((3 * h, h), h**-0.5), ((3 * h,), 0.1), ((3 * h,), 0.1)]
        if rules is None:
            self.streams: list[Tensor | None] = [draw(batch, n, 2 * z), draw(batch, n, 2 * z)]
            heads = [draw(2 * z, h, scale=h**-0.5) for _ in range(2)]
        else:
            prior, transition = (
                rules.static_belief == "prior" or rules.change_prior == "full",
                rules.evidence != "start",
            )
            wanted = (True, prior, transition)
            self.streams = [draw(batch, n, 2 * z, wanted=is_wanted) for is_wanted in wanted]
            heads = [
                draw(2 * z, h, scale=h**-0.5, wanted=prior or rules.change_prior == "state"),
                draw(2 * z, wanted=rules.change_prior != "full"),
                draw(2 * z, h, scale=h**-0.5, wanted=transition),
            ]
        self.weights = [*(draw(*shape, scale=scale) for shape, scale in gru), *heads, draw(h)]
        self.noise = torch.randn(batch, n, z, generator=generator).to(dtype)
        self.changes = torch.rand(batch, n, generator=generator) < rate

    def run(self, backend: str, forced: bool = False) -> ScanOutput | SnippetOutput:
        """The scan, its gradients left in `leaves`."""
        for leaf in self.leaves:
            leaf.grad = None
        output: ScanOutput | SnippetOutput
        if self.rules is None:
            settings: dict[str, Any] = {"noise": self.noise, "change_points": self.changes, "lengths": self.lengths}
            weights = SnippetWeights(*self.weights)  # type: ignore[arg-type]
            output = snippet_scan(*self.streams, weights, **settings, backend=backend)  # type: ignore[arg-type]
        else:
            output = change_point_scan(
                ScanStreams(*self.streams),  # type: ignore[arg-type]
                ScanWeights(*self.weights),  # type: ignore[arg-type]
                self.rules,
                noise=self.noise,
                lengths=self.lengths,
                forced_changes=self.changes if forced else None,
                backend=backend,
            )
        generator = torch.Generator().manual_seed(1)
        floats = [value for value in output if value.is_floating_point()]
        factors = [torch.rand(value.shape, generator=generator).to(value.dtype) for value in floats]
        torch.stack([(a * b).sum() for a, b in zip(floats, factors, strict=True)]).sum().backward()
        return output

    def gradients(self) -> list[Tensor]:
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves]


def assert_same_as_reference(
    rules: ScanRules | None, size: str, forced: bool, seed: int = 0, rate: float = 0.3
) -> None:
    """Decisions equal to the float32 reference's; values and gradients near the float64 reference's."""
    inputs = Inputs(rules, size, seed, rate=rate)
    output = inputs.run("cpu", forced)
    gradients = inputs.gradients()
    for name, value in output._asdict().items():
        assert not torch.isnan(value).any(), name
    single = inputs.run("reference", forced)
    if isinstance(output, ScanOutput) and isinstance(single, ScanOutput):
        torch.testing.assert_close(output.change_points, single.change_points)
    exact = Inputs(rules, size, seed, torch.float64, rate)
    if rules is not None:  # the float64 run must take the same decisions, or there is nothing to compare
        exact.rules, exact.changes, forced = rules, output[0], True
    for name, value, other in zip(output._fields, output, exact.run("reference", forced), strict=True):
        torch.testing.assert_close(
            value.to(other.dtype), other, rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    for gradient, other in zip(gradients, exact.gradients(), strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(gradient.double(), other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("rate", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_snippet_scan_of_few_and_of_many_segments(size: str, rate: float) -> None:
    """What d0 gives is known and left out: nowhere, almost everywhere, everywhere."""
    assert_same_as_reference(None, size, forced=False, rate=rate)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("forced", [True, False], ids=["forced", "free"])
@pytest.mark.parametrize("rules", READINGS, ids=NAMES)
def test_change_point_scan(rules: ScanRules, forced: bool, size: str) -> None:
    assert_same_as_reference(rules, size, forced)


@pytest.mark.parametrize("size", SIZES)
def test_snippet_scan(size: str) -> None:
    assert_same_as_reference(None, size, forced=False)


@pytest.mark.parametrize("name", compiled.instruction_sets())
@pytest.mark.parametrize("rules", [FILTERED, LITERAL, None], ids=["filtered", "literal", "snippet"])
def test_every_build(rules: ScanRules | None, name: str) -> None:
    with compiled.instruction_set(name):
        assert_same_as_reference(rules, "ragged", forced=False)
        assert_same_as_reference(rules, "odd", forced=False, seed=1)


def test_builds_are_named() -> None:
    with pytest.raises(ValueError, match="this machine runs the scans built for"), compiled.instruction_set("z80"):
        pass


@pytest.mark.parametrize("size", ["ragged", "wide"])
@pytest.mark.parametrize("rules", [FILTERED, LITERAL, None], ids=["filtered", "literal", "snippet"])
def test_threads_change_no_bit(rules: ScanRules | None, size: str) -> None:
    """Nor does it matter whether they are torch's, where torch has such as the scans can use, or their own."""
    inputs = Inputs(rules, size)
    before, results = torch.get_num_threads(), []
    try:
        for pool in {0, compiled.torch_threads()}:
            compiled.core.set_thread_pool(pool)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append((inputs.run("cpu"), inputs.gradients()))
    finally:
        compiled.core.set_thread_pool(compiled.torch_threads())
        torch.set_num_threads(before)
    for output, gradients in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(output, results[0][0], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


@pytest.mark.parametrize("rules", [FILTERED, LITERAL, None], ids=["filtered", "literal", "snippet"])
def test_strided_input(rules: ScanRules | None) -> None:
    """Views, expanded weights and gradients that are not contiguous give what their copies give."""
    plain = Inputs(rules, "odd")
    output, gradients = plain.run("cpu"), plain.gradients()
    strided = Inputs(rules, "odd")
    for group in (strided.streams, strided.weights):
        group[:] = [None if t is None else t.repeat_interleave(2, dim=-1)[..., ::2] for t in group]
    strided.noise = strided.noise.transpose(0, 1).contiguous().transpose(0, 1)
    for one, other in zip(output, strided.run("cpu"), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gradients, strided.gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rules", [FILTERED, LITERAL, None], ids=["filtered", "literal", "snippet"])
def test_padding_is_never_read(rules: ScanRules | None) -> None:
    clean, poisoned = Inputs(rules, "ragged"), Inputs(rules, "ragged")
    padded = torch.arange(11) >= poisoned.lengths[:, None]
    with torch.no_grad():
        for tensor in (*poisoned.streams, poisoned.noise):
            if tensor is not None:
                tensor[padded] = torch.nan
    for one, other in zip(clean.run("cpu"), poisoned.run("cpu"), strict=True):
        assert torch.equal(one, other)
        assert not one[padded].any()
    for one, other in zip(clean.gradients(), poisoned.gradients(), strict=True):
        assert torch.equal(one, other)


def test_extreme_values_stay_finite_and_decide_alike() -> None:
    for scale in (1e-30, 1e3, 1e15):
        inputs = Inputs(FILTERED, "even")
        with torch.no_grad():
            for tensor in inputs.streams:
                if tensor is not None:
                    tensor *= scale
        output = inputs.run("cpu")
        assert isinstance(output, ScanOutput)
        assert all(torch.isfinite(value).all() for value in output[1:])
        torch.testing.assert_close(output.change_points, inputs.run("reference")[0])


@pytest.mark.slow
def test_long_videos_at_the_papers_size() -> None:
    """Change-points of 24 x 750 snippets, Z 64 and H 256, are the reference's, in both readings."""
    SIZES["paper"] = (24, 750, 64, 256, [750 - 31 * i for i in range(24)])
    try:
        for rules in (FILTERED, LITERAL):
            inputs = Inputs(rules, "paper")
            outputs = [inputs.run(backend) for backend in ("cpu", "reference")]
            assert all(isinstance(output, ScanOutput) for output in outputs)
            assert torch.equal(outputs[0][0], outputs[1][0])
            for one, other in zip(outputs[0][1:], outputs[1][1:], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    finally:
        del SIZES["paper"]
