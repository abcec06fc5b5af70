"""All that follows the network (section 3.3, end) for one video; also the plug-in of Table 4, for CAS of any model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahlm.config import LocalizationConfig, RefinementConfig, check_fields
from ahlm.localization.proposals import (
    Proposals,
    change_point_proposals,
    distinct,
    neighbour_contrast,
    outer_inner_contrast,
    segment_proposals,
    threshold_proposals,
)
from ahlm.localization.refinement import refine_change_points
from ahlm.localization.suppression import suppress


class Localization(NamedTuple):
    """Detections of one video, best first, and what became of its change-points.

    Attributes:
        class_index: class of each detection [D].
        score: [D].
        start_s: [D] seconds.
        end_s: [D] seconds.
        change_points: edges that the LCS step left [P], as given where that step is off or no proposal needs them.
        foreground_change_points: those of them that bound a run of foreground segments, before suppression: the
            boundaries that the attention selects [<= P]; none with `proposals="thresholds"`.
    """

    class_index: NDArray[np.int64]
    score: NDArray[np.float64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    change_points: NDArray[np.int64]
    foreground_change_points: NDArray[np.int64]


def localize(
    cas: ArrayLike,
    video_scores: ArrayLike,
    attention: ArrayLike | None,
    change_points: ArrayLike,
    edges_s: ArrayLike,
    duration_s: float,
    *,
    config: LocalizationConfig,
    refinement: RefinementConfig,
    similarity_features: ArrayLike | None = None,
    boundaries_s: ArrayLike | None = None,
    suppresses: bool = True,
) -> Localization:
    """Detections of one video of n snippets and C classes (section 3.3, end).

    Nothing here knows where its input comes from: with the CAS and scores of another weakly-supervised model, this is
    the plug-in of Table 4. Its change-points may come from any detector as well, or from `refine_change_points`.

    Args:
        cas: foreground class activation sequence [n, C], background left out; larger means more foreground. Any
            range; `cas_thresholds` must suit it, or be shares of the class's maximum (`relative_thresholds`; a class
            whose maximum is not positive then has no proposals).
        video_scores: video-level class scores [C]; the model's are softmax probabilities, and `class_threshold` is
            compared with them as they are.
        attention: foreground attention [n]; only needed for `attention_thresholds`.
        change_points: sorted edges in 1 .. n-1; edge e lies between snippets e - 1 and e.
        edges_s: seconds of the n + 1 edges, as `FeatureSpec.edges_s` gives them.
        duration_s: detections are clamped to [0, duration_s].
        config: classes, proposals, scores, suppression.
        refinement: the LCS step.
        similarity_features: what the LCS step compares [n, F]; may be none where that step is off.
        boundaries_s: seconds of the boundaries that the change-points mark [P], for a detector that is early or late or
            finer than a snippet; none: the seconds of their edges.
        suppresses: off: detections that overlap all stay, in no order.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, change-points unsorted or out of range,
            settings out of range, an input missing that the settings need.

    Example:
        >>> cas = np.array([[0.1], [0.9], [0.8], [0.0]])
        >>> settings = LocalizationConfig(cas_thresholds=(0.5,))
        >>> found = localize(cas, [1.0], None, [1, 3], np.arange(5) * 0.64, 2.56, config=settings,
        ...                  refinement=RefinementConfig(enabled=False))
        >>> found.start_s.tolist(), found.end_s.tolist(), found.foreground_change_points.tolist()
        ([0.64], [1.92], [1, 3])
    """
    activation, scores, focus, points, edges = _checked(cas, video_scores, attention, change_points, edges_s)
    boundaries = edges[points] if boundaries_s is None else np.asarray(boundaries_s, np.float64)
    if boundaries.shape != points.shape or not np.isfinite(boundaries).all() or np.any(np.diff(boundaries) < 0):
        raise ValueError(f"boundaries_s must be [{len(points)}], finite, and never fall")
    bounds_s = edges.copy()
    bounds_s[points] = boundaries
    _check_settings(config, focus, duration_s)
    n = len(activation)
    uses_points = config.proposals != "thresholds"
    if uses_points and refinement.enabled:
        if similarity_features is None:
            raise ValueError("similarity_features must be [n, F] for the LCS step (or refinement.enabled false)")
        features = np.asarray(similarity_features)
        if features.ndim != 2 or len(features) != n:
            raise ValueError(f"similarity_features must be [{n}, F], got {list(features.shape)}")
        points = refine_change_points(features, points, refinement)

    margin = config.oic_margin
    chosen = np.flatnonzero(scores > config.class_threshold)
    if not len(chosen):
        chosen = np.array([scores.argmax()])
    sub = activation[:, chosen]
    levels = np.broadcast_to(np.asarray(config.cas_thresholds, float), (len(chosen), len(config.cas_thresholds)))
    if config.relative_thresholds:
        peak = sub.max(0)[:, None]
        levels = np.where(peak > 0, levels * peak, np.inf)
    focus_levels = np.asarray(config.attention_thresholds, float)
    found, selected = [], points[:0]

    def add(
        group: Proposals, contrast: NDArray[np.float64], weight: float, at_s: NDArray[np.float64], extend_s: float
    ) -> None:
        score = contrast + config.gamma * scores[chosen][group.class_index]
        at = np.arange(n + 1)
        start_s = np.interp(group.start, at, at_s) - np.where(group.start > 0, extend_s, 0.0)
        end_s = np.interp(group.end, at, at_s) + np.where(group.end < n, extend_s, 0.0)
        times = (np.clip(time_s, 0.0, duration_s) for time_s in (start_s, end_s))
        found.append((group.class_index, np.where(score > 0, weight * score, score), *times))

    if uses_points:
        group = distinct(change_point_proposals(sub, focus, points, levels, focus_levels))
        selected = points[np.isin(points, np.concatenate([group.start, group.end]))]
        if config.max_segments is not None:
            group = segment_proposals(len(chosen), points, n, config.max_segments)
        beside = config.contrast == "neighbours"
        contrast = neighbour_contrast(sub, group, points) if beside else outer_inner_contrast(sub, group, margin)
        add(group, contrast, 1.0, bounds_s, config.extend * (edges[-1] - edges[0]) / n)
    if config.proposals != "change_points":
        group = distinct(threshold_proposals(sub, focus, config.upsample, levels, focus_levels))
        weight = config.threshold_weight if uses_points else 1.0
        add(group, outer_inner_contrast(sub, group, margin), weight, edges, 0.0)
    class_index, score, start_s, end_s = (np.concatenate(column) for column in zip(*found, strict=True))
    visible = end_s > start_s  # a proposal may lie wholly after the stated end of the video
    class_index = chosen[class_index][visible].astype(np.int64)
    localization = Localization(class_index, score[visible], start_s[visible], end_s[visible], points, selected)
    return suppressed(localization, config) if suppresses else localization


def suppressed(found: Localization, config: LocalizationConfig) -> Localization:
    """Detections that stay where they overlap, best first."""
    kept, score = suppress(
        *found[:4],
        tiou=config.nms_tiou,
        sigma=config.soft_sigma if config.suppression == "soft" else None,
        min_score=config.min_score,
        extra_s=1.0 if config.nms_plus_one else 0.0,
    )
    return found._replace(
        class_index=found.class_index[kept], score=score, start_s=found.start_s[kept], end_s=found.end_s[kept]
    )


def _checked(
    cas: ArrayLike, video_scores: ArrayLike, attention: ArrayLike | None, change_points: ArrayLike, edges_s: ArrayLike
) -> tuple[
    NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.int64], NDArray[np.float64]
]:
    """The arguments of `localize` as arrays, or a ValueError that names what is wrong."""
    activation = np.asarray(cas, np.float64)
    if activation.ndim != 2 or 0 in activation.shape:
        raise ValueError(f"cas must be [n >= 1, C >= 1], got {list(activation.shape)}")
    n, n_classes = activation.shape
    scores, edges = np.asarray(video_scores, np.float64), np.asarray(edges_s, np.float64)
    focus = None if attention is None else np.asarray(attention, np.float64)
    expected = {"video_scores": (scores, n_classes), "edges_s": (edges, n + 1)}
    if focus is not None:
        expected["attention"] = (focus, n)
    for name, (array, size) in expected.items():
        if array.shape != (size,):
            raise ValueError(f"{name} must be [{size}], got {list(array.shape)}")
    for name, array in {"cas": activation, **{name: array for name, (array, _) in expected.items()}}.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if np.any(np.diff(edges) <= 0):
        raise ValueError("edges_s must increase")
    points = np.asarray(change_points)
    if points.size == 0:
        points = np.empty(0, np.int64)
    if points.ndim != 1 or points.dtype.kind not in "iu":
        raise ValueError(f"change_points must be integers [P], got {points.dtype} {list(points.shape)}")
    if np.any(np.diff(points) <= 0) or (len(points) and not (points[0] >= 1 and points[-1] <= n - 1)):
        raise ValueError(f"change_points must increase within 1 .. {n - 1}, got {points.tolist()[:8]}")
    return activation, scores, focus, points.astype(np.int64), edges


def _check_settings(config: LocalizationConfig, attention: NDArray[np.float64] | None, duration_s: float) -> None:
    check_fields(config, "localization.")
    if not (len(config.cas_thresholds) or len(config.attention_thresholds)):
        raise ValueError("cas_thresholds or attention_thresholds must hold a threshold")
    if len(config.attention_thresholds) and attention is None:
        raise ValueError("attention must be [n] where attention_thresholds are set, got None")
    if not 0 < duration_s < np.inf:
        raise ValueError(f"duration_s must be a positive number of seconds, got {duration_s}")
