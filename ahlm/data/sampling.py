"""From n snippets to T, to crops, and to padded batches (section 4.2: T = 750 and 150)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sample_snippets_train(n: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`size` sorted indices of n snippets: with replacement when n < size, else one of each of `size` equal strata."""
    if n < size:
        return np.sort(rng.integers(0, n, size))
    # the last stratum's end may be rounded up to n
    return np.minimum(np.floor((np.arange(size) + rng.random(size)) * n / size), n - 1).astype(np.int64)


def sample_snippets_test(n: int, size: int, turn: int = 0, passes: int = 1) -> NDArray[np.int64]:
    """All n indices, or `floor((arange(size) + turn / passes) * n / size)` when n exceeds `size`."""
    return np.arange(n) if n <= size else (np.arange(size) * passes + turn) * n // (size * passes)


def crop_start(n: int, size: int, rng: np.random.Generator) -> int:
    """First snippet of a random contiguous crop; 0 when the video is no longer than the crop."""
    return int(rng.integers(0, n - size + 1)) if n > size else 0


def collate(videos: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Zero-padded batch (B, T, F) float32 and its lengths (B,) int64, from arrays [n_i, F]."""
    lengths = [len(video) for video in videos]
    batch = np.zeros((len(videos), max(lengths), videos[0].shape[1]), np.float32)
    for row, video in zip(batch, videos, strict=True):
        row[: len(video)] = video
    return torch.from_numpy(batch), torch.tensor(lengths)
