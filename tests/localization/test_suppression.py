"""Suppression: C++ against NumPy to the last bit, and both against a plain loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ahlm.kernels import core
from ahlm.localization.suppression import suppress

HARD, SOFT = {"tiou": 0.5}, {"tiou": 0.5, "sigma": 0.3, "min_score": 0.05}
SETTINGS: dict[str, dict[str, Any]] = {
    "hard": HARD,
    "hard-0": {"tiou": 0.0},
    "hard-1": {"tiou": 1.0},
    "hard-plus-one": {"tiou": 0.5, "extra_s": 1.0},
    "soft": SOFT,
    "soft-all": {**SOFT, "min_score": -10.0},
    "soft-plus-one": {**SOFT, "extra_s": 1.0},
}
needs_core = pytest.mark.skipif(core.core is None, reason="ahlm._core is not compiled")


def detections(seed: int) -> tuple[np.ndarray, ...]:
    """Up to 60 detections of 3 classes; coarse numbers, so that ties, duplicates and zero lengths abound."""
    rng = np.random.default_rng(seed)
    n, digits = int(rng.integers(0, 60)), int(rng.integers(0, 3))
    start = np.round(10 * rng.random(n), digits)
    return rng.integers(0, 3, n), np.round(rng.normal(size=n), 1), start, start + np.round(4 * rng.random(n), digits)


def suppress_naive(
    columns: tuple[np.ndarray, ...],
    tiou: float,
    sigma: float | None = None,
    min_score: float = 0.0,
    extra_s: float = 0.0,
) -> tuple[list[int], list[float]]:
    """One class after the other, then all sorted by score."""
    class_index, score, start, end = (column.tolist() for column in columns)
    kept = []
    for c in set(class_index):
        left = {i: score[i] for i in range(len(score)) if class_index[i] == c}
        while left:
            best = min(left, key=lambda i: (-left[i], i))
            value = left.pop(best)
            if sigma is not None and value < min_score:
                break
            kept.append((-value, best))
            for i in list(left):
                both = max(0.0, min(end[i], end[best]) - max(start[i], start[best]) + extra_s)
                union = (end[i] - start[i] + extra_s) + (end[best] - start[best] + extra_s) - both
                overlap = both / union if union > 0 else 0.0
                if sigma is None and overlap > tiou:
                    del left[i]
                elif sigma is not None and left[i] > 0:
                    left[i] *= math.exp(-overlap * overlap / sigma)
    kept.sort()
    return [i for _, i in kept], [-value for value, _ in kept]


@needs_core
@pytest.mark.parametrize("name", SETTINGS)
def test_core_equals_numpy(name: str) -> None:
    for seed in range(100):
        columns = detections(seed)
        core = suppress(*columns, **SETTINGS[name], backend="c++")
        twin = suppress(*columns, **SETTINGS[name], backend="numpy")
        np.testing.assert_array_equal(core[0], twin[0])
        np.testing.assert_array_equal(core[1], twin[1])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("backend", ["numpy", pytest.param("c++", marks=needs_core)])
def test_against_a_loop_over_classes(name: str, backend: str) -> None:
    for seed in range(40):
        columns = detections(seed)
        index, score = suppress(*columns, **SETTINGS[name], backend=backend)
        expected_index, expected_score = suppress_naive(columns, **SETTINGS[name])
        assert index.tolist() == expected_index
        assert score.tolist() == expected_score


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c++", marks=needs_core)])
class TestByHand:
    def test_hard(self, backend: str) -> None:
        # 1 overlaps 0 by 3/5 and goes; 2 is of another class; 3 overlaps only what is gone
        index, score = suppress(
            np.array([7, 7, 2, 7]),
            np.array([0.9, 0.8, 0.7, 0.6]),
            np.array([0.0, 1.0, 1.0, 3.5]),
            np.array([4.0, 5.0, 5.0, 5.0]),
            tiou=0.5,
            backend=backend,
        )
        assert index.tolist() == [0, 2, 3]
        assert score.tolist() == [0.9, 0.7, 0.6]

    def test_an_overlap_equal_to_the_threshold_stays(self, backend: str) -> None:
        columns = (np.zeros(2, int), np.array([2.0, 1.0]), np.array([0.0, 0.0]), np.array([4.0, 2.0]))
        assert suppress(*columns, tiou=0.5, backend=backend)[0].tolist() == [0, 1]
        assert suppress(*columns, tiou=0.49, backend=backend)[0].tolist() == [0]

    def test_soft(self, backend: str) -> None:
        columns = (np.zeros(2, int), np.array([1.0, 0.8]), np.array([0.0, 0.0]), np.array([4.0, 2.0]))
        index, score = suppress(*columns, tiou=0.1, sigma=0.5, backend=backend)
        assert index.tolist() == [0, 1]
        assert score.tolist() == [1.0, 0.8 * math.exp(-(0.5**2) / 0.5)]
        assert suppress(*columns, tiou=0.1, sigma=0.5, min_score=0.7, backend=backend)[0].tolist() == [0]

    def test_soft_lifts_no_negative_score(self, backend: str) -> None:
        columns = (np.zeros(2, int), np.array([1.0, -0.5]), np.zeros(2), np.ones(2))
        assert suppress(*columns, tiou=0.5, sigma=0.3, min_score=-1.0, backend=backend)[1].tolist() == [1.0, -0.5]

    def test_duplicates_and_zero_lengths(self, backend: str) -> None:
        columns = (np.zeros(4, int), np.full(4, 0.5), np.array([1.0, 1.0, 3.0, 3.0]), np.array([2.0, 2.0, 3.0, 3.0]))
        # segments without length overlap nothing, not even each other
        assert suppress(*columns, tiou=0.5, backend=backend)[0].tolist() == [0, 2, 3]
        assert suppress(*columns, tiou=0.5, extra_s=1.0, backend=backend)[0].tolist() == [0, 2]

    def test_none(self, backend: str) -> None:
        empty = np.empty(0)
        index, score = suppress(empty.astype(int), empty, empty, empty, tiou=0.5, backend=backend)
        assert (index.shape, score.shape) == ((0,), (0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": np.ones(3)}, r"class_index, score, start_s, end_s must be \[N\]"),
        ({"score": np.array([1.0, np.nan])}, "score, start_s and end_s must be finite"),
        ({"tiou": 1.5}, r"tiou must be in \[0, 1\], got 1.5"),
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"extra_s": -1.0}, "extra_s must be at least 0, got -1.0"),
        ({"backend": "fast"}, "backend must be auto, c\\+\\+ or numpy, got 'fast'"),
    ],
)
def test_rejects(changes: dict[str, Any], message: str) -> None:
    columns = {"class_index": np.zeros(2, int), "score": np.ones(2), "start_s": np.zeros(2), "end_s": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        suppress(**{**columns, "tiou": 0.5, **changes})


def test_says_when_the_core_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "core", None)
    one = (np.zeros(1, int), np.ones(1), np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match=r"c\+\+ is not built"):
        suppress(*one, tiou=0.5, backend="c++")
    assert suppress(*one, tiou=0.5)[0].tolist() == [0]
