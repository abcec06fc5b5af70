"""The LCS kernel against list-based Python and a NumPy wavefront, whole-video refinement passes, the JIT's first call.

`pytest bench/bench_lcs.py -s`; `AHLM_BENCH_WRITE=1` writes the figures to `bench/results`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.config import RefinementConfig
from ahlm.kernels.lcs import lcs_length, lcs_length_reference
from ahlm.localization import refine_change_points
from ahlm.localization.refinement import unit_features

LENGTH, DIM, THRESHOLD = 512, 256, 0.65
N_SNIPPETS, N_POINTS = 10_000, 4_000


def lcs_list(similarity: list[list[float]], threshold: float) -> int:
    """Two rows of Python lists, the usual way to write it without NumPy."""
    above = [0] * (len(similarity[0]) + 1)
    for line in similarity:
        row = [0]
        for j, value in enumerate(line):
            if value > threshold:
                row.append(above[j] + 1)
            else:
                row.append(max(above[j + 1], row[j]))
        above = row
    return above[-1]


def lcs_wavefront(similarity: np.ndarray, threshold: float) -> int:
    """One vector operation an anti-diagonal, whose cells do not depend on each other."""
    n, m = similarity.shape
    skewed = np.zeros((n + m - 1, n), np.int32)  # row d holds the matches (i, d - i): contiguous reads below
    i, j = np.nonzero(similarity > threshold)
    skewed[i + j, i] = 1
    older, old = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)  # diagonals d - 2 and d - 1, indexed by i + 1
    for d in range(n + m - 1):
        first, last = max(0, d - m + 1), min(n, d + 1)
        new = old.copy()
        best = np.maximum(old[first:last], old[first + 1 : last + 1])
        new[first + 1 : last + 1] = np.maximum(best, older[first:last] + skewed[d, first:last])
        older, old = old, new
    return int(old[n])


def best_s(function: Callable[[], Any], rounds: int) -> float:
    """Shortest of several times, after one call outside the clock."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="module")
def similarity() -> np.ndarray:
    """Cosines of two noisy sequences of the same states, about a tenth of them above the threshold."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(10, DIM))
    rows = states[np.repeat(rng.integers(0, 10, 2 * LENGTH // 8), 8)] + 0.6 * rng.normal(size=(2 * LENGTH, DIM))
    unit = unit_features(rows, centred=False)
    return unit[:LENGTH] @ unit[LENGTH:].T


@pytest.mark.benchmark(group=f"LCS {LENGTH} x {LENGTH}, similarities given")
def test_dynamic_programme(benchmark: Any, record: Any, similarity: np.ndarray) -> None:
    lines = similarity.tolist()
    expected = lcs_length_reference(similarity, THRESHOLD)
    assert 0 < expected < LENGTH
    assert lcs_list(lines, float(np.float32(THRESHOLD))) == lcs_wavefront(similarity, THRESHOLD) == expected
    assert benchmark(lcs_length, similarity, THRESHOLD) == expected
    ours = best_s(lambda: lcs_length(similarity, THRESHOLD), 200)
    list_ratio = best_s(lambda: lcs_list(lines, THRESHOLD), 5) / ours
    wavefront_ratio = best_s(lambda: lcs_wavefront(similarity, THRESHOLD), 10) / ours
    record(
        "lcs_dynamic_programme",
        {
            "length": LENGTH,
            "us": 1e6 * ours,
            "ratio_to_list_python": list_ratio,
            "ratio_to_numpy_wavefront": wavefront_ratio,
        },
    )


@pytest.mark.benchmark(group=f"cosines {LENGTH} x {LENGTH} x {DIM}, apart from the LCS")
def test_cosines(benchmark: Any) -> None:
    unit = unit_features(np.random.default_rng(1).normal(size=(2 * LENGTH, DIM)), centred=False)
    assert benchmark(np.matmul, unit[:LENGTH], unit[LENGTH:].T).shape == (LENGTH, LENGTH)


def video(case: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(N_SNIPPETS, DIM)).astype(np.float32)
    if case == "nothing merges":
        return noise
    if case == "everything merges":
        return 1 + 0.1 * noise
    states = rng.normal(size=(20, DIM)).astype(np.float32)  # each for 1 to 59 snippets
    return (
        states[np.repeat(rng.integers(0, 20, N_SNIPPETS), rng.integers(1, 60, N_SNIPPETS))[:N_SNIPPETS]] + 0.3 * noise
    )


@pytest.mark.benchmark(group=f"refinement of {N_SNIPPETS} snippets, {N_POINTS} change-points, {DIM} dimensions")
@pytest.mark.parametrize("case", ["nothing merges", "everything merges", "20 states"])
def test_whole_video(benchmark: Any, record: Any, case: str) -> None:
    features, config = video(case), RefinementConfig()
    rng = np.random.default_rng(3)
    points = np.sort(rng.choice(np.arange(1, N_SNIPPETS), N_POINTS, replace=False))
    kept = benchmark(refine_change_points, features, points, config)
    low, high = {"nothing merges": (N_POINTS, N_POINTS), "everything merges": (0, 0), "20 states": (100, 1500)}[case]
    assert low <= len(kept) <= high
    # the goal, a second, is read off the record: a busy machine must not fail a benchmark
    figures = {"snippets": N_SNIPPETS, "change_points": N_POINTS, "dimensions": DIM, "left": len(kept)}
    seconds = best_s(lambda: refine_change_points(features, points, config), 3)
    record(f"lcs_whole_video_{case.replace(' ', '_')}", {**figures, "s": seconds})


@pytest.mark.benchmark(group="refinement of a video that plays twice, dimensions 256: the worst case")
def test_looped_video(benchmark: Any) -> None:
    """Every change-point of the second half needs the snippets half a video away."""
    features = np.tile(video("nothing merges")[: N_SNIPPETS // 2], (2, 1))
    points = np.arange(N_SNIPPETS // 2, N_SNIPPETS, 2)
    kept = benchmark.pedantic(refine_change_points, (features, points, RefinementConfig()), rounds=3, warmup_rounds=1)
    assert len(kept) == 0


@pytest.mark.benchmark(group="refinement of an hour-long segment boundary")
def test_two_long_segments(benchmark: Any) -> None:
    features = video("nothing merges")
    assert len(benchmark(refine_change_points, features, np.array([N_SNIPPETS // 2]), RefinementConfig())) == 1


def test_first_call(record: Any, tmp_path: Path) -> None:
    """In a fresh process: nothing compiled yet, then with the cache of the process before."""
    code = (
        "import time; import numpy as np; from ahlm.kernels.lcs import lcs_length; start = time.perf_counter();"
        "lcs_length(np.eye(9, dtype=np.float32), .5); print(time.perf_counter() - start)"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    cold, *warm = (
        float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)) for _ in range(6)
    )
    record("lcs_first_call", {"compiling_s": cold, "cached_s": min(warm)})
