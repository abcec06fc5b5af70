"""The specification: the textbook dynamic programme."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def lcs_length_reference(similarity: NDArray[Any], threshold: float) -> int:
    """Longest common subsequence of rows and columns that match where `similarity > threshold`."""
    matches = similarity > threshold
    n, m = matches.shape
    length = np.zeros((n + 1, m + 1), np.int64)
    for i in range(n):
        for j in range(m):
            if matches[i, j]:
                length[i + 1, j + 1] = length[i, j] + 1
            else:
                length[i + 1, j + 1] = max(length[i, j + 1], length[i + 1, j])
    return int(length[n, m])
