from __future__ import annotations

import numpy as np
import pytest

from ahlm.data.dataset import FeatureDataset, Video
from ahlm.data.slow_features import slow_projection
from ahlm.timeline import FeatureSpec


def piecewise(noise: np.ndarray, signal: np.ndarray, n_videos: int = 8) -> FeatureDataset:
    """Videos whose mean jumps every 20 snippets in the directions `signal` (K, F), with noise of covariance n'n."""
    rng = np.random.default_rng(0)
    videos = []
    for i in range(n_videos):
        levels = np.repeat(rng.normal(size=(6, len(signal))), 20, axis=0)
        features = levels @ signal + rng.normal(size=(120, len(noise))) @ noise + 5
        videos.append(Video(f"v{i}", features.astype(np.float32)))
    return FeatureDataset(videos, ("a",), FeatureSpec(25, 16, 16))


def test_finds_what_stays_and_whitens_the_noise() -> None:
    rng = np.random.default_rng(1)
    noise = np.diag([6.0, 1, 1, 1, 1, 0.5])  # the loudest direction is all noise
    signal = np.linalg.qr(rng.normal(size=(6, 2)))[0].T * 3
    signal[:, 0] = 0
    dataset = piecewise(noise, signal)
    mean, projection = slow_projection(dataset, 2)
    projected = [(dataset.features(i) - mean) @ projection for i in range(len(dataset))]
    everything = np.concatenate(projected)
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(everything.var(0).mean(), 1, atol=1e-4)
    steps = np.concatenate([np.diff(p, axis=0)[np.arange(119) % 20 != 19] for p in projected])
    covariance = np.cov(steps.T)
    assert covariance[0, 0] / covariance[1, 1] == pytest.approx(1, abs=0.2)
    assert abs(covariance[0, 1]) < 0.1 * covariance[0, 0]
    # the signal stands out: far more of the variance is between segments than in the features as they are
    assert everything.var(0).sum() / (covariance.trace() / 2) > 8
    loud = np.abs(projection[0]).max() * 6
    assert loud < 0.5 * np.abs(projection[1:5]).max()


def test_reads_what_the_model_reads() -> None:
    dataset = piecewise(np.eye(6), 4 * np.eye(6)[:2])

    def read(features: np.ndarray) -> np.ndarray:
        return np.tanh((features - 5) / np.arange(1, 7, dtype=np.float32))

    seen = [Video(video.id, read(dataset.features(i))) for i, video in enumerate(dataset.videos)]
    expected = slow_projection(FeatureDataset(seen, ("a",), FeatureSpec(25, 16, 16)), 2)
    found = slow_projection(dataset, 2, read)
    np.testing.assert_allclose(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1])
    assert not np.allclose(np.abs(found[1]), np.abs(slow_projection(dataset, 2)[1]), rtol=0.1)


@pytest.mark.parametrize("size", [0, 7])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=r"slow_size must be within 1 \.\. 6.*got"):
        slow_projection(piecewise(np.eye(6), np.eye(6)[:2]), size)


def test_single_snippets_have_no_neighbours() -> None:
    dataset = FeatureDataset([Video("v", np.ones((1, 3), np.float32))], ("a",), FeatureSpec(25, 16, 16))
    with pytest.raises(ValueError, match="at least two snippets"):
        slow_projection(dataset, 2)
