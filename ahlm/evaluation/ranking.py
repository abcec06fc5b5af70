"""Average recall of proposals and video-level classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahlm.evaluation.average_precision import Instances, interpolated_ap, temporal_iou


def average_recall(
    truth: Instances, proposals: Instances, tious: Sequence[float], n_proposals: Sequence[int]
) -> NDArray[np.float64]:
    """AR@AN: share of instances that one of a video's best proposals overlaps enough, whatever the class.

    A proposal may serve several instances, as in ActivityNet's proposal task; the number of proposals is the same
    limit for every video, not an average over videos.

    Args:
        truth: ground truth, at least one instance.
        proposals: scored; equal scores in input order.
        tious: thresholds [K], over which recall is averaged.
        n_proposals: numbers of best proposals of a video that count [N].

    Returns:
        [N] float64.

    Raises:
        ValueError: no ground truth, no threshold, a threshold outside (0, 1], or a number below 1.
    """
    if not truth.size:
        raise ValueError("truth must have instances, got none")
    if not len(tious) or not all(0 < tiou <= 1 for tiou in tious):
        raise ValueError(f"tious must be in (0, 1], got {list(tious)}")
    if not all(n >= 1 for n in n_proposals):
        raise ValueError(f"n_proposals must be positive, got {list(n_proposals)}")
    order = np.lexsort((-proposals.score, proposals.video))
    ranked = proposals.where(order)
    recalled = np.zeros(len(n_proposals))
    for video in np.unique(truth.video):
        instances = truth.where(truth.video == video)
        first, last = np.searchsorted(ranked.video, [video, video + 1])
        if first == last:
            continue
        overlaps = temporal_iou(
            ranked.start[first:last, None], ranked.end[first:last, None], instances.start[None], instances.end[None]
        )
        best = np.maximum.accumulate(overlaps, axis=0)
        for i, n in enumerate(n_proposals):
            recalled[i] += sum(float((best[min(n, last - first) - 1] >= tiou).sum()) for tiou in tious)
    return recalled / (len(tious) * truth.size)


class Classification(NamedTuple):
    """Scores of whole videos.

    Attributes:
        mAP: interpolated, mean over the classes that some video has.
        top: share of videos with one of their classes among the k best, for each k.
    """

    mAP: float
    top: dict[int, float]


def classification(scores: NDArray[Any], labels: NDArray[np.bool_], top: Sequence[int] = (1, 3)) -> Classification:
    """Video-level mAP and top-k; equal scores in input order.

    Args:
        scores: [V, C], finite.
        labels: [V, C] bool, classes of each video; videos without any are left out of `top`.
        top: values of k.

    Raises:
        ValueError: shapes that differ, scores that are not finite, or no labels at all.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores and labels must both be [V, C], got {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not labels.any():
        raise ValueError("labels must name a class of some video, got none")
    by_video = np.argsort(-scores, axis=0, kind="stable")
    aps = [interpolated_ap(labels[by_video[:, c], c], int(labels[:, c].sum())) for c in np.flatnonzero(labels.any(0))]
    labelled = labels.any(axis=1)
    best = np.argsort(-scores[labelled], axis=1, kind="stable")
    hit = np.take_along_axis(labels[labelled], best, axis=1)
    return Classification(float(np.mean(aps)), {k: float(hit[:, :k].any(axis=1).mean()) for k in top})
