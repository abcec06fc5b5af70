"""The longest-common-subsequence step: change-points between two stretches that tell the same story are deleted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.config import RefinementConfig
from ahlm.kernels.lcs import lcs_length_of_blocks

Floats = NDArray[np.float32]
BLOCK = 256  # rows of similarities held at a time, so that an hour-long segment needs no square matrix
REACH = 64  # snippets next to a change-point that are compared before all of them are


def refine_change_points(
    features: NDArray[Any], change_points: NDArray[np.int64], config: RefinementConfig
) -> NDArray[np.int64]:
    """Change-points that remain after deleting redundant ones (section 3.3, end).

    For consecutive points A < B < C, B goes when the snippet sequences [A, B) and [B, C) have a longest common
    subsequence of at least `lcs_ratio` times the shorter one. (The paper compares A-C with B-C; B-C is a suffix of
    A-C, so that subsequence is always all of B-C and says nothing.) Deleting B makes A and C neighbours: the pass
    goes from left to right with the merged segment, and is repeated until it deletes nothing. The video's first and
    last edge take part as A and C and are never deleted.

    The answer is the same in every run on one machine; another BLAS may round a cosine that lies within 1e-6 of the
    threshold to its other side.

    Args:
        features: snippet features [n, F], any real dtype; a zero row has cosine 0 with everything.
        change_points: sorted edges in 1 .. n-1.
        config: thresholds; `enabled: false` returns the points as they are.

    Raises:
        ValueError: features that are not a finite matrix, points unsorted or out of range, settings out of range.
    """
    points = np.asarray(change_points, np.int64)
    if not config.enabled or not len(points):
        return points
    _check(features, points, config)
    unit = unit_features(features, centred=config.similarity == "centred")
    edges = [0, *points.tolist(), len(unit)]
    settled: set[tuple[int, int, int]] = set()  # triples that an earlier pass kept; a repeat would answer the same
    for _ in range(config.max_rounds):
        kept = _one_pass(unit, edges, config, settled)
        if len(kept) == len(edges):
            break
        edges = kept
    return np.array(edges[1:-1], np.int64)


def _one_pass(
    unit: Floats, edges: list[int], config: RefinementConfig, settled: set[tuple[int, int, int]]
) -> list[int]:
    """Edges that one pass from left to right leaves."""
    kept = edges[:1]
    for middle, right in pairwise(edges[1:]):
        triple = (kept[-1], middle, right)
        if triple in settled or not _redundant(unit, *triple, config):
            settled.add(triple)
            kept.append(middle)
    return [*kept, edges[-1]]


def _redundant(unit: Floats, left: int, middle: int, right: int, config: RefinementConfig) -> bool:
    """Whether the snippets on both sides of `middle` have enough in common.

    A subsequence common to parts of the two sides is common to the sides, so the snippets nearest to `middle` are
    compared first and usually settle it. Without that, a video in which everything merges would compare its whole
    past again at every change-point, which is quadratic in its length.
    """
    shorter = min(middle - left, right - middle)
    needed = math.ceil(config.lcs_ratio * shorter - 1e-9)  # 0.55 x 20 is 11, not the 11.000000000000002 of binary
    reach = max(REACH, 2 * shorter)
    while True:
        start, end = max(left, middle - reach), min(right, middle + reach)
        if lcs_length_of_blocks(_similarity(unit[start:middle], unit[middle:end]), config.cosine_threshold) >= needed:
            return True
        if (start, end) == (left, right):
            return False
        reach *= 4


def _similarity(left: Floats, right: Floats) -> Iterable[Floats]:
    """Cosines of two sequences of unit rows, blocks of rows of the shorter by all of the longer."""
    short, long = (left, right) if len(left) <= len(right) else (right, left)
    if len(short) <= BLOCK:
        return [short @ long.T]
    return (short[i : i + BLOCK] @ long.T for i in range(0, len(short), BLOCK))


def unit_features(features: NDArray[Any], centred: bool) -> Floats:
    """Rows scaled to length 1, float32, after taking off the video's mean if `centred`; a zero row stays zero."""
    rows = np.asarray(features, np.float32)
    if centred:
        rows = rows - rows.mean(0)
    norms = np.sqrt(np.einsum("nf,nf->n", rows, rows))[:, None]
    # one number a row tells of every NaN or infinity in it
    if not np.isfinite(norms).all():
        raise ValueError(f"features must be finite, got otherwise in row {int(np.argmin(np.isfinite(norms[:, 0])))}")
    return np.asarray(rows / np.where(norms > 0, norms, 1))


def _check(features: NDArray[Any], points: NDArray[np.int64], config: RefinementConfig) -> None:
    if np.ndim(features) != 2:
        raise ValueError(f"features must be [n, F], got {list(np.shape(features))}")
    n = len(features)
    if points.ndim != 1 or np.any(np.diff(points) <= 0) or points[0] < 1 or points[-1] > n - 1:
        raise ValueError(f"change_points must increase within 1 .. {n - 1}, got {points.ravel().tolist()[:8]}")
    if not 0 < config.lcs_ratio <= 1:
        raise ValueError(f"lcs_ratio must be in (0, 1], got {config.lcs_ratio}")
    if not -1 <= config.cosine_threshold <= 1:
        raise ValueError(f"cosine_threshold must be in [-1, 1], got {config.cosine_threshold}")
    if config.max_rounds < 1:
        raise ValueError(f"max_rounds must be at least 1, got {config.max_rounds}")
