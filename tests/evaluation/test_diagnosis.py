from __future__ import annotations

import numpy as np
import pytest

from ahlm.evaluation.average_precision import Instances, average_precision
from ahlm.evaluation.diagnosis import KINDS, diagnose
from ahlm.kernels.core import core


def instances(rows: list[tuple[int, int, float, float, float]]) -> Instances:
    video, c, start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Instances(video, c, start.astype(float), end.astype(float), score.astype(float))


needs_core = pytest.mark.skipif(core is None, reason="the compiled core is absent")


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c++", marks=needs_core)])
def test_one_of_each_kind(backend: str) -> None:
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
    result = diagnose(truth, found, 2, 2, backend=backend)
    assert [KINDS[k] for k in result.kind] == list(KINDS)
    assert result.judged.tolist() == [0, 1, 2, 3, 4, 5]
    assert result.false_positives() == dict.fromkeys(KINDS, 1)
    assert result.found.tolist() == [True] + [False] * 7
    assert result.misses() == {"0-2 s": (0, 0), "2-4 s": (0, 0), "4-8 s": (6, 7), "8-16 s": (0, 0), "over 16 s": (1, 1)}


def test_nothing_found() -> None:
    truth = instances([(0, 0, 0, 5, 0)])
    nothing = truth.where(np.array([], np.int64))
    assert sum(diagnose(truth, nothing, 1, 1).false_positives().values()) == 0


@needs_core
def test_core_equals_numpy_and_the_average_precision() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)

        def some(n: int, rng: np.random.Generator = rng) -> Instances:
            start = rng.integers(0, 12, n).astype(float)
            end = start + rng.integers(0, 6, n)
            return Instances(rng.integers(0, 4, n), rng.integers(0, 3, n), start, end, np.round(rng.random(n), 1))

        truth, found = some(25), some(60)
        by_core, numpy = (diagnose(truth, found, 4, 3, 0.4, backend=backend) for backend in ("c++", "numpy"))
        for a, b in zip(by_core, numpy, strict=True):
            np.testing.assert_array_equal(a, b)
        judged = found.where(by_core.judged)
        taken_by = average_precision(truth, judged, 4, 3, np.array([0.4])).taken_by[0]
        np.testing.assert_array_equal(by_core.found, taken_by >= 0)
        np.testing.assert_array_equal(np.flatnonzero(by_core.kind == 0), np.sort(taken_by[taken_by >= 0]))


def test_refuses() -> None:
    truth = instances([(0, 0, 0, 5, 0)])
    with pytest.raises(ValueError, match="tiou must be in"):
        diagnose(truth, truth, 1, 1, 0.1)
    with pytest.raises(ValueError, match=r"predictions\.end must be finite"):
        diagnose(truth, truth._replace(end=np.array([np.inf])), 1, 1)
