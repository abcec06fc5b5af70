"""Candidate segments and their outer-inner contrast, against answers worked out by hand or by fine grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahlm.localization.proposals import (
    Proposals,
    change_point_proposals,
    distinct,
    neighbour_contrast,
    outer_inner_contrast,
    runs,
    segment_proposals,
    threshold_proposals,
)

NO_LEVELS = np.empty(0)


def rows(proposals: Proposals) -> list[tuple[float, ...]]:
    return sorted(zip(*(column.tolist() for column in proposals), strict=True))


def runs_naive(mask: list[bool]) -> list[tuple[int, int]]:
    found, start = [], None
    for i, value in enumerate([*mask, False]):
        if value and start is None:
            start = i
        if not value and start is not None:
            found.append((start, i))
            start = None
    return found


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_runs(mask: list[list[bool]]) -> None:
    row, start, end = runs(np.array(mask))
    expected = [(k, *pair) for k, line in enumerate(mask) for pair in runs_naive(line)]
    assert list(zip(row.tolist(), start.tolist(), end.tolist(), strict=True)) == expected


def test_change_point_proposals_by_hand() -> None:
    # segments 0-2, 2-5, 5-6, 6-8 with means .2 .6 .9 .1 in class 0 and .9 .0 .0 .9 in class 1
    cas = np.array([[0.1, 0.9], [0.3, 0.9], [0.9, 0], [0.6, 0], [0.3, 0], [0.9, 0], [0.1, 1.0], [0.1, 0.8]])
    found = change_point_proposals(
        cas, None, np.array([2, 5, 6]), np.array([[0.15, 0.5, 0.7], [0.15, 0.5, 0.95]]), NO_LEVELS
    )
    assert rows(found) == [
        (0, 0.0, 6.0),  # above .15
        (0, 2.0, 6.0),  # above .5
        (0, 5.0, 6.0),  # above .7
        (1, 0.0, 2.0),  # above .15
        (1, 0.0, 2.0),  # above .5; `distinct` drops it
        (1, 6.0, 8.0),
        (1, 6.0, 8.0),
    ]


def test_attention_selects_segments_for_every_class() -> None:
    attention = np.array([0.2, 0.2, 0.8, 0.8, 0.1])
    found = change_point_proposals(np.zeros((5, 2)), attention, np.array([2, 4]), np.ones((2, 1)), np.array([0.5]))
    assert rows(found) == [(0, 2.0, 4.0), (1, 2.0, 4.0)]


def test_a_constant_cas_equal_to_its_threshold_is_not_above_it() -> None:
    cas = np.full((97, 1), 0.1)
    found = change_point_proposals(cas, None, np.array([13, 57, 60]), np.full((1, 1), np.nextafter(0.1, 1)), NO_LEVELS)
    assert rows(found) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_boundaries_are_change_points_or_the_ends_of_the_video(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.flatnonzero(rng.random(n) < 0.3)
    points = points[points > 0]
    levels = np.broadcast_to(np.linspace(0.1, 0.9, 5), (3, 5))
    found = change_point_proposals(rng.random((n, 3)), rng.random(n), points, levels, np.array([0.3, 0.6]))
    assert set(found.start) | set(found.end) <= {0, n, *points}
    assert (found.end > found.start).all()


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("upsample", [1, 3, 8])
def test_threshold_proposals_against_interp(n: int, upsample: int) -> None:
    rng = np.random.default_rng(n)
    cas, attention = rng.random((n, 2)), rng.random(n)
    levels, attention_levels = np.array([[0.3, 0.6], [0.2, 0.5]]), np.array([0.4])
    found = threshold_proposals(cas, attention, upsample, levels, attention_levels)
    at = (np.arange(n * upsample) + 0.5) / upsample - 0.5
    expected = []
    for c in range(2):
        series = [(np.interp(at, np.arange(n), cas[:, c]), level) for level in levels[c]]
        series.append((np.interp(at, np.arange(n), attention), 0.4))
        for values, level in series:
            expected += [(c, a / upsample, b / upsample) for a, b in runs_naive((values > level).tolist())]
    assert rows(found) == sorted(expected)


def test_a_box_is_found_where_it_crosses_the_threshold() -> None:
    # between the centres of snippets 1 and 2 the CAS rises from 0 to 1, so it crosses .5 at their common edge
    found = threshold_proposals(np.array([[0.0], [0], [1], [1], [0]]), None, 8, np.array([[0.5]]), NO_LEVELS)
    assert rows(found) == [(0, 2.0, 4.0)]


def test_distinct_drops_exact_duplicates_only() -> None:
    some = Proposals(np.array([1, 0, 0, 0, 0]), np.array([0.0, 1, 1, 1, 1]), np.array([2.0, 3, 3, 3, 3.125]))
    assert rows(distinct(some)) == [(0, 1.0, 3.0), (0, 1.0, 3.125), (1, 0.0, 2.0)]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.25, 0.5, 2.0]))
def test_contrast_against_a_fine_grid(n: int, seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    fine = 40  # points a snippet; all positions are whole points, so that the sums are the integrals
    cas = rng.normal(size=(n, 2))
    start, end = (np.sort(rng.choice(n * fine // 4 + 1, 2, replace=False)) * 4).tolist()
    proposals = Proposals(np.array([1]), np.array([start / fine]), np.array([end / fine]))
    dense = np.repeat(cas[:, 1], fine * 20)  # 20 finer still, for the margins
    a, b, width = start * 20, end * 20, round((end - start) * 20 * margin)
    outer = np.concatenate([dense[max(a - width, 0) : a], dense[b : b + width]])
    expected = dense[a:b].mean() - (outer.mean() if len(outer) else 0.0)
    np.testing.assert_allclose(outer_inner_contrast(cas, proposals, margin), [expected], rtol=0, atol=1e-9)


def test_contrast_by_hand() -> None:
    cas = np.array([[0.0], [0.2], [1.0], [1.0], [0.4], [0.0]])
    inside = Proposals(np.array([0]), np.array([2.0]), np.array([4.0]))
    assert outer_inner_contrast(cas, inside, 0.5) == pytest.approx([1 - 0.3])
    whole = Proposals(np.array([0]), np.array([0.0]), np.array([6.0]))
    assert outer_inner_contrast(cas, whole, 0.5) == pytest.approx([2.6 / 6])  # nothing is left outside
    assert outer_inner_contrast(cas, inside, 0.0) == pytest.approx([1.0])
    at_start = Proposals(np.array([0]), np.array([0.0]), np.array([2.0]))
    assert outer_inner_contrast(cas, at_start, 0.5) == pytest.approx([0.1 - 1.0])  # the right margin alone


def test_segment_proposals_are_all_short_runs() -> None:
    found = rows(segment_proposals(2, np.array([2, 5]), 9, max_segments=2))
    expected = [(0, 2), (2, 5), (5, 9), (0, 5), (2, 9)]
    assert found == sorted((c, *map(float, run)) for c in range(2) for run in expected)
    assert rows(segment_proposals(1, np.array([], np.int64), 4, max_segments=3)) == [(0, 0, 4)]


def test_neighbour_contrast_without_neighbours_is_the_mean() -> None:
    cas = np.array([[0.2], [0.4]])
    whole = segment_proposals(1, np.array([], np.int64), 2, max_segments=1)
    np.testing.assert_allclose(neighbour_contrast(cas, whole, np.array([], np.int64)), 0.3)
