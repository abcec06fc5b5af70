"""Change-points of a video read from its start and from its end, as one list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REACH = 2.0  # snippets within which two change-points, one of each direction, are one


class Direction(NamedTuple):
    """Change-points of one direction.

    Attributes:
        edges: sorted edges in 1 .. n-1, counted from where this direction begins [P].
        sure: whether each stands where the other direction does not confirm it [P].
    """

    edges: NDArray[np.int64]
    sure: NDArray[np.bool_]


def join_directions(
    forward: Direction, backward: Direction, n: int, lead: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges and boundaries of both directions, each pair within `REACH` as one, in the middle, and sure ones alone.

    A detector that reads on has its change-points a little early, or, where two lie close together, sees the first
    alone; read backwards it errs the other way. The nearest pairs are joined first.

    Args:
        forward: of the video.
        backward: of the video in reverse order, so that edge e is edge n - e of the video.
        n: snippets of the video.
        lead: snippets by which change-points come before their boundaries.

    Returns:
        Edges [P], strictly increasing in 1 .. n-1, and the positions of their boundaries [P] in snippets, not falling.
    """
    ahead, behind = forward.edges + lead, (n - backward.edges - lead)[::-1]
    first, last = np.searchsorted(behind, ahead - REACH), np.searchsorted(behind, ahead + REACH, side="right")
    i = np.repeat(np.arange(len(ahead)), last - first)
    j = np.arange(len(i)) - np.repeat(np.cumsum(last - first) - last, last - first)
    taken_i, taken_j = np.zeros(len(ahead), bool), np.zeros(len(behind), bool)
    joined = []
    for k in np.argsort(np.abs(ahead[i] - behind[j]), kind="stable"):
        if not (taken_i[i[k]] or taken_j[j[k]]):
            taken_i[i[k]] = taken_j[j[k]] = True
            joined.append((ahead[i[k]] + behind[j[k]]) / 2)
    alone = ahead[~taken_i & forward.sure], behind[~taken_j & backward.sure[::-1]]
    positions = np.sort(np.concatenate([joined, *alone]))
    edges, kept = np.unique(np.clip(np.floor(positions + 0.5), 1, max(1, n - 1)).astype(np.int64), return_index=True)
    return edges, positions[kept]
