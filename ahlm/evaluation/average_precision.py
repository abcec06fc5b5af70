"""Average precision at temporal IoU: ActivityNet's algorithm in C++, and the NumPy reference it is tested against."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahlm.kernels.core import choose_backend, core


class Instances(NamedTuple):
    """Segments in columns: ground truth, or predictions with scores.

    Attributes:
        video: index [N] int64.
        class_index: [N] int64.
        start: [N] float64, seconds or snippets.
        end: [N] float64.
        score: [N] float64, finite; 0 for ground truth.
    """

    video: NDArray[np.int64]
    class_index: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    score: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Number of segments."""
        return len(self.video)

    def where(self, chosen: NDArray[Any]) -> Instances:
        """Some of the segments, by mask or index."""
        return Instances._make(column[chosen] for column in self)


class AveragePrecision(NamedTuple):
    """AP [K, C] per threshold and class, NaN without ground truth; prediction that takes each instance [K, G] or -1."""

    ap: NDArray[np.float64]
    taken_by: NDArray[np.int64]


def average_precision(
    truth: Instances,
    predictions: Instances,
    n_videos: int,
    n_classes: int,
    tious: NDArray[np.float64],
    *,
    ties: str = "stable",
    backend: str = "auto",
    n_threads: int | None = None,
) -> AveragePrecision:
    """Interpolated AP at each threshold for each class.

    Every ground-truth instance is matched once, by the best-scored prediction first; a prediction takes the instance
    of its class and video that it overlaps most among those still free and at or above the threshold. Where the
    union of two segments is empty the overlap is 0.

    Args:
        truth: ground truth.
        predictions: with scores.
        n_videos: number of videos.
        n_classes: number of classes.
        tious: thresholds [K], above 0.
        ties: of scores and of overlaps. `stable`: equal scores in input order, the later of equal overlaps first.
            `official`: as `argsort()[::-1]` leaves them, which is ActivityNet's code and depends on how NumPy sorts on
            this machine; that code also ranks NaN above every score, and lets two segments whose union is empty match
            at any threshold.
        backend: `auto`, `c++` or `numpy`.
        n_threads: of the C++ core; none: the cores of the machine.

    Raises:
        ValueError: a score or segment is not finite (`official` takes any score); a threshold that is not above 0; an
            unknown rule or backend; `c++` where it was not built.
    """
    if ties not in ("stable", "official"):
        raise ValueError(f"ties must be stable or official, got {ties!r}")
    compiled = choose_backend(backend) == "c++"
    check_finite(truth, predictions._replace(score=truth.score) if ties == "official" else predictions)
    tious = np.ascontiguousarray(tious, np.float64)
    if not (tious > 0).all():
        raise ValueError(f"tious must be above 0, got {tious.tolist()}")
    order = _official_order(predictions, n_classes) if ties == "official" else None
    if not compiled:
        if order is None:
            order = np.argsort(-predictions.score, kind="stable")
        return average_precision_numpy(truth, predictions, n_classes, tious, order, ties)
    offsets, ranks = _official_overlap_ranks(truth, predictions, n_videos) if ties == "official" else (None, None)
    ap, taken_by = core.average_precision(
        *truth[:4], predictions.video, predictions.class_index, predictions.score, predictions.start, predictions.end,
        order, offsets, ranks, n_videos, n_classes, tious, n_threads or os.cpu_count() or 1,
    )  # fmt: skip
    return AveragePrecision(ap, taken_by)


def check_finite(truth: Instances, predictions: Instances) -> None:
    """Raise `ValueError` at the first time or score that is not a finite number."""
    for name, instances in (("truth", truth), ("predictions", predictions)):
        for field in ("score", "start", "end"):
            column = getattr(instances, field)
            if not np.isfinite(column).all():
                raise ValueError(f"{name}.{field} must be finite, got {column[~np.isfinite(column)][0]}")


def _official_order(predictions: Instances, n_classes: int) -> NDArray[np.int64]:
    """Predictions class by class in the order of `scores.argsort()[::-1]`, ties as NumPy's quicksort leaves them."""
    by_class = np.argsort(predictions.class_index, kind="stable")
    edges = np.searchsorted(predictions.class_index[by_class], np.arange(n_classes + 1))
    parts = [by_class[first:last] for first, last in pairwise(edges)]
    return np.concatenate([part[predictions.score[part].argsort()[::-1]] for part in parts] or [by_class])


