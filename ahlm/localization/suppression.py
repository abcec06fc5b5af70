"""Non-maximum suppression of overlapping detections, in C++ or NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ahlm.kernels.core import choose_backend, core


def suppress(
    class_index: NDArray[np.int64],
    score: NDArray[np.float64],
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    *,
    tiou: float,
    sigma: float | None = None,
    min_score: float = 0.0,
    extra_s: float = 0.0,
    backend: str = "auto",
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices of the detections that stay, best first, and their scores.

    Detections of different classes do not touch each other. Ties go to the earlier index.

    Args:
        class_index: [N].
        score: [N], finite.
        start_s: [N].
        end_s: [N].
        tiou: hard NMS drops a detection whose overlap with a better one of its class exceeds this.
        sigma: none: hard; else soft-NMS: overlap o multiplies a positive score by exp(-o^2 / sigma), nothing is
            dropped by `tiou`, and detections that fall below `min_score` end.
        min_score: of soft-NMS.
        extra_s: added to every length and intersection (ACM-Net adds one second; 0 is the true overlap).
        backend: `auto`, `c++` or `numpy`; both give the same result to the last bit.

    Raises:
        ValueError: columns of different length, values that are not finite, settings out of range, `c++` where it was
            not built.
    """
    arrays = (
        np.ascontiguousarray(class_index, np.int64),
        np.ascontiguousarray(score, np.float64),
        np.ascontiguousarray(start_s, np.float64),
        np.ascontiguousarray(end_s, np.float64),
    )
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"class_index, score, start_s, end_s must be [N], got {[list(a.shape) for a in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays[1:]):
        raise ValueError("score, start_s and end_s must be finite")
    if not 0 <= tiou <= 1:
        raise ValueError(f"tiou must be in [0, 1], got {tiou}")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if not extra_s >= 0:
        raise ValueError(f"extra_s must be at least 0, got {extra_s}")
    if choose_backend(backend) == "c++":
        index, kept = core.suppress(*arrays, tiou, -1.0 if sigma is None else sigma, min_score, extra_s)
        return index, kept
    return suppress_numpy(*arrays, tiou, sigma, min_score, extra_s)


def suppress_numpy(
    class_index: NDArray[np.int64],
    score: NDArray[np.float64],
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    tiou: float,
    sigma: float | None,
    min_score: float,
    extra_s: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The specification of `suppress`: take the best, weaken or drop what overlaps it, repeat."""
    scores = score.copy()
    alive = np.arange(len(scores))
    kept: list[int] = []
    while len(alive):
        best = alive[np.argmax(scores[alive])]
        if sigma is not None and scores[best] < min_score:
            break
        kept.append(int(best))
        alive = alive[alive != best]
        intersection = np.minimum(end_s[alive], end_s[best]) - np.maximum(start_s[alive], start_s[best]) + extra_s
        intersection = np.maximum(intersection, 0)
        union = (end_s[alive] - start_s[alive] + extra_s) + (end_s[best] - start_s[best] + extra_s) - intersection
        overlap = np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)
        overlap[class_index[alive] != class_index[best]] = 0
        if sigma is None:
            alive = alive[overlap <= tiou]
        else:
            # math.exp and not numpy.exp, whose vector code differs from C's exp in the last bit
            # a factor below 1 would lift a negative score, which therefore stays as it is
            for i in np.flatnonzero((overlap > 0) & (scores[alive] > 0)):
                scores[alive[i]] *= math.exp(-(overlap[i] * overlap[i]) / sigma)
    index = np.array(kept, np.int64)
    return index, scores[index]
