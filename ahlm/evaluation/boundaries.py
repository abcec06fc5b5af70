"""How well change-points meet the true boundaries, whatever their class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahlm.timeline import FeatureSpec


class ChangePointScores(NamedTuple):
    """Fractions over all videos; rates are change-points, or true boundaries, per inner edge."""

    precision: float
    recall: float
    f1: float
    rate: float
    true_rate: float


def true_boundaries(segments: Sequence[tuple[float, float]], spec: FeatureSpec, n_snippets: int) -> NDArray[np.float64]:
    """Starts and ends of segments (seconds) as sorted positions in snippets.

    Those within half a snippet of the video's edges are left out, and so are those less than a quarter of a snippet
    after the one before: no detector could tell them apart.
    """
    positions = np.sort(spec.edge_position(np.array(segments, float).ravel()))
    kept: list[float] = []
    for position in positions:
        if 0.5 <= position <= n_snippets - 0.5 and not (kept and position - kept[-1] < 0.25):
            kept.append(float(position))
    return np.array(kept)


def matches(detected: ArrayLike, truth: ArrayLike, tolerance: float) -> int:
    """Most pairs of a detected and a true point at most `tolerance` apart, each used once; both sorted."""
    points, bounds = np.asarray(detected, float), np.asarray(truth, float)
    i = j = found = 0
    while i < len(points) and j < len(bounds):
        # positions computed from seconds carry rounding errors
        if abs(points[i] - bounds[j]) <= tolerance + 1e-9:
            i, j, found = i + 1, j + 1, found + 1
        elif points[i] < bounds[j]:
            i += 1
        else:
            j += 1
    return found


def change_point_scores(
    detected: Sequence[ArrayLike], truth: Sequence[ArrayLike], n_snippets: Sequence[int], tolerance: float = 1.0
) -> ChangePointScores:
    """Precision, recall and F1 over videos.

    Args:
        detected: sorted positions of each video's change-points, in snippets.
        truth: sorted true boundaries, see `true_boundaries`.
        n_snippets: of each video.
        tolerance: in snippets.
    """
    found = sum(matches(p, b, tolerance) for p, b in zip(detected, truth, strict=True))
    n_detected = sum(len(np.asarray(p)) for p in detected)
    n_true = sum(len(np.asarray(b)) for b in truth)
    edges = max(1, sum(n - 1 for n in n_snippets))
    precision, recall = found / max(1, n_detected), found / max(1, n_true)
    f1 = 2 * precision * recall / (precision + recall) if found else 0.0
    return ChangePointScores(precision, recall, f1, n_detected / edges, n_true / edges)


def split_at_boundaries(values: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest value within one edge, at every true boundary, and at every edge more than two from all of them.

    Args:
        values: one for each edge e, between snippets e - 1 and e, of a video of n snippets [n]; the first counts not.
        truth: true boundaries in snippets, see `true_boundaries`.
    """
    values, bounds = np.asarray(values, float), np.asarray(truth, float)
    edges = np.arange(1, len(values))
    if not len(edges):
        return np.empty(0), np.empty(0)
    padded = np.pad(values[1:], 1, constant_values=-np.inf)
    best = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    nearest = np.clip(np.rint(bounds).astype(int), 1, len(edges)) - 1
    far = (np.abs(edges[:, None] - bounds) > 2).all(1)
    return best[nearest], best[far]


def score_file(database: dict[str, Any], extra: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of the change-points that a prediction file of ours carries under `"ahlm"`.

    Returns:
        For each stage that there is (`detected`, `refined` by LCS, `foreground` selected by attention; the last two not
        where no proposal needs change-points) and tolerance in snippets.
    """
    spec = FeatureSpec(**{name: extra["features"][name] for name in ("fps", "stride", "window")})
    videos = [video for video in extra["change_points"] if video in database]
    n_snippets = [extra["n_snippets"][video] for video in videos]
    truth = [
        true_boundaries(
            [(float(a), float(b)) for a, b in (item["segment"] for item in database[video]["annotations"])], spec, n
        )
        for video, n in zip(videos, n_snippets, strict=True)
    ]
    table: dict[str, dict[str, dict[str, float]]] = {}
    there = extra["change_points"][videos[0]] if videos else ()
    for stage in ("detected", *(stage for stage in ("refined", "foreground") if stage in there)):
        detected = [spec.edge_position(np.array(extra["change_points"][video][stage], float)) for video in videos]
        table[stage] = {
            f"{tolerance:g}": change_point_scores(detected, truth, n_snippets, tolerance)._asdict()
            for tolerance in (1.0, 2.0)
        }
    return table
