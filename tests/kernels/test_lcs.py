"""`lcs_length` against the textbook dynamic programme."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahlm.kernels.lcs import lcs_length, lcs_length_of_blocks, lcs_length_reference

THRESHOLD = 0.65
# around the 62 bits of a word, where a carry goes over to the next
SIZES = [(1, 1), (1, 7), (7, 1), (3, 61), (5, 62), (62, 62), (63, 63), (40, 124), (125, 20), (130, 131)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.9])
def test_matches_reference(size: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng([*size, int(100 * density)])
    similarity = np.where(rng.random(size) < density, 0.7, 0.6).astype(np.float32)
    assert lcs_length(similarity, THRESHOLD) == lcs_length_reference(similarity, THRESHOLD)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_matches_reference_on_small_matrices(n: int, m: int, seed: int, tenths: int) -> None:
    similarity = np.random.default_rng(seed).random((n, m))
    assert lcs_length(similarity, tenths / 10) == lcs_length_reference(similarity, tenths / 10)


@pytest.mark.parametrize("n", [1, 61, 62, 63, 200])
def test_known_answers(n: int) -> None:
    assert lcs_length(np.eye(n), 0.5) == n
    assert lcs_length(np.ones((n, 2 * n)), 0.5) == n
    assert lcs_length(np.zeros((n, 2 * n)), 0.5) == 0
    assert lcs_length(np.eye(n)[::-1], 0.5) == 1
    assert lcs_length(np.ones((0, n)), 0.5) == 0
    assert lcs_length(np.ones((n, 0)), 0.5) == 0


def test_one_row_matches_once() -> None:
    row = np.zeros((1, 100), np.float32)
    assert lcs_length(row, THRESHOLD) == 0
    row[0, [3, 99]] = 1
    assert lcs_length(row, THRESHOLD) == lcs_length(row.T, THRESHOLD) == 1


def test_the_threshold_is_exclusive_in_the_dtype_of_the_matrix() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        at = np.full((2, 2), THRESHOLD, dtype)
        assert lcs_length(at, THRESHOLD) == lcs_length_reference(at, THRESHOLD) == 0
        above = np.nextafter(at, dtype(1))
        assert lcs_length(above, THRESHOLD) == lcs_length_reference(above, THRESHOLD) == 2


def test_nan_never_matches() -> None:
    similarity = np.eye(5, dtype=np.float32)
    similarity[2, 2] = np.nan
    assert lcs_length(similarity, THRESHOLD) == 4


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int64, np.float16, np.float32, np.float64])
def test_other_dtypes_and_strides(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(5)
    matches = rng.random((80, 150)) < 0.2
    expected = lcs_length_reference(matches, 0.5)
    assert lcs_length(matches.astype(dtype), 0.5) == expected
    assert lcs_length(np.asfortranarray(matches.astype(dtype)), 0.5) == expected
    assert lcs_length(np.repeat(matches.astype(dtype), 2, axis=1)[:, ::2], 0.5) == expected


def test_blocks_of_rows_are_the_whole_matrix() -> None:
    similarity = np.random.default_rng(6).random((100, 170), dtype=np.float32)
    whole = lcs_length(similarity, THRESHOLD)
    for rows in (1, 7, 99, 100):
        blocks = (similarity[i : i + rows] for i in range(0, 100, rows))
        assert lcs_length_of_blocks(blocks, THRESHOLD) == whole
    assert lcs_length_of_blocks([], THRESHOLD) == 0


@pytest.mark.parametrize(
    ("n_a", "n_b"), [(1, 1), (5, 3), (3, 5), (70, 64)], ids=["points", "long-first", "long-second", "words"]
)
def test_a_to_c_against_b_to_c_is_always_b_to_c(n_a: int, n_b: int) -> None:
    """The comparison as the paper prints it says nothing: B-C is a suffix of A-C, whatever the features."""
    features = np.random.default_rng(n_a).normal(size=(n_a + n_b, 16))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert lcs_length(unit @ unit[n_a:].T, THRESHOLD) == n_b


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((2, 2), complex), np.array([["a"]])], ids=["1d", "complex", "str"])
def test_rejects(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"similarity must be a real matrix \[n, m\], got"):
        lcs_length(bad, THRESHOLD)


def test_rejects_blocks_of_different_width() -> None:
    with pytest.raises(ValueError, match="3 columns as the first block, got 4"):
        lcs_length_of_blocks([np.ones((2, 3)), np.ones((2, 4))], THRESHOLD)


def test_same_without_the_jit() -> None:
    code = (
        "import numpy as np; from ahlm.kernels.lcs import lcs_length;"
        "rng = np.random.default_rng(0);"
        "print([lcs_length(rng.random((n, n + 70), dtype=np.float32), .65) for n in (1, 30, 62, 100)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for disabled in ("0", "1")
    }
    assert len(answers) == 1
