"""Average recall of proposals and video-level classification, counted in C++ or NumPy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahlm.evaluation.average_precision import (
    Instances,
    check_finite,
    interpolated_ap,
    temporal_iou,
)
from ahlm.kernels.core import choose_backend, core


def average_recall(
    truth: Instances,
    proposals: Instances,
    n_videos: int,
    tious: Sequence[float],
    average_numbers: Sequence[float],
    *,
    backend: str = "auto",
) -> NDArray[np.float64]:
    """AR@AN of ActivityNet's proposal task: share of instances that some proposal overlaps enough, whatever the class.

    Every video keeps the same share of its proposals, the best-scored ones, so that the videos with ground truth have
    AN of them on average (fewer where there are not so many); parts of a proposal are cut off. A proposal may serve
    several instances.

    Args:
        truth: ground truth, at least one instance.
        proposals: scored; equal scores in input order. Those in videos without ground truth count for nothing.
        n_videos: number of videos.
        tious: thresholds [K], over which recall is averaged.
        average_numbers: values of AN [N].
        backend: `auto`, `c++` or `numpy`.

    Returns:
        [N] float64.

    Raises:
        ValueError: no ground truth, no threshold, a threshold outside (0, 1], an AN that is not above 0, values that
            are not finite.
    """
    if not truth.size:
        raise ValueError("truth must have instances, got none")
    if not len(tious) or not all(0 < tiou <= 1 for tiou in tious):
        raise ValueError(f"tious must be in (0, 1], got {list(tious)}")
    if not all(number > 0 for number in average_numbers):
        raise ValueError(f"average_numbers must be above 0, got {list(average_numbers)}")
    check_finite(truth, proposals)
    levels = np.array(tious, np.float64)
    if choose_backend(backend) == "c++":
        ranks = core.first_ranks(
            truth.video, truth.start, truth.end, proposals.video, proposals.score, proposals.start, proposals.end,
            n_videos, levels, os.cpu_count() or 1,
        )  # fmt: skip
    else:
        ranks = first_ranks_numpy(truth, proposals, levels)
    videos = np.unique(truth.video)
    counts = np.bincount(proposals.video, minlength=n_videos)
    recall = []
    for number in average_numbers:
        # the division last: a share that comes to whole proposals must not lose one to rounding
        share = counts * (number * len(videos)) / max(1, counts[videos].sum())
        limit = np.minimum(share.astype(np.int64), counts)
        recall.append(((ranks >= 0) & (ranks < limit[truth.video])).mean())
    return np.array(recall)


def first_ranks_numpy(truth: Instances, proposals: Instances, tious: NDArray[np.float64]) -> NDArray[np.int64]:
    """The specification: rank in its video of the first proposal that reaches each instance [K, G], -1 for none."""
    ranks = np.full((len(tious), truth.size), -1, np.int64)
    for g in range(truth.size):
        near = np.flatnonzero(proposals.video == truth.video[g])
        near = near[np.argsort(-proposals.score[near], kind="stable")]
        overlaps = temporal_iou(truth.start[g], truth.end[g], proposals.start[near], proposals.end[near])
        for k, tiou in enumerate(tious):
            if (overlaps >= tiou).any():
                ranks[k, g] = np.argmax(overlaps >= tiou)
    return ranks


class Classification(NamedTuple):
    """Scores of whole videos.

    Attributes:
        mAP: interpolated, mean over the classes that some video has.
        top: share of videos with one of their classes among the k best, for each k.
    """

    mAP: float
    top: dict[int, float]


def classification(
    scores: NDArray[Any], labels: NDArray[np.bool_], top: Sequence[int] = (1, 3), *, backend: str = "auto"
) -> Classification:
    """Video-level mAP and top-k; equal scores in input order.

    Args:
        scores: [V, C], finite.
        labels: [V, C] bool, classes of each video; videos without any are left out of `top`.
        top: values of k.
        backend: `auto`, `c++` or `numpy`.

    Raises:
        ValueError: shapes that differ, scores that are not finite, or no labels at all.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores and labels must both be [V, C], got {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not labels.any():
        raise ValueError("labels must name a class of some video, got none")
    if choose_backend(backend) == "c++":
        ap, rank = core.classification(np.ascontiguousarray(scores, np.float64), np.ascontiguousarray(labels, bool))
    else:
        ap, rank = classification_numpy(scores, labels)
    return Classification(float(np.nanmean(ap)), {k: float((rank[rank >= 0] < k).mean()) for k in top})


def classification_numpy(
    scores: NDArray[Any], labels: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The specification: AP of each class [C], rank of the best of each video's own classes [V], -1 without any."""
    by_video = np.argsort(-scores, axis=0, kind="stable")
    ap = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(labels.any(axis=0)):
        ap[c] = interpolated_ap(labels[by_video[:, c], c], int(labels[:, c].sum()))
    hit = np.take_along_axis(labels, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return ap, np.where(hit.any(axis=1), np.argmax(hit, axis=1), -1)
