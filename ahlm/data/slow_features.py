"""Directions of the features that stay while neighbouring snippets differ: a linear slow-feature projection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ahlm.data.dataset import FeatureDataset

Floats = NDArray[np.float64]
Read = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # what a model makes of a video's features [n, F]
CALM = 0.9  # share of neighbouring snippets that count as noise; the others may be change-points
RIDGE = 0.05  # noise of every direction, as a share of the mean variance: features do not repeat beyond that
ROUNDS = 3


def as_they_are(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The `Read` that changes nothing."""
    return features


def slow_projection(dataset: FeatureDataset, size: int, read: Read = as_they_are) -> tuple[Floats, Floats]:
    """Mean (F,) and projection (F, size): `(read(features) - mean) @ projection` is what the detector reads.

    With C the covariance of the snippets and N half the covariance of the differences between neighbouring snippets,
    the columns are the generalised eigenvectors of C w = l N w with the largest l, variance against noise. They are
    scaled so that the noise is white, then all by one number so that the mean variance is 1. Differences in the top
    tenth are left out of N, measured in the projection of the round before, so that boundaries do not count as noise.
    Reads features alone, never a label.

    Raises:
        ValueError: `size` outside 1 .. F, or no video with two snippets.
    """
    n_features = dataset.feature_dim
    if not 1 <= size <= n_features:
        raise ValueError(f"detector.slow_size must be within 1 .. {n_features}, the feature dimension, got {size}")

    def video(i: int) -> Floats:
        return read(dataset.features(i)).astype(np.float64)

    videos = range(len(dataset))
    count = sum(dataset.n_snippets(i) for i in videos)
    if count == len(dataset):
        raise ValueError("standardise: slow needs a training video of at least two snippets")
    mean = np.sum([video(i).sum(0) for i in videos], axis=0) / count
    total = np.zeros((n_features, n_features))
    for i in videos:
        centred = video(i) - mean
        total += centred.T @ centred / count
    if not total.any():
        raise ValueError("standardise: slow needs training features that differ; all snippets are the same")
    ridge = RIDGE * np.trace(total) / n_features * np.eye(n_features)

    projection = np.zeros((n_features, size))  # no difference is larger than another: the first round takes all
    for _ in range(ROUNDS):
        sizes = [np.square(np.diff(video(i), axis=0) @ projection).sum(1) for i in videos]
        largest = np.quantile(np.concatenate(sizes), CALM)
        noise, n_calm = np.zeros_like(total), 0
        for i in videos:
            calm = np.diff(video(i), axis=0)[sizes[i] <= largest]
            noise += calm.T @ calm / 2
            n_calm += len(calm)
        projection = _directions(total, noise / n_calm + ridge)[:, :size]
    variance = np.einsum("fk,fg,gk->k", projection, total, projection)
    return mean, projection / np.sqrt(variance.mean())


def _directions(total: Floats, noise: Floats) -> Floats:
    """Columns w with w' noise w = 1, by falling w' total w."""
    whiten = np.linalg.inv(np.linalg.cholesky(noise))
    vectors: Floats = np.linalg.eigh(whiten @ total @ whiten.T).eigenvectors
    return whiten.T @ vectors[:, ::-1]
