from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from ahlm.ablation.change_points import (
    DETECTORS,
    boundaries,
    control_points,
    difference_scores,
    fit,
    peaks,
    slow_projections,
)
from ahlm.data.annotations import Segment
from ahlm.data.dataset import FeatureDataset, Video
from ahlm.data.synthetic import piecewise_constant
from ahlm.evaluation.boundaries import change_point_scores
from ahlm.timeline import FeatureSpec


def dataset(n_videos: int, seed: int) -> FeatureDataset:
    """Piecewise-constant sequences whose segments are annotated one after the other."""
    sequences, switches = piecewise_constant(n_videos, seed, n_snippets=100, dim=24, noise=1.0)
    spec, videos = FeatureSpec(), []
    for i, (sequence, inner) in enumerate(zip(sequences, switches, strict=True)):
        edges = spec.edges_s(100)[[0, *inner, 100]]
        segments = tuple(Segment(a, b, "any") for a, b in itertools.pairwise(edges))
        videos.append(Video(str(i), sequence, ("any",), segments))
    return FeatureDataset(videos, ("any",), spec)


@pytest.mark.parametrize("kind", DETECTORS)
def test_tuned_on_some_videos_they_find_the_switches_of_others(kind: str) -> None:
    if kind.startswith("kernel"):
        pytest.importorskip("ruptures")
    fitted = fit(kind, dataset(8, 0), dataset(4, 1))
    other = dataset(6, 2)
    found = [fitted.detect(other.features(i)) for i in range(6)]
    scores = change_point_scores(found, boundaries(other), [100] * 6)
    assert scores.f1 >= 0.8, (scores, fitted.settings)
    assert scores.f1 >= fitted.f1 - 0.15
    assert all(edges.dtype == np.int64 and (np.diff(edges) > 0).all() for edges in found)


def test_differences_and_peaks_by_hand() -> None:
    features = np.array([[0.0], [0.0], [4.0], [4.0], [5.0]])
    np.testing.assert_allclose(difference_scores(features, 1), [0, 0, 4, 0, 1])
    # after edge 4 there is one snippet, before it two
    np.testing.assert_allclose(difference_scores(features, 2), [0, 2, 4, 2.5, 1])
    scores = np.array([9.0, 2, 4, 2.5, 1, 3])
    assert peaks(scores, 1).tolist() == [1, 2, 3, 4, 5]
    assert peaks(scores, 2).tolist() == [2, 5]
    assert peaks(scores, 3).tolist() == [2, 5]
    assert peaks(scores, 4).tolist() == [2]


def test_slow_projection_finds_the_dimension_that_switches() -> None:
    rng = np.random.default_rng(0)
    videos = []
    for _ in range(20):
        slow = np.repeat(rng.normal(size=8), 10)[:, None]
        videos.append(np.concatenate([slow, np.zeros((80, 5))], 1) + rng.normal(0, [0.2] + [3.0] * 5, (80, 6)))
    direction = slow_projections([video.astype(np.float32) for video in videos], sizes=(1,))["1 slow features"][:, 0]
    assert abs(direction[0]) / np.linalg.norm(direction) > 0.99


def test_controls() -> None:
    detected = np.array([3, 8, 15])
    assert control_points("every_third", 10, detected, [0]).tolist() == [3, 6, 9]
    assert control_points("uniform", 20, detected, [0]).tolist() == [5, 10, 15]
    random = control_points("random", 20, detected, [0, 1])
    assert len(random) == 3
    assert random.min() >= 1
    assert random.max() <= 19
    assert random.tolist() == control_points("random", 20, detected, [0, 1]).tolist()
    assert any(random.tolist() != control_points("random", 20, detected, [0, i]).tolist() for i in range(2, 5))
    for kind in ("every_third", "random", "uniform"):
        assert control_points(kind, 1, detected[:0], [0]).tolist() == []


def test_ruptures_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ahlm\[bench\]'"):
        fit("kernel_rbf", dataset(2, 0), dataset(2, 1))
