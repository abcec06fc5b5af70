"""Localisation of a video in pieces, for one much longer than those of the training; not in the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.config import LocalizationConfig, RefinementConfig
from ahlm.localization.localize import Localization, localize, suppressed
from ahlm.localization.refinement import refine_change_points


def cut_in_pieces(n: int, size: int | None) -> NDArray[np.int64]:
    """First snippet of each piece of a video and the edge where it ends [P, 2]: the whole of it where n <= `size`.

    Pieces of `size` snippets, evenly spread, of which neighbours share half or more; together they are the video.
    """
    if size is None or n <= size:
        return np.array([[0, n]])
    steps = -((n - size) // -max(1, size // 2))
    first = np.arange(steps + 1) * (n - size) // steps
    return np.stack([first, first + size], axis=1)


def mean_of_pieces(pieces: NDArray[np.int64], values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Values of a whole video [n, K] from those of its pieces; where pieces overlap, their mean."""
    if len(values) == 1:
        return values[0]
    total = np.zeros((pieces[-1, 1], values[0].shape[1]), np.float32)
    count = np.zeros((len(total), 1), np.float32)
    for (first, end), own in zip(pieces, values, strict=True):
        total[first:end] += own
        count[first:end] += 1
    total /= count
    return total


def localize_pieces(
    pieces: NDArray[np.int64],
    cas: NDArray[np.float32],
    video_scores: NDArray[np.float32],
    attention: NDArray[np.float32],
    change_points: NDArray[np.int64],
    edges_s: NDArray[np.float64],
    duration_s: float,
    *,
    config: LocalizationConfig,
    refinement: RefinementConfig,
    similarity_features: NDArray[np.float32],
    boundaries_s: NDArray[np.float64],
) -> Localization:
    """Detections of a video whose pieces have scores of their own; of a single piece, what `localize` finds.

    Pieces overlap by half, so what a piece's edge cuts off lies wholly in another, unless it is longer than half a
    piece; only then is it kept (as is what `extend` takes to a piece's edge). Change-points are refined over the whole
    video, detections suppressed over all pieces.

    Args:
        pieces: first snippet of each, and the edge where it ends [P, 2]; see `cut_in_pieces`.
        cas: of the whole video, as in `localize`, and so are the others.
        video_scores: of each piece [P, C].
        attention: foreground attention [n].
        change_points: sorted edges in 1 .. n-1.
        edges_s: seconds of the n + 1 edges.
        duration_s: detections are clamped to [0, duration_s].
        config: classes, proposals, scores, suppression.
        refinement: the LCS step.
        similarity_features: what the LCS step compares [n, F].
        boundaries_s: seconds of the boundaries that the change-points mark.
    """
    points = change_points
    if config.proposals != "thresholds":
        points = refine_change_points(similarity_features, points, refinement)
    boundaries_s = boundaries_s[np.isin(change_points, points)]
    found: list[Localization] = []
    for (first, end), scores in zip(pieces.tolist(), video_scores, strict=True):
        is_last = end == len(cas) or edges_s[end] >= duration_s
        begin_s, end_s = edges_s[first], duration_s if is_last else edges_s[end]
        inside = (points > first) & (points < end)
        part = localize(
            cas[first:end],
            scores,
            attention[first:end],
            points[inside] - first,
            edges_s[first : end + 1],
            end_s,
            config=config,
            refinement=dataclasses.replace(refinement, enabled=False),
            boundaries_s=boundaries_s[inside],
            suppresses=False,
        )
        is_cut = ((first > 0) & (part.start_s <= begin_s)) | (not is_last) & (part.end_s >= end_s)
        kept = ~is_cut | (part.end_s - part.start_s >= (edges_s[end] - begin_s) / 2)
        times = (part.start_s[kept], part.end_s[kept])
        chosen = part.foreground_change_points + first
        found.append(Localization(part.class_index[kept], part.score[kept], *times, points, chosen))
        if is_last:  # of the features, or of the video as its duration has it
            break

    def joined(field: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, field) for part in found])

    columns = (joined("class_index"), joined("score"), joined("start_s"), joined("end_s"))
    return suppressed(Localization(*columns, points, np.unique(joined("foreground_change_points"))), config)
