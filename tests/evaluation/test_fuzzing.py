"""Damaged files and wrong arrays: a clear error or the right number, never a crash, never another number."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ahlm.errors import DataError
from ahlm.evaluation import evaluate, predictions
from ahlm.kernels.core import core

TRUTH = json.dumps(
    {
        "database": {
            "a": {"subset": "test", "annotations": [{"label": "run", "segment": [0, 10]}]},
            "b": {"subset": "Testing", "annotations": [{"label": "jüüp", "segment": ["1.5", 4]}]},
        }
    }
).encode()
RUN = [{"label": "run", "score": 0.5, "segment": [0, 9.5]}, {"label": "run", "score": "1e-3", "segment": [0, 1]}]
JUMP = [{"label": "jüüp", "score": 1, "segment": [1, 4]}]
FOUND = json.dumps(
    {"version": "é", "results": {"a": RUN, "b": JUMP, "c": []}, "external_data": {}}, ensure_ascii=False
).encode()
TOKENS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1E+5", b"01", b"9" * 400, b"9" * 5000, b"2.5e-324"),
    *(b"0." + b"0" * 400 + b"1", b"1_0", b'" 7 "', b'"0x10"', b"1e308", "٣".encode()),
    *(b"null", b"true", b"{}", b"[]", b"[" * 2000, b'{"a":' * 2000, b'"', b"\\", b"\\ud800", b"\\u0000", b"\x00"),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b",", b":", b"}", b"]", b" ", b'"a": [],', b'"score": 2,'),
]
KINDS = ["replace", "insert", "delete", "cut"]
tokens = st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=3)
edits = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(KINDS), tokens), max_size=4)


def damaged(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, token in changes:
        at = int(where * len(data))
        if kind == "cut":
            data = data[:at]
        else:
            data = (
                data[:at] + (b"" if kind == "delete" else token) + data[at + (0 if kind == "insert" else len(token)) :]
            )
    return data


def outcome(truth: Path, found: Path) -> Any:
    """All numbers, or that there was an error, which must be a `DataError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return evaluate(truth, found).to_dict()
        except DataError:
            return "error"


def both_readers(truth: Path, found: Path) -> Any:
    """The outcome of the typed reader; what the `json` module makes of the file is the same.

    Where nobody reads, the typed reader alone also passes over broken UTF-8 and numbers of thousands of digits.
    """
    typed = outcome(truth, found)
    digits = sys.get_int_max_str_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions.typed_json, "read_file", lambda path: None)
        general = outcome(truth, found)
        if general == "error" != typed:
            found.write_text(found.read_bytes().decode(errors="replace"), encoding="utf-8")
            sys.set_int_max_str_digits(0)
            general = outcome(truth, found)
            sys.set_int_max_str_digits(digits)
    assert typed == general
    return typed


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(changes=edits)
@example(changes=[])
def test_damaged_predictions(tmp_path: Path, changes: list[tuple[float, str, bytes]]) -> None:
    truth, found = tmp_path / "gt.json", tmp_path / "found.json"
    truth.write_bytes(TRUTH)
    found.write_bytes(damaged(FOUND, changes))
    result = both_readers(truth, found)
    if not changes:
        assert result["mAP"]["0.5"] == 1


@fuzz
@given(changes=edits)
def test_damaged_ground_truth(tmp_path: Path, changes: list[tuple[float, str, bytes]]) -> None:
    truth, found = tmp_path / "gt.json", tmp_path / "found.json"
    truth.write_bytes(damaged(TRUTH, changes))
    found.write_bytes(FOUND)
    result = outcome(truth, found)
    assert result == "error" or all(0 <= value <= 1 for value in result["mAP"].values())


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: repr(token[:12]))
@pytest.mark.parametrize("place", [b"0.5", b'"run"', b"9.5", b"[0, 9.5]", b'"a"', b"{}", FOUND])
def test_every_token_everywhere(tmp_path: Path, token: bytes, place: bytes) -> None:
    truth, found = tmp_path / "gt.json", tmp_path / "found.json"
    truth.write_bytes(TRUTH)
    found.write_bytes(FOUND.replace(place, token, 1))
    both_readers(truth, found)


wrong = st.one_of(
    st.integers(0, 3).map(lambda n: np.zeros(n)),
    st.integers(0, 3).map(lambda n: np.full(n, -1)),
    st.integers(0, 3).map(lambda n: np.arange(n) * 7),
    st.just(np.zeros((2, 2))),
    st.just(np.zeros((2, 2), np.int64)),
    st.just(np.array([np.nan, np.inf])),
    st.just(np.zeros(4)[::2]),
    st.just(np.zeros(4, np.int64)[::-2]),
    st.sampled_from([np.zeros(2, np.float32), np.zeros(2, ">f8"), np.zeros(2, np.int32), np.zeros(2, bool)]),
    st.sampled_from([None, 1, -1, 2**70, "x", [], [0, 1], {}]),
    st.just(np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min])),
)
INTS, FLOATS = np.array([0, 1]), np.array([0.0, 1.0])
TRUTH_COLUMNS, FOUND_COLUMNS = (INTS, INTS, FLOATS, FLOATS + 1), (INTS, INTS, FLOATS, FLOATS, FLOATS + 1)
CALLS: dict[str, tuple[Any, ...]] = {
    "average_precision": (*TRUTH_COLUMNS, *FOUND_COLUMNS, INTS, INTS - 1, INTS, 2, 2, np.array([0.5]), 1),
    "first_ranks": (INTS, FLOATS, FLOATS + 1, INTS, FLOATS, FLOATS, FLOATS + 1, 2, np.array([0.5]), 1),
    "classification": (np.eye(2), np.eye(2, dtype=bool)),
    "diagnose": (*TRUTH_COLUMNS, *FOUND_COLUMNS, 2, 2, 0.5, 0.1),
    "suppress": (INTS, FLOATS, FLOATS, FLOATS + 1, 0.5, 0.3, 0.0, 0.0),
}


@pytest.mark.skipif(core is None, reason="the compiled core is absent")
@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_wrong_arrays(name: str, data: st.DataObject) -> None:
    """The core itself, past the checks that stand before it."""
    function, arguments = getattr(core, name), list(CALLS[name])
    function(*arguments)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(arguments) - 1))
        arguments[position] = data.draw(wrong)
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError, MemoryError):
        function(*arguments)