def _official_overlap_ranks(
    truth: Instances, predictions: Instances, n_videos: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order in which `overlaps.argsort()[::-1]` visits equal overlaps, for the predictions that have some.

    Returns:
        Offset of each prediction into the ranks [N], -1 without equal overlaps, and the ranks.
    """
    key = truth.class_index * n_videos + truth.video
    by_key = np.argsort(key, kind="stable")
    wanted = predictions.class_index * n_videos + predictions.video
    first = np.searchsorted(key[by_key], wanted, side="left")
    counts = np.searchsorted(key[by_key], wanted, side="right") - first
    counts[counts < 2] = 0
    owner = np.repeat(np.arange(predictions.size), counts)
    begin = np.cumsum(counts) - counts
    members = by_key[np.arange(len(owner)) - begin[owner] + first[owner]]
    overlaps = official_iou(predictions.start[owner], predictions.end[owner], truth.start[members], truth.end[members])
    comparable = np.nan_to_num(overlaps, nan=np.inf)  # NaN stands above all and equals itself in a sort
    ascending = np.lexsort((comparable, owner))
    values = comparable[ascending]
    same = (np.diff(owner[ascending]) == 0) & (values[1:] == values[:-1]) & (values[1:] > 0)
    offsets = np.full(predictions.size, -1, np.int64)
    ranks: list[NDArray[np.int64]] = []
    length = 0
    for p in np.unique(owner[ascending][1:][same]):
        visits = overlaps[begin[p] : begin[p] + counts[p]].argsort()[::-1]
        offsets[p], length = length, length + len(visits)
        ranks.append(np.argsort(visits))
    return offsets, np.concatenate(ranks) if ranks else np.empty(0, np.int64)


def average_precision_numpy(
    truth: Instances,
    predictions: Instances,
    n_classes: int,
    tious: NDArray[np.float64],
    order: NDArray[np.int64],
    ties: str = "stable",
) -> AveragePrecision:
    """The specification: one class, one threshold, one prediction after the other."""
    ap = np.full((len(tious), n_classes), np.nan)
    taken_by = np.full((len(tious), truth.size), -1, np.int64)
    iou = official_iou if ties == "official" else temporal_iou
    for c in np.unique(truth.class_index):
        members = np.flatnonzero(truth.class_index == c)
        visits = order[predictions.class_index[order] == c]
        for k, tiou in enumerate(tious):
            correct = np.zeros(len(visits), bool)
            for i, p in enumerate(visits):
                candidates = members[truth.video[members] == predictions.video[p]]
                overlaps = iou(predictions.start[p], predictions.end[p], truth.start[candidates], truth.end[candidates])
                for j in np.argsort(overlaps, kind="stable" if ties == "stable" else None)[::-1]:
                    if overlaps[j] < tiou:
                        break
                    if taken_by[k, candidates[j]] < 0:
                        taken_by[k, candidates[j]], correct[i] = p, True
                        break
            ap[k, c] = interpolated_ap(correct, len(members))
    return AveragePrecision(ap, taken_by)


def official_iou(
    start: ArrayLike, end: ArrayLike, starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`temporal_iou` with NaN where the union is empty."""
    intersection = np.maximum(0.0, np.minimum(end, ends) - np.maximum(start, starts))
    with np.errstate(invalid="ignore"):
        return np.asarray(intersection / ((ends - starts) + np.subtract(end, start) - intersection))


def temporal_iou(
    start: ArrayLike, end: ArrayLike, starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Intersection over union of one segment, or as many, with each of several; 0 where the union is empty."""
    intersection = np.maximum(0.0, np.minimum(end, ends) - np.maximum(start, starts))
    union = (ends - starts) + np.subtract(end, start) - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0))


def interpolated_ap(correct: NDArray[np.bool_], n_truth: int) -> float:
    """Area under the precision-recall curve, precision being the best at this recall or more."""
    hits = np.cumsum(correct).astype(float)
    precision = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    recall = np.concatenate([[0.0], hits / n_truth, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    rises = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[rises] - recall[rises - 1]) * precision[rises]))
