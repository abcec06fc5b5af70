"""The longest-common-subsequence step: change-points between two stretches that tell the same story are deleted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.config import RefinementConfig
from ahlm.kernels.lcs import lcs_length


def refine_change_points(
    features: NDArray[Any], change_points: NDArray[np.int64], config: RefinementConfig
) -> NDArray[np.int64]:
    """Change-points that remain after deleting redundant ones (section 3.3, end).

    For consecutive points A < B < C, B goes when the snippet sequences [A, B) and [B, C) have a longest common
    subsequence of at least `lcs_ratio` times the shorter one. (The paper compares A-C with B-C; B-C is a suffix of
    A-C, so that subsequence is always all of B-C.) Deleting B makes A and C neighbours: the pass goes from left to
    right with the merged segment, and is repeated until it deletes nothing.

    Args:
        features: snippet features [n, F].
        change_points: sorted edges in 1 .. n-1.
        config: thresholds; `enabled: false` returns the points as they are.
    """
    points = np.asarray(change_points, np.int64)
    if not config.enabled or not len(points):
        return points
    unit = unit_features(features, centred=config.similarity == "centred")
    for _ in range(config.max_rounds):
        kept = _one_pass(unit, points, config)
        if len(kept) == len(points):
            break
        points = kept
    return points


def _one_pass(unit: NDArray[np.float32], points: NDArray[np.int64], config: RefinementConfig) -> NDArray[np.int64]:
    kept = [0]
    following = [*points[1:].tolist(), len(unit)]
    for middle, right in zip(points.tolist(), following, strict=True):
        left = kept[-1]
        shorter = min(middle - left, right - middle)
        similarity = unit[left:middle] @ unit[middle:right].T
        if lcs_length(similarity, config.cosine_threshold) < config.lcs_ratio * shorter:
            kept.append(middle)
    return np.array(kept[1:], np.int64)


def unit_features(features: NDArray[Any], centred: bool) -> NDArray[np.float32]:
    """Rows scaled to length 1, after taking off the video's mean if `centred`; a zero row stays zero."""
    rows = np.asarray(features, np.float32)
    if centred:
        rows = rows - rows.mean(0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
