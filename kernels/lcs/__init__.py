"""Longest common subsequence of two snippet sequences under a similarity threshold (section 3.3, end)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference import lcs_length_reference

__all__ = ["lcs_length", "lcs_length_of_blocks", "lcs_length_reference"]


def lcs_length(similarity: NDArray[Any], threshold: float) -> int:
    """Length of the longest common subsequence; snippets match where their similarity exceeds `threshold`.

    Time n m / 62 word operations plus one comparison a cell; beside the matrix, max(n, m) / 62 words of memory.
    The first call of a process loads Numba and the compiled loop (about 0.4 s); the first on a machine compiles it
    (about 0.3 s more) and caches it on disk.

    Args:
        similarity: [n, m], of every snippet of one sequence with every snippet of the other; NaN never matches.
        threshold: of a match, exclusive; rounded to the dtype of `similarity`.

    Raises:
        ValueError: `similarity` is not a matrix of real numbers.

    Example:
        >>> lcs_length(np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.8]]), 0.65)
        2
    """
    similarity = np.asarray(similarity)
    # bits run along the longer side, the loop over the shorter one: the length is the same both ways
    if similarity.ndim == 2 and similarity.shape[0] > similarity.shape[1]:
        similarity = similarity.T
    return lcs_length_of_blocks([similarity], threshold)


def lcs_length_of_blocks(blocks: Iterable[NDArray[Any]], threshold: float) -> int:
    """`lcs_length` of the blocks' rows, [n_1 + n_2 + ..., m], without ever holding more than one block.

    Faster with m the longer side.

    Args:
        blocks: similarities [n_i, m], in order; none: length 0.
        threshold: as in `lcs_length`.

    Raises:
        ValueError: a block is not a matrix of real numbers, or differs in m.
    """
    from .fused_numba import advance, first_row, steps

    row = None
    m = 0
    for block in blocks:
        if block.ndim != 2 or block.dtype.kind not in "fiub":
            raise ValueError(f"similarity must be a real matrix [n, m], got {block.dtype} {list(block.shape)}")
        if row is None:
            m = block.shape[1]
            row = first_row(m)
        if block.shape[1] != m:
            raise ValueError(f"similarity must have {m} columns as the first block, got {block.shape[1]}")
        # two compiled variants serve every dtype without changing a value that a threshold could tell apart
        dtype = np.float32 if block.dtype in (np.float32, np.float16, np.bool_) else np.float64
        advance(row, np.ascontiguousarray(block, dtype), dtype(threshold))
    return 0 if row is None else int(steps(row))
