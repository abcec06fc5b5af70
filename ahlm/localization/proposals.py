"""Candidate segments and their scores, for all classes and thresholds at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Proposals(NamedTuple):
    """Candidate segments: class (an index into the classes given), start and end in snippets, fractional."""

    class_index: Ints
    start: Floats
    end: Floats


def runs(mask: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Maximal runs of True in the rows of a mask [K, P]: row, first column, column after the last."""
    n_rows, n_columns = mask.shape
    padded = np.zeros((n_rows, n_columns + 2), bool)
    padded[:, 1:-1] = mask
    # every row begins and ends False, so starts and ends take turns
    rows, columns = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), n_columns + 1)
    return rows[::2], columns[::2], columns[1::2]


def change_point_proposals(
    cas: Floats, attention: Floats | None, change_points: Ints, levels: Floats, attention_levels: Floats
) -> Proposals:
    """Runs of segments between neighbouring change-points whose mean CAS, or mean attention, passes a level.

    Args:
        cas: CAS of the classes to localise [n, K].
        attention: foreground attention [n] or none.
        change_points: sorted edges in 1 .. n-1; the video's first and last edge are added.
        levels: thresholds of each class [K, L].
        attention_levels: thresholds of the attention [M].
    """
    n = len(cas)
    edges = np.concatenate([[0], change_points, [n]]).astype(np.int64)
    widths = np.diff(edges)
    # sums segment by segment: differences of a running sum would round a constant CAS across its threshold
    found = _above((np.add.reduceat(cas, edges[:-1], axis=0) / widths[:, None]).T, levels)
    if attention is not None and len(attention_levels):
        mean_attention = np.add.reduceat(attention, edges[:-1]) / widths
        found = _join(found, _above_attention(mean_attention, attention_levels, cas.shape[1]))
    start, end = (edges[index.astype(np.int64)].astype(float) for index in (found.start, found.end))
    return Proposals(found.class_index, start, end)


def segment_proposals(n_classes: int, change_points: Ints, n: int, max_segments: int) -> Proposals:
    """Every run of 1 .. `max_segments` segments between neighbouring change-points of a video [0, n], every class."""
    edges = np.concatenate([[0], change_points, [n]]).astype(float)
    sizes = range(1, min(max_segments, len(edges) - 1) + 1)
    start, end = (np.concatenate(part) for part in zip(*((edges[:-k], edges[k:]) for k in sizes), strict=True))
    classes = np.repeat(np.arange(n_classes), len(start))
    return Proposals(classes, np.tile(start, n_classes), np.tile(end, n_classes))


def threshold_proposals(
    cas: Floats, attention: Floats | None, upsample: int, levels: Floats, attention_levels: Floats
) -> Proposals:
    """ACM-Net's proposals: runs of linearly upsampled snippets whose CAS, or attention, passes a level.

    Args:
        cas: CAS of the classes to localise [n, K].
        attention: foreground attention [n] or none.
        upsample: points a snippet; point j stands for [j, j + 1) / upsample snippets.
        levels: thresholds of each class [K, L].
        attention_levels: thresholds of the attention [M].
    """
    n = len(cas)
    points = (np.arange(n * upsample) + 0.5) / upsample - 0.5
    left = np.clip(np.floor(points).astype(np.int64), 0, max(n - 2, 0))
    right = np.minimum(left + 1, n - 1)
    share = np.clip(points - left, 0, 1)  # flat before the first and after the last snippet's centre

    def upsampled(values: Floats) -> Floats:
        weight = share[:, None] if values.ndim == 2 else share
        return values[left] * (1 - weight) + values[right] * weight

    found = _above(upsampled(cas).T, levels)
    if attention is not None and len(attention_levels):
        found = _join(found, _above_attention(upsampled(attention), attention_levels, cas.shape[1]))
    return Proposals(found.class_index, found.start / upsample, found.end / upsample)


def _above(values: Floats, levels: Floats) -> Proposals:
    """Runs of values [K, P] above each of their row's levels [K, L]."""
    n_rows, n_levels = levels.shape
    mask = (values[:, None, :] > levels[:, :, None]).reshape(n_rows * n_levels, values.shape[1])
    rows, starts, ends = runs(mask)
    return Proposals(rows // n_levels, starts.astype(float), ends.astype(float))


def _above_attention(values: Floats, levels: Floats, n_classes: int) -> Proposals:
    """Runs of the attention [P] above each level, for every class."""
    _, starts, ends = runs(values[None, :] > levels[:, None])
    return Proposals(
        np.repeat(np.arange(n_classes), len(starts)),
        np.tile(starts.astype(float), n_classes),
        np.tile(ends.astype(float), n_classes),
    )


def _join(first: Proposals, second: Proposals) -> Proposals:
    return Proposals(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def distinct(proposals: Proposals) -> Proposals:
    """Each proposal once, ordered by class, start and end."""
    class_index, start, end = proposals
    order = np.lexsort((end, start, class_index))
    class_index, start, end = class_index[order], start[order], end[order]
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(class_index) != 0) | (np.diff(start) != 0) | (np.diff(end) != 0)
    return Proposals(class_index[new].astype(np.int64), start[new], end[new])


def outer_inner_contrast(cas: Floats, proposals: Proposals, margin: float) -> Floats:
    """Mean CAS inside a segment minus its mean in margins of `margin` x length on either side.

    Exact integrals of the CAS, taken as constant over each snippet. Margins end with the video; a segment that
    leaves no room outside has an outer mean of 0.
    """
    n, length = len(cas), proposals.end - proposals.start
    first, last = np.maximum(proposals.start - margin * length, 0), np.minimum(proposals.end + margin * length, n)
    return _contrast(cas, proposals, first, last)


def neighbour_contrast(cas: Floats, proposals: Proposals, change_points: Ints) -> Floats:
    """As `outer_inner_contrast`, with the whole segments on either side of a run of segments in place of margins."""
    edges = np.concatenate([[0], change_points, [len(cas)]]).astype(float)
    before = np.maximum(np.searchsorted(edges, proposals.start) - 1, 0)
    after = np.minimum(np.searchsorted(edges, proposals.end) + 1, len(edges) - 1)
    return _contrast(cas, proposals, edges[before], edges[after])


def _contrast(cas: Floats, proposals: Proposals, outer_start: Floats, outer_end: Floats) -> Floats:
    """Mean CAS inside less that of the rest of [outer_start, outer_end]; 0 stands for a rest that is empty."""
    cumulative = np.concatenate([np.zeros((1, cas.shape[1])), np.cumsum(cas, axis=0)])
    padded = np.concatenate([cas, np.zeros((1, cas.shape[1]))])

    def integral(position: Floats) -> Floats:
        whole = np.floor(position).astype(np.int64)
        c = proposals.class_index
        return np.asarray(cumulative[whole, c] + (position - whole) * padded[whole, c])

    start, end = proposals.start, proposals.end
    length = end - start
    inside = integral(end) - integral(start)
    outside = integral(outer_end) - integral(outer_start) - inside
    outer_length = (outer_end - outer_start) - length
    has_outside = outer_length > 1e-9
    return np.asarray(inside / length - np.where(has_outside, outside / np.where(has_outside, outer_length, 1.0), 0.0))
