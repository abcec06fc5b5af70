from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ahlm.evaluation.average_precision import Instances, average_precision, interpolated_ap
from ahlm.kernels.core import core

TIOUS = np.array([0.1, 0.3, 0.5, 0.7, 0.95])
needs_core = pytest.mark.skipif(core is None, reason="the compiled core is absent")


def random_case(rng: np.random.Generator) -> tuple[Instances, Instances, int, int]:
    """Ties everywhere: few distinct times and scores, duplicates, zero-length and inverted segments, empty videos."""
    n_videos, n_classes = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    grid = 0.5 * rng.integers(1, 4)

    def instances(n: int, scored: bool) -> Instances:
        start = grid * rng.integers(0, 12, n)
        length = grid * rng.integers(-1 if rng.random() < 0.2 else 0, 8, n)
        score = np.round(rng.random(n), int(rng.integers(1, 4))) if scored else np.zeros(n)
        video, c = rng.integers(0, n_videos, n), rng.integers(0, n_classes, n)
        return Instances(video, c, start.astype(float), (start + length).astype(float), score)

    truth = instances(int(rng.integers(1, 30)), False)
    found = instances(int(rng.integers(0, 80)), True)
    if found.size:
        again = rng.integers(0, found.size, found.size // 5)
        found = Instances(*(np.concatenate([column, column[again]]) for column in found))
    return truth, found, n_videos, n_classes


@needs_core
def test_fewer_threads_than_asked_for_do_the_same_work() -> None:
    """A container may allow fewer; here there is no memory for their stacks."""
    script = """
import resource
import numpy as np
from ahlm.evaluation.average_precision import Instances, average_precision
n = 400
columns = [np.arange(n), np.arange(n) % 100, np.zeros(n), np.ones(n), np.ones(n)]
case = (Instances(*columns), Instances(*columns), n, 100, np.array([0.5]))
expected = average_precision(*case, backend="c++", n_threads=1).ap
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (60 << 20), resource.RLIM_INFINITY))
assert (average_precision(*case, backend="c++", n_threads=64).ap == expected).all()
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_core
@pytest.mark.parametrize("ties", ["stable", "official"])
def test_core_equals_numpy_to_the_last_bit(ties: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        truth, found, n_videos, n_classes = random_case(rng)
        arguments = (truth, found, n_videos, n_classes, TIOUS)
        reference = average_precision(*arguments, ties=ties, backend="numpy")
        core = average_precision(*arguments, ties=ties, backend="c++", n_threads=3)
        np.testing.assert_array_equal(core.ap, reference.ap)
        np.testing.assert_array_equal(core.taken_by, reference.taken_by)


@needs_core
def test_number_of_threads_changes_nothing() -> None:
    rng = np.random.default_rng(8)
    cases = [random_case(rng) for _ in range(20)]
    for case in cases:
        aps = [average_precision(*case, TIOUS, n_threads=threads).ap for threads in (1, 2, 7)]
        np.testing.assert_array_equal(aps[0], aps[1])
        np.testing.assert_array_equal(aps[0], aps[2])


def columns(rows: list[tuple[int, int, float, float, float]]) -> Instances:
    video, c, start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Instances(video, c, start.astype(float), end.astype(float), score.astype(float))


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c++", marks=needs_core)])
def test_known_answers(backend: str) -> None:
    truth = columns([(0, 0, 0, 10, 0), (0, 0, 20, 30, 0), (1, 0, 0, 10, 0), (0, 1, 0, 5, 0)])
    found = columns(
        [
            (0, 0, 0, 10, 0.9),  # right
            (0, 0, 1, 10, 0.8),  # double
            (1, 0, 0, 6, 0.7),  # right up to tIoU 0.6
            (1, 1, 0, 5, 0.6),  # right label, wrong video
            (2, 0, 0, 5, 0.5),  # a video without this class
        ]
    )
    ap = average_precision(truth, found, 3, 3, np.array([0.5, 0.6, 0.7]), backend=backend).ap
    np.testing.assert_allclose(ap[:, 0], [1 / 3 + (1 / 3) * (2 / 3), 1 / 3 + (1 / 3) * (2 / 3), 1 / 3])
    np.testing.assert_array_equal(ap[:, 1], 0)
    assert np.isnan(ap[:, 2]).all()  # no ground truth


def test_interpolated_ap_by_hand() -> None:
    assert interpolated_ap(np.array([False, True, False, True]), 4) == pytest.approx(0.25 * 0.5 + 0.25 * 0.5)
    assert interpolated_ap(np.array([], bool), 3) == 0


@pytest.mark.parametrize("column", ["score", "start", "end"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rejects_values_that_are_not_finite(column: str, value: float) -> None:
    truth = columns([(0, 0, 0, 10, 0)])
    found = columns([(0, 0, 0, 10, 0.5)])._replace(**{column: np.array([value])})
    with pytest.raises(ValueError, match=rf"predictions\.{column} must be finite"):
        average_precision(truth, found, 1, 1, TIOUS)


@needs_core
def test_core_checks_its_arrays() -> None:
    ints, floats = np.zeros(1, np.int64), np.zeros(1)
    good = [ints, ints, floats, floats, ints, ints, floats, floats, floats, None, None, None, 1, 1, TIOUS, 1]
    core.average_precision(*good)
    for position, bad, message in ((0, np.array([5]), "truth_video"), (5, np.array([-1]), "class_index")):
        with pytest.raises(ValueError, match=rf"{message}\[0\] must be in \[0, 1\)"):
            core.average_precision(*good[:position], bad, *good[position + 1 :])
    with pytest.raises(TypeError):
        core.average_precision(*good[:2], floats.astype(np.float32), *good[3:])
    with pytest.raises(ValueError, match=r"must be \[1\]"):
        core.average_precision(*good[:8], np.zeros(2), *good[9:])
    with pytest.raises(ValueError, match=r"score\[0\] must not be NaN"):
        core.average_precision(*good[:6], np.array([np.nan]), *good[7:])


def test_thresholds_are_above_0() -> None:
    truth = columns([(0, 0, 0, 10, 0)])
    with pytest.raises(ValueError, match="tious must be above 0"):
        average_precision(truth, truth, 1, 1, np.array([0.0, 0.5]))


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c++", marks=needs_core)])
def test_segments_without_a_union(backend: str) -> None:
    """The script divides 0 by 0 and lets the two match; by default they do not."""
    point = columns([(0, 0, 3, 3, 0.5)])
    elsewhere = columns([(0, 0, 8, 8, 0)])
    aps = [average_precision(elsewhere, point, 1, 1, TIOUS, ties=t, backend=backend).ap for t in ("stable", "official")]
    np.testing.assert_array_equal(aps, [np.zeros((5, 1)), np.ones((5, 1))])
