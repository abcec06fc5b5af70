"""The evaluation protocols behind published figures (`docs/protocols.md` compares them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        averages: named ranges of thresholds whose mean is reported, as `0.1:0.7`.
        subset: of the ground truth.
        snippet_s: none: segments are compared in seconds; else the seconds of a snippet, to which ground truth is
            rounded, as the W-TALC line of work does.
        drop_short: with `snippet_s`: predictions of at most one snippet are left out.
    """

    name: str
    tious: tuple[float, ...]
    averages: tuple[tuple[float, float], ...]
    subset: str
    snippet_s: float | None = None
    drop_short: bool = False


def _steps(first: int, last: int, step: int) -> tuple[float, ...]:
    """Thresholds in hundredths, as exact decimals: 0.3, not 0.1 + 0.1 + 0.1."""
    return tuple(value / 100 for value in range(first, last + 1, step))


_THUMOS_AVERAGES = ((0.1, 0.5), (0.3, 0.7), (0.1, 0.7))
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("thumos14", _steps(10, 70, 10), _THUMOS_AVERAGES, "test"),
        Protocol("thumos14-snippet", _steps(10, 70, 10), _THUMOS_AVERAGES, "test", snippet_s=16 / 25, drop_short=True),
        Protocol("activitynet-1.3", _steps(50, 95, 5), ((0.5, 0.95),), "validation"),
    )
}


def same_subset(a: str, b: str) -> bool:
    """Whether two subset names mean the same: case is ignored, `test` is `testing`, `val` is `validation`."""
    a, b = a.lower(), b.lower()
    return a == b or any(a in names and b in names for names in SUBSET_ALIASES)
