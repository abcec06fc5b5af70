"""The longest-common-subsequence step: change-points between two stretches that tell the same story are deleted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.config import RefinementConfig, check_fields
from ahlm.kernels.lcs import lcs_length_of_blocks

Floats = NDArray[np.float32]
BLOCK = 128  # rows of cosines held at a time, so that an hour-long segment needs no square matrix
NEAR = 64  # snippets next to a change-point that are compared before all of them are
EXACT = 4096  # cosines computed again in float64 at a time
WIDE = 512  # a left side longer than this shares its cosines with the next change-points


def refine_change_points(
    features: NDArray[Any], change_points: NDArray[np.int64], config: RefinementConfig
) -> NDArray[np.int64]:
    """Change-points that remain after deleting redundant ones (section 3.3, end).

    For consecutive points A < B < C, B goes when the snippet sequences [A, B) and [B, C) have a longest common
    subsequence of at least `lcs_ratio` times the shorter one. (The paper compares A-C with B-C; B-C is a suffix of
    A-C, so that subsequence is always all of B-C and says nothing.) Deleting B makes A and C neighbours: the pass
    goes from left to right with the merged segment, and is repeated until it deletes nothing. The video's first and
    last edge take part as A and C and are never deleted.

    The answer does not depend on the number of threads or on how the BLAS rounds: cosines too near the threshold for
    float32 to tell are computed again in float64.

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
    cosines = _Cosines(unit_features(features, centred=config.similarity == "centred"), config.cosine_threshold)
    edges = [0, *points.tolist(), len(features)]
    settled: set[tuple[int, int, int]] = set()  # triples that an earlier pass kept; a repeat would answer the same
    for _ in range(config.max_rounds):
        kept = _one_pass(cosines, edges, config, settled)
        if len(kept) == len(edges):
            break
        edges = kept
    return np.array(edges[1:-1], np.int64)


def _one_pass(
    cosines: _Cosines, edges: list[int], config: RefinementConfig, settled: set[tuple[int, int, int]]
) -> list[int]:
    """Edges that one pass from left to right leaves."""
    kept = edges[:1]
    for middle, right in pairwise(edges[1:]):
        triple = (kept[-1], middle, right)
        if triple in settled or not _redundant(cosines, *triple, config):
            settled.add(triple)
            kept.append(middle)
    return [*kept, edges[-1]]


def _redundant(cosines: _Cosines, left: int, middle: int, right: int, config: RefinementConfig) -> bool:
    """Whether the snippets on both sides of `middle` have enough in common.

    A subsequence common to parts of the two sides is common to the sides, so the snippets nearest to `middle` are
    compared first and usually settle it. Without that, a video in which everything merges would compare its whole
    past again at every change-point.
    """
    shorter = min(middle - left, right - middle)
    needed = math.ceil(config.lcs_ratio * shorter - 1e-9)  # 0.55 x 20 is 11, not the 11.000000000000002 of binary
    near = max(NEAR, 2 * shorter)
    parts = [(max(left, middle - near), min(right, middle + near)), (left, right)]
    if parts[0] == parts[1]:
        parts.pop()
    return any(
        lcs_length_of_blocks(cosines.blocks(start, middle, end), config.cosine_threshold) >= needed
        for start, end in parts
    )


class _Cosines:
    """Cosines between the snippets of a video, computed where they are asked for."""

    def __init__(self, unit: Floats, threshold: float) -> None:
        self.unit = unit
        self.threshold = np.float32(threshold)
        # the bound of the rounding error of a float32 sum of products, in any order; rows of length 1
        self.error = np.float32((unit.shape[1] + 2) * 2.0**-24)
        self._panel = np.empty((0, 0), np.float32)  # cosines of BLOCK snippets from `_row` with those from `_column`
        self._row = self._column = len(unit)

    def blocks(self, left: int, middle: int, right: int) -> Iterable[Floats]:
        """Cosines of [left, middle) and [middle, right): blocks of rows of the shorter by all of the longer."""
        if WIDE < middle - left >= right - middle:
            return self._from_panels(left, middle, right)
        short, long = self.unit[left:middle], self.unit[middle:right]
        if len(short) > len(long):
            short, long = long, short
        return (self._product(short[i : i + BLOCK], long) for i in range(0, len(short), BLOCK))

    def _from_panels(self, left: int, middle: int, right: int) -> Iterable[Floats]:
        """As `blocks`; a long left side meets many short right ones, and one product serves all within a panel."""
        for row in range(middle // BLOCK * BLOCK, right, BLOCK):
            if row != self._row or left < self._column:
                self._row, self._column = row, left
                self._panel = self._product(self.unit[row : row + BLOCK], self.unit[left : row + BLOCK])
            yield self._panel[max(middle - row, 0) : right - row, left - self._column : middle - self._column]

    def _product(self, rows: Floats, columns: Floats) -> Floats:
        """Cosines; those that rounding could carry over the threshold stand clearly on the side where they belong."""
        block: Floats = rows @ columns.T
        unsure = np.flatnonzero((block >= self.threshold - self.error) & (block <= self.threshold + self.error))
        for first in range(0, len(unsure), EXACT):
            cells = unsure[first : first + EXACT]
            i, j = np.divmod(cells, block.shape[1])
            exact = (rows[i].astype(np.float64) * columns[j]).sum(axis=1)
            block.reshape(-1)[cells] = np.where(exact > self.threshold, np.float32(2), np.float32(-2))
        return block


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
    if np.ndim(features) != 2 or not np.shape(features)[1]:
        raise ValueError(f"features must be [n, F >= 1], got {list(np.shape(features))}")
    n = len(features)
    if points.ndim != 1 or np.any(np.diff(points) <= 0) or points[0] < 1 or points[-1] > n - 1:
        raise ValueError(f"change_points must increase within 1 .. {n - 1}, got {points.ravel().tolist()[:8]}")
    check_fields(config, "refinement.")
