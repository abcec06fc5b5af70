from __future__ import annotations

import numpy as np
import pytest

from ahlm.evaluation.average_precision import Instances
from ahlm.evaluation.ranking import average_recall, classification


def columns(rows: list[tuple[int, int, float, float, float]]) -> Instances:
    video, c, start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Instances(video, c, start.astype(float), end.astype(float), score.astype(float))


TRUTH = columns([(0, 0, 0, 10, 0), (0, 1, 20, 30, 0), (2, 0, 0, 10, 0), (3, 0, 0, 4, 0)])
FOUND = columns([(0, 5, 0, 10, 0.2), (0, 5, 20, 26, 0.9), (2, 5, 50, 60, 0.9), (2, 5, 0, 5, 0.8), (9, 0, 0, 4, 1.0)])


def test_average_recall_by_hand() -> None:
    # one proposal: only 20-26, tIoU 0.6; two: also 0-10 and 0-5 (0.5); video 3 has none
    recall = average_recall(TRUTH, FOUND, [0.5, 0.55, 0.7], [1, 2, 100])
    np.testing.assert_allclose(recall, np.array([2 / 3, 2 / 3 + 1 + 1 / 3, 2]) / 4)


@pytest.mark.parametrize(
    ("tious", "numbers", "message"), [([0.0], [1], "tious"), ([], [1], "tious"), ([0.5], [0], "n_proposals")]
)
def test_average_recall_refuses(tious: list[float], numbers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_recall(TRUTH, FOUND, tious, numbers)


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
