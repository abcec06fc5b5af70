from __future__ import annotations

import itertools

import numpy as np
import pytest

from ahlm.localization.directions import REACH, Direction, join_directions


def joined(
    forward: list[int], backward: list[int], n: int, lead: float = 0.0, unsure: tuple[list[int], list[int]] = ([], [])
) -> list[tuple[int, float]]:
    edges, positions = join_directions(
        *(
            Direction(np.array(found, np.int64), ~np.isin(found, doubtful))
            for found, doubtful in zip((forward, backward), unsure, strict=True)
        ),
        n,
        lead,
    )
    return list(zip(edges.tolist(), positions.tolist(), strict=True))


def test_by_hand() -> None:
    # edges 18, 12, 5 of the video read backwards are 2, 8, 15 of it
    assert joined([4, 8, 11], [5, 12, 18], 20) == [(3, 3.0), (8, 8.0), (11, 11.0), (15, 15.0)]
    # early by half a snippet in either direction: 7.5 and 8.5 are the same boundary
    assert joined([7], [11], 20, lead=0.5) == [(8, 8.0)]
    assert joined([7], [], 20, lead=0.5) == [(8, 7.5)]
    assert joined([], [12], 20, lead=0.5) == [(8, 7.5)]
    # the nearer of two takes it
    assert joined([5, 7], [13], 20) == [(5, 5.0), (7, 7.0)]
    assert joined([5, 8], [13], 20) == [(5, 5.0), (8, 7.5)]
    assert joined([], [], 20) == []


def test_an_unsure_one_needs_the_other_direction() -> None:
    # the video read backwards has edges 17 and 12, which are 3 and 8
    assert joined([4, 14], [12, 17], 20, unsure=([4, 14], [17])) == [(4, 3.5), (8, 8.0)]
    assert joined([4, 14], [12, 17], 20, unsure=([4], [12, 17])) == [(4, 3.5), (14, 14.0)]


def test_ends_of_the_video() -> None:
    assert joined([], [], 1) == []
    assert joined([1], [1], 2) == [(1, 1.0)]
    assert joined([9], [9], 10, lead=1.5) == [(1, -0.5), (9, 10.5)]


def slow(forward: list[float], backward: list[float], sure: set[float]) -> list[float]:
    """Nearest pairs first, the plain way."""
    found = []
    while True:
        pairs = [(abs(a - b), a, b) for a, b in itertools.product(forward, backward) if abs(a - b) <= REACH]
        if not pairs:
            return sorted(found + [x for x in forward + backward if x in sure])
        _, a, b = min(pairs)
        forward, backward = [x for x in forward if x != a], [x for x in backward if x != b]
        found.append((a + b) / 2)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lead", [0.0, 0.5])
def test_random_lists(seed: int, lead: float) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 80))
    forward, backward = (np.flatnonzero(rng.random(n - 1) < 0.2) + 1 for _ in range(2))
    sure = [rng.random(len(found)) < 0.7 for found in (forward, backward)]
    edges, positions = join_directions(Direction(forward, sure[0]), Direction(backward, sure[1]), n, lead)
    assert (np.diff(edges) > 0).all()
    assert (np.diff(positions) >= 0).all()
    assert edges.dtype == np.int64
    assert ((edges >= 1) & (edges <= n - 1)).all()
    assert np.abs(edges - positions).max(initial=0) <= 0.5 + lead
    ahead, behind = forward + lead, n - backward - lead
    alone = {*ahead[sure[0]].tolist(), *behind[sure[1]].tolist()}
    expected = slow(ahead.tolist(), behind.tolist(), alone)
    # of several that round to one edge the first stays
    assert set(positions.tolist()) <= set(expected)
    assert set(np.clip(np.floor(np.array(expected) + 0.5), 1, n - 1)) == set(edges)
