"""The dynamic programme on machine words.

What differs from the reference: (1) neighbouring cells of a row differ by 0 or 1, so a row is kept as bits, where a
0 marks a step; one addition per word then does the work of 62 cells (the recurrence of Crochemore et al. 2001 and
Hyyro 2004, which holds for any match matrix); (2) match bits are made from the similarities on the way; (3) only the
current row is kept, so the rows may come in blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

WORD = 62  # bits used of an int64: sums of two words plus a carry cannot overflow, with or without the JIT
FULL = (1 << WORD) - 1


def first_row(m: int) -> NDArray[np.int64]:
    """Bits of the row above the first one, for m columns: no steps."""
    return np.full((m + WORD - 1) // WORD, FULL, np.int64)


@njit(cache=True)
def advance(row: NDArray[np.int64], similarity: NDArray[Any], threshold: Any) -> None:
    """Carry the bits of a row, in place, through the rows of a C-contiguous similarity matrix [n, m]."""
    n, m = similarity.shape
    for i in range(n):
        carry = np.int64(0)
        for word in range(len(row)):
            first = word * WORD
            matches = np.int64(0)
            for bit in range(min(WORD, m - first)):
                matches |= np.int64(similarity[i, first + bit] > threshold) << np.int64(bit)
            old = row[word]
            total = old + (old & matches) + carry
            carry = total >> WORD
            row[word] = (total & FULL) | (old & ~matches)


@njit(cache=True)
def steps(row: NDArray[np.int64]) -> int:
    """Steps of a row, which are the length of the subsequence; unused bits of the last word are 1."""
    total = 0
    for word in row:
        zeros = FULL & ~word
        while zeros:
            zeros &= zeros - 1
            total += 1
    return total
