"""Resampling of videos: how far a figure, or the gain of one row over another, may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahlm.evaluation.average_precision import average_precision
from ahlm.evaluation.boundaries import matches
from ahlm.evaluation.predictions import predicted_instances, truth_instances
from ahlm.evaluation.protocols import Protocol

Floats = NDArray[np.float64]
CHUNK = 4_000_000  # numbers of a temporary array


class Interval(NamedTuple):
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def video_counts(n_videos: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """How often each video was drawn in each resample [R + 1, V]; the first line is every video once."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_videos, np.full(n_videos, 1 / n_videos), size=resamples)
    return np.concatenate([np.ones((1, n_videos), np.int64), drawn.astype(np.int64)])


def resampled_map(
    database: dict[str, Any], results: dict[str, Any], counts: NDArray[np.int64], protocol: Protocol
) -> Floats:
    """MAP averaged over the protocol's widest range of thresholds, for each line of `counts` [R + 1].

    A video that was drawn twice counts as two videos of the same content. Matching looks at one video at a time, so it
    is done once; precision and recall are then weighted by the counts, which is the AP of the repeated videos exactly,
    where copies of a detection stand next to each other. Classes without an instance in a resample are left out of it;
    a resample without any instance is NaN.

    Args:
        database: ground truth, every video of the split in the order of `counts`.
        results: detections of ActivityNet's format.
        counts: of `video_counts`.
        protocol: in seconds.

    Raises:
        ValueError: a protocol that rounds to snippets or leaves videos out, which is not done here.
    """
    if protocol.snippet is not None or protocol.left_out:
        raise ValueError(f"the bootstrap takes all videos, in seconds; got protocol {protocol.name}")
    videos, classes, truth = truth_instances("ground truth", database)
    found, _ = predicted_instances("predictions", results, videos, classes)
    low, high = protocol.averages[-1]
    tious = np.array([tiou for tiou in protocol.tious if low <= tiou <= high])
    taken_by = average_precision(truth, found, len(videos), len(classes), tious).taken_by
    correct = np.zeros((len(tious), found.size), bool)
    for right, taken in zip(correct, taken_by, strict=True):
        right[taken[taken >= 0]] = True
    order = np.argsort(-found.score, kind="stable")
    found, correct = found.where(order), correct[:, order]
    ap = np.full((len(classes), len(tious), len(counts)), np.nan)
    for c in range(len(classes)):
        members = np.flatnonzero(found.class_index == c)
        instances = np.bincount(truth.video[truth.class_index == c], minlength=len(videos))
        chunk = max(1, CHUNK // max(1, len(members)))
        for start in range(0, len(counts), chunk):
            rows = slice(start, start + chunk)
            ap[c, :, rows] = _weighted_ap(
                counts[rows], found.video[members], correct[:, members], counts[rows] @ instances
            )
    with np.errstate(invalid="ignore"):
        present = ~np.isnan(ap[:, 0])
        return np.asarray(np.where(present, ap.mean(1), 0).sum(0) / present.sum(0))


def _weighted_ap(
    counts: NDArray[np.int64], video: NDArray[np.int64], correct: NDArray[np.bool_], n_truth: NDArray[np.int64]
) -> Floats:
    """Interpolated AP of one class [K, R]: predictions by falling score, each weighted by its video's count.

    Args:
        counts: [R, V].
        video: of each prediction [P].
        correct: at each threshold [K, P].
        n_truth: instances in each resample [R].
    """
    weight = counts[:, video].astype(np.float64)
    seen = weight.cumsum(1)
    ap = np.full((len(correct), len(counts)), np.nan)
    for k, right in enumerate(correct):
        hits = weight * right
        precision = np.divide(hits.cumsum(1), seen, out=np.zeros_like(seen), where=seen > 0)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        ap[k] = np.divide((hits * best).sum(1), n_truth, out=np.full(len(counts), np.nan), where=n_truth > 0)
    return ap


def resampled_f1(
    detected: Sequence[ArrayLike], truth: Sequence[ArrayLike], counts: NDArray[np.int64], tolerance: float = 1.0
) -> Floats:
    """F1 of change-points for each line of `counts` [R + 1]; positions in snippets, see `change_point_scores`."""
    found = np.array([matches(p, b, tolerance) for p, b in zip(detected, truth, strict=True)])
    both = np.array([np.size(p) + np.size(b) for p, b in zip(detected, truth, strict=True)])
    return np.asarray(2 * (counts @ found) / np.maximum(1, counts @ both))


def interval(samples: Floats) -> Interval:
    """The value of the whole split, `samples[0]`, and the middle 95 % of the resamples [R + 1] that have one."""
    low, high = np.nanquantile(samples[1:], (0.025, 0.975))
    return Interval(float(samples[0]), float(low), float(high))
