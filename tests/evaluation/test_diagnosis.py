from __future__ import annotations

import numpy as np

from ahlm.evaluation.average_precision import Instances
from ahlm.evaluation.diagnosis import KINDS, diagnose


def instances(rows: list[tuple[int, int, float, float, float]]) -> Instances:
    video, c, start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Instances(video, c, start.astype(float), end.astype(float), score.astype(float))


def test_one_of_each_kind() -> None:
    truth = instances([(0, 0, 10.0 * i, 10.0 * i + 5, 0) for i in range(6)] + [(1, 1, 0, 5, 0), (1, 1, 50, 70, 0)])
    found = instances(
        [
            (0, 0, 0, 5, 0.9),  # correct
            (0, 0, 0, 4.5, 0.8),  # double
            (1, 0, 0, 5, 0.7),  # wrong label: class 1 is there
            (0, 0, 10, 12, 0.6),  # localisation: 0.4
            (1, 0, 0, 2, 0.5),  # confusion: 0.4 with class 1
            (0, 0, 90, 95, 0.4),  # background
            (0, 0, 20, 25, 0.3),  # beyond the six best of its class: not judged
        ]
    )
    result = diagnose(truth, found, 2, 2)
    assert [KINDS[k] for k in result.kind] == list(KINDS)
    assert result.judged.tolist() == [0, 1, 2, 3, 4, 5]
    assert result.false_positives() == dict.fromkeys(KINDS, 1)
    assert result.found.tolist() == [True] + [False] * 7
    assert result.misses() == {"0-2 s": (0, 0), "2-4 s": (0, 0), "4-8 s": (6, 7), "8-16 s": (0, 0), "over 16 s": (1, 1)}


def test_nothing_found() -> None:
    truth = instances([(0, 0, 0, 5, 0)])
    nothing = truth.where(np.array([], np.int64))
    assert sum(diagnose(truth, nothing, 1, 1).false_positives().values()) == 0
