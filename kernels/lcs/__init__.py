"""Longest common subsequence of two snippet sequences under a similarity threshold (section 3.3, end)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference import lcs_length_reference

__all__ = ["lcs_length", "lcs_length_reference"]


def lcs_length(similarity: NDArray[Any], threshold: float) -> int:
    """Length of the longest common subsequence; snippets match where their similarity exceeds `threshold`.

    The first call compiles for about a second; the result is cached on disk.

    Args:
        similarity: [n, m], of every snippet of one sequence with every snippet of the other; NaN never matches.
        threshold: of a match, exclusive.

    Raises:
        ValueError: `similarity` is not a matrix of real numbers.
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.dtype.kind not in "fiub":
        raise ValueError(f"similarity must be a real matrix [n, m], got {similarity.dtype} {list(similarity.shape)}")
    if 0 in similarity.shape:
        return 0
    # bits run along the longer side, the loop over the shorter one: the length is the same both ways
    if similarity.shape[0] > similarity.shape[1]:
        similarity = similarity.T
    from .fused_numba import bit_parallel_lcs

    return int(bit_parallel_lcs(np.ascontiguousarray(similarity, np.float32), np.float32(threshold)))
