"""The dynamic programme on machine words.

What differs from the reference: (1) neighbouring cells of a row differ by 0 or 1, so a row is kept as bits, where a
0 marks a step; one addition per word then does the work of 62 cells (the recurrence of Crochemore et al. 2001 and
Hyyro 2004, which holds for any match matrix); (2) match bits are made from the similarities on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

WORD = 62  # bits used of an int64: sums of two words plus a carry cannot overflow, with or without the JIT
FULL = (1 << WORD) - 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def bit_parallel_lcs(similarity: NDArray[np.float32], threshold: Any) -> int:
    """LCS length of a C-contiguous similarity matrix [n, m]."""
    n, m = similarity.shape
    n_words = (m + WORD - 1) // WORD
    row = np.full(n_words, FULL, np.int64)
    for i in range(n):
        carry = np.int64(0)
        for word in range(n_words):
            first = word * WORD
            matches = np.int64(0)
            for bit in range(min(WORD, m - first)):
                matches |= np.int64(similarity[i, first + bit] > threshold) << np.int64(bit)
            old = row[word]
            total = old + (old & matches) + carry
            carry = total >> WORD
            row[word] = (total & FULL) | (old & ~matches)
    steps = 0
    for column in range(m):
        steps += 1 - ((row[column // WORD] >> (column % WORD)) & 1)
    return steps
