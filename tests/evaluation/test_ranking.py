from __future__ import annotations

import numpy as np
import pytest

from ahlm.evaluation.average_precision import Instances
from ahlm.evaluation.ranking import average_recall, classification, classification_numpy, first_ranks_numpy
from ahlm.kernels.core import core

needs_core = pytest.mark.skipif(core is None, reason="the compiled core is absent")
BACKENDS = ["numpy", pytest.param("c++", marks=needs_core)]


def columns(rows: list[tuple[int, int, float, float, float]]) -> Instances:
    video, c, start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Instances(video, c, start.astype(float), end.astype(float), score.astype(float))


def random_instances(seed: int, n: int) -> Instances:
    """Of 5 videos and 3 classes, on a coarse grid, with few distinct scores."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 12, n).astype(float)
    score = np.round(rng.random(n), 1)
    return Instances(rng.integers(0, 5, n), rng.integers(0, 3, n), start, start + rng.integers(1, 6, n), score)


TRUTH = columns([(0, 0, 0, 10, 0), (0, 1, 20, 30, 0), (2, 0, 0, 10, 0), (3, 0, 0, 4, 0)])
FOUND = columns([(0, 5, 0, 10, 0.2), (0, 5, 20, 26, 0.9), (2, 5, 50, 60, 0.9), (2, 5, 0, 5, 0.8), (9, 0, 0, 4, 1.0)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_average_recall_by_hand(backend: str) -> None:
    # 3 videos have ground truth, 4 proposals lie in them. AN 1/3: one in four of each video's: none. AN 1: three in
    # four, so that videos 0, 2 keep one: 20-26 (tIoU 0.6) and 50-60. AN 4/3: all: also 0-10 and 0-5 (0.5)
    recall = average_recall(TRUTH, FOUND, 10, [0.5, 0.55, 0.7], [1 / 3, 1, 4 / 3, 100], backend=backend)
    np.testing.assert_allclose(recall, np.array([0, 2 / 3, 2 / 3 + 1 + 1 / 3, 2]) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_share_of_whole_proposals_loses_none(backend: str) -> None:
    for n in range(1, 300):  # 49 * (1 / 49) is less than 1
        truth = columns([(0, 0, 0, 10, 0)])
        found = columns([(0, 0, 0, 10, 1.0), *[(0, 0, 50, 60, 0.5)] * (n - 1)])
        assert average_recall(truth, found, 1, [0.5], [1], backend=backend) == 1, n


def official_average_recall(truth: Instances, found: Instances, tiou: float, number: float) -> float:
    """The proposal task's procedure: the same share of every video's proposals, then a loop over the instances."""
    videos = set(truth.video.tolist())
    ratio = number * len(videos) / np.isin(found.video, list(videos)).sum()
    recalled = 0
    for video in videos:
        proposals = [
            (-score, i, start, end)
            for i, (v, _, start, end, score) in enumerate(zip(*(c.tolist() for c in found), strict=True))
            if v == video
        ]
        kept = sorted(proposals)[: min(int(len(proposals) * ratio), len(proposals))]
        for v, _, start, end, _ in zip(*(c.tolist() for c in truth), strict=True):
            if v == video:
                both = [max(0.0, min(end, e) - max(start, s)) for _, _, s, e in kept]
                recalled += any(
                    b / ((end - start) + (e - s) - b) >= tiou for b, (_, _, s, e) in zip(both, kept, strict=True)
                )
    return recalled / truth.size


@pytest.mark.parametrize("backend", BACKENDS)
def test_average_recall_is_the_official_one(backend: str) -> None:
    for seed in range(30):
        truth, found = random_instances(seed, 30), random_instances(seed + 1000, 120)
        truth = truth.where(truth.video != 2)  # which leaves proposals in a video without ground truth
        for number in (1, 2.5, 10, 1000):
            recall = average_recall(truth, found, 5, [0.3, 0.6], [number], backend=backend)
            expected = np.mean([official_average_recall(truth, found, tiou, number) for tiou in (0.3, 0.6)])
            np.testing.assert_allclose(recall, [expected], rtol=1e-12)


@pytest.mark.parametrize(
    ("tious", "numbers", "message"), [([0.0], [1], "tious"), ([], [1], "tious"), ([0.5], [0], "average_numbers")]
)
def test_average_recall_refuses(tious: list[float], numbers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_recall(TRUTH, FOUND, 10, tious, numbers)


@needs_core
def test_core_equals_numpy() -> None:
    for seed in range(50):
        truth, found = random_instances(seed, 30), random_instances(seed + 1000, 90)
        tious = np.array([0.1, 0.5, 0.9])
        ranks = core.first_ranks(truth.video, truth.start, truth.end, *(found[i] for i in (0, 4, 2, 3)), 5, tious, 2)
        np.testing.assert_array_equal(ranks, first_ranks_numpy(truth, found, tious))
        rng = np.random.default_rng(seed)
        scores, labels = np.round(rng.random((40, 7)), 1), rng.random((40, 7)) < 0.1
        for by_core, numpy in zip(
            core.classification(scores, labels), classification_numpy(scores, labels), strict=True
        ):
            np.testing.assert_array_equal(by_core, numpy)


def test_classification_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.6], [0.8, 0.1, 0.3]])
    labels = np.array([[True, True, False], [True, False, False], [False, False, False]])
    # class 0: videos 0, 2, 1: (1 + 2/3) / 2; class 1: 1; class 2 has no video
    result = classification(scores, labels, (1, 2))
    assert result.mAP == pytest.approx((5 / 6 + 1) / 2)
    assert result.top == {1: 1.0, 2: 1.0}
    assert classification(-scores, labels, (1, 2)).top == {1: 0.0, 2: 0.5}
    with pytest.raises(ValueError, match="must both be"):
        classification(scores, labels[:2])
    with pytest.raises(ValueError, match="finite"):
        classification(scores * np.nan, labels)
