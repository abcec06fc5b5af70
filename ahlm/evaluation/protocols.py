"""The evaluation protocols behind published figures (`docs/protocols.md` compares them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

SUBSET_ALIASES: tuple[frozenset[str], ...] = (
    frozenset({"test", "testing"}),
    frozenset({"validation", "val"}),
    frozenset({"train", "training"}),
)


@dataclass(frozen=True)
class Protocol:
    """One way to compute mAP.

    Attributes:
        name: as on the command line.
        tious: temporal IoU thresholds.
        averages: named ranges of thresholds whose mean is reported, as `0.1:0.7`; the last one is the headline.
        subset: of the ground truth.
        left_out: videos of the subset that do not count.
        snippet: none: segments are compared in seconds; else frames of a snippet and frames a second: ground truth is
            rounded to whole snippets.
        ambiguous: predictions that touch a segment of THUMOS14's list of ambiguous ones are left out.
        drop_short: with `snippet`: predictions of at most one snippet are left out.
    """

    name: str
    tious: tuple[float, ...]
    averages: tuple[tuple[float, float], ...]
    subset: str
    left_out: frozenset[str] = frozenset()
    snippet: tuple[float, float] | None = None
    ambiguous: bool = False
    drop_short: bool = False


def _steps(first: int, last: int, step: int) -> tuple[float, ...]:
    """Thresholds in hundredths, as exact decimals: 0.3, not 0.1 + 0.1 + 0.1."""
    return tuple(value / 100 for value in range(first, last + 1, step))


# the usual feature sets lack these two, and one of the two ground-truth files that circulate leaves them out
_WITHOUT_FEATURES = frozenset({"video_test_0000270", "video_test_0001496"})
_THUMOS14 = Protocol("thumos14", _steps(10, 70, 10), ((0.1, 0.5), (0.3, 0.7), (0.1, 0.7)), "test")
_SNIPPET = replace(_THUMOS14, name="thumos14-snippet", snippet=(16, 25), ambiguous=True)
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _THUMOS14,
        replace(_THUMOS14, name="thumos14-210", left_out=_WITHOUT_FEATURES),
        replace(_THUMOS14, name="thumos14-0.9", tious=_steps(10, 90, 10), averages=((0.1, 0.7), (0.1, 0.9))),
        _SNIPPET,
        replace(_SNIPPET, name="thumos14-snippet-delu", drop_short=True),
        replace(_SNIPPET, name="thumos14-snippet-unfiltered", ambiguous=False),
        Protocol("activitynet-1.3", _steps(50, 95, 5), ((0.5, 0.95),), "validation"),
    )
}


def same_subset(a: str, b: str) -> bool:
    """Whether two subset names mean the same: case is ignored, `test` is `testing`, `val` is `validation`."""
    a, b = a.lower(), b.lower()
    return a == b or any(a in names and b in names for names in SUBSET_ALIASES)
