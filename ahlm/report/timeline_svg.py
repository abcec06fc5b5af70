"""One video as an SVG picture: ground truth, detections, attention, CAS, and the change-point test over time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, LEFT, RIGHT = 960, 108, 22
MOST_LETTERS = 15  # left of the tracks
MOST_POINTS = 320  # of a curve; longer videos are averaged in groups
TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
TRACK, GAP = 46, 10
# Okabe-Ito: told apart by colour-blind readers, on white and on black
COLOURS = {"foreground": "#d55e00", "context": "#e69f00", "background": "#56b4e9", "cas": "#009e73", "ratio": "#8a6fbf"}
CLASS_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.axis{stroke:#8c959f;stroke-width:1}.quiet{fill:#8c959f}"
    ".line{fill:none;stroke-width:1.6;stroke-linejoin:round}.point{stroke:#24292f;stroke-width:1.2}"
    ".pale{stroke:#8c959f;stroke-width:1.2;stroke-dasharray:2 2}"
    ".gone{stroke:#d55e00;stroke-width:2.4;stroke-dasharray:1 4}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.point{stroke:#e6edf3}}"
)


class Bar(NamedTuple):
    """A labelled stretch of time in seconds, with an opacity between 0 and 1."""

    label: str
    start_s: float
    end_s: float
    opacity: float = 1.0


class Timeline(NamedTuple):
    """What the picture shows of a video of n snippets.

    Attributes:
        title: above the picture.
        edges_s: seconds of the n + 1 snippet edges.
        truth: annotated segments.
        detections: found segments.
        attention: foreground, context, background [n, 3].
        cas: CAS of the best class [n] and its name.
        cas_label: that name.
        log_ratio: log(D_static / D_change) [n], NaN where not tested.
        detected_s: change-points in seconds.
        refined_s: those that the LCS step left.
        foreground_s: those of them that attention kept as boundaries.
    """

    title: str
    edges_s: NDArray[np.float64]
    truth: Sequence[Bar]
    detections: Sequence[Bar]
    attention: NDArray[np.float32]
    cas: NDArray[np.float32]
    cas_label: str
    log_ratio: NDArray[np.float64]
    detected_s: NDArray[np.float64]
    refined_s: NDArray[np.float64]
    foreground_s: NDArray[np.float64]


def timeline_svg(timeline: Timeline) -> str:
    """The picture as a self-contained SVG document; all text from data is escaped."""
    end = float(timeline.edges_s[-1])
    labels = sorted({bar.label for bar in (*timeline.truth, *timeline.detections)})
    colour = {label: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, label in enumerate(labels)}
    parts: list[str] = []
    y = 30.0

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end

    def name(text: str, top: float, tone: str = "") -> None:
        style = f' style="fill:{tone}"' if tone else ""
        text = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
        parts.append(f'<text x="{LEFT - 8}" y="{top:.0f}" text-anchor="end"{style}>{escape(text)}</text>')

    def bars(title: str, rows: Sequence[Bar]) -> None:
        nonlocal y
        name(title, y + 15)
        for bar in rows:
            left, width = x(bar.start_s), max(1.5, x(bar.end_s) - x(bar.start_s))
            about = f"{bar.label} {bar.start_s:.1f}-{bar.end_s:.1f} s"
            parts.append(
                f'<rect x="{left:.1f}" y="{y:.0f}" width="{width:.1f}" height="22" rx="3" '
                f'fill="{colour[bar.label]}" fill-opacity="{bar.opacity:.2f}"><title>{escape(about)}</title></rect>'
            )
        y += 22 + GAP

    def curve(values: NDArray[np.float64], low: float, high: float, tone: str) -> None:
        centres = thinned((timeline.edges_s[:-1] + timeline.edges_s[1:]) / 2)
        values = thinned(values)
        heights = y + TRACK * (1 - (np.clip(values, low, high) - low) / (high - low))
        real = np.isfinite(heights)
        if real.any():
            d = path_data(np.array([x(s) for s in centres[real]]), heights[real])
            parts.append(f'<path class="line" style="stroke:{tone}" d="{d}"/>')

    def base() -> None:
        nonlocal y
        y += TRACK
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.0f}" y2="{y:.0f}"/>')
        y += GAP

    parts.append(f'<text x="{LEFT}" y="17" style="font-weight:600">{escape(timeline.title)}</text>')
    offset = LEFT + 24 + max(120.0, 7.6 * len(timeline.title))
    for label in labels:
        if offset + 16 + 7 * len(label) > WIDTH:
            parts.append(f'<text x="{min(offset, WIDTH - 14.0):.0f}" y="17">…</text>')
            break  # the bars say their labels when pointed at
        parts.append(f'<rect x="{offset:.0f}" y="7" width="11" height="11" rx="2" fill="{colour[label]}"/>')
        parts.append(f'<text x="{offset + 16:.0f}" y="17">{escape(label)}</text>')
        offset += 34 + 7 * len(label)
    first = y
    bars("ground truth", timeline.truth)
    bars("detections", timeline.detections)
    for i, branch in enumerate(("foreground", "context", "background")):
        name(branch, y + 13 + 14 * i, COLOURS[branch])
        curve(timeline.attention[:, i].astype(np.float64), 0, 1, COLOURS[branch])
    base()
    name("CAS", y + 13, COLOURS["cas"])
    name(timeline.cas_label, y + 28, COLOURS["cas"])
    curve(timeline.cas.astype(np.float64), 0, max(1e-6, float(timeline.cas.max())), COLOURS["cas"])
    base()
    name("log D_static/", y + 13, COLOURS["ratio"])
    name("D_change", y + 28, COLOURS["ratio"])
    finite = timeline.log_ratio[np.isfinite(timeline.log_ratio)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    curve(timeline.log_ratio, low, max(high, low + 1e-6), COLOURS["ratio"])
    base()
    name("change-points", y + 13)
    kept, refined = (
        np.isclose(timeline.detected_s[:, None], some, rtol=0, atol=1e-6).any(1)
        for some in (timeline.foreground_s, timeline.refined_s)
    )
    for style, members, top in (
        ("gone", ~kept & ~refined, y - 2),
        ("pale", ~kept & refined, y - 2),
        ("point", kept, first),
    ):
        if members.any():
            d = "".join(f"M{x(seconds):.1f} {top:.0f}V{y + 16:.0f}" for seconds in timeline.detected_s[members])
            parts.append(f'<path class="{style}" d="{d}"/>')
    y += 16 + GAP
    step = next((tick for tick in TICKS_S if end / tick <= 9), TICKS_S[-1])
    for seconds in range(0, int(end) + 1, step):
        parts.append(
            f'<text class="quiet" x="{x(seconds):.1f}" y="{y + 10:.0f}" text-anchor="middle">{seconds} s</text>'
        )
    height = y + 18
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(timeline.title)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def path_data(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """A line through the points [n] as SVG path data: relative steps of tenths, half the size of absolute ones."""
    tenths = np.rint(10 * np.stack([x, y], 1)).astype(int)
    steps = np.diff(tenths, axis=0).ravel()
    # a minus sign separates numbers by itself
    text = "".join(
        f"{'' if step < 0 else ' '}{step / 10:g}".replace(" 0.", " .").replace("-0.", "-.") for step in steps
    )
    return f"M{tenths[0, 0] / 10:g} {tenths[0, 1] / 10:g}l{text.lstrip()}"


def thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of groups of neighbours, so that at most `MOST_POINTS` remain; NaN where a whole group is."""
    size = -(-len(values) // MOST_POINTS)
    if size <= 1:
        return values
    groups = np.pad(values, (0, -len(values) % size), constant_values=np.nan).reshape(-1, size)
    real = np.isfinite(groups)
    count = real.sum(1)
    means = np.where(real, groups, 0).sum(1) / np.maximum(count, 1)
    return np.asarray(np.where(count > 0, means, np.nan))
