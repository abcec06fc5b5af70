"""The typed reader and the general one agree on every file, good or broken."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.errors import DataError
from ahlm.evaluation import evaluate, predictions
from ahlm.evaluation.predictions import predicted_instances, read_results

GOOD: dict[str, Any] = {
    "version": "x",
    "results": {
        "a": [
            {"label": "run", "score": 0.5, "segment": [0, 10]},
            {"label": "fly", "score": "1e-3", "segment": ["1", 2.5]},
        ],
        "b": [],
        "other": [{"label": "run", "score": 1, "segment": [0, 1], "more": None}],
    },
    "ahlm": {"change_points": {}, "n": 2**70},
}


def outcome(path: Path) -> Any:
    """What reading gives: values, or the message of the one error there may be."""
    try:
        name, results, extra = read_results(path)
        found, counts = predicted_instances(name, results, ["a", "b", "c"], ["jump", "run"])
    except DataError as error:
        return str(error)
    return [column.tolist() for column in found], counts, extra


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    typed = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(predictions.typed_json, "read_file", lambda path: None)
        return typed, outcome(path)


def test_a_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(GOOD))
    typed, general = both(path, monkeypatch)
    assert typed == general
    assert typed[0] == [[0], [1], [0.0], [10.0], [0.5]]
    assert typed[1] == {"predictions": 1, "unknown_videos": 1, "unknown_labels": 1, "missing_videos": 1}


def test_broken_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of a file in turn replaced by every kind of JSON value, or left out."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path] + [p for key, inner in items for p in places(inner, (*path, key))]

    path = tmp_path / "p.json"
    errors = 0
    wrong: list[Any] = [None, True, -1, 10**400, "x", "nan", "", [], [1, 2, 3], {}, float("nan"), float("-inf"), ...]
    for place in places(GOOD):
        for value in wrong:
            broken = {"": copy.deepcopy(GOOD)}
            target: Any = broken
            for key in ("", *place)[:-1]:
                target = target[key]
            if value is ...:
                del target[("", *place)[-1]]
            else:
                target[("", *place)[-1]] = value
            path.write_text(json.dumps(broken.get("")))
            typed, general = both(path, monkeypatch)
            assert typed == general, (place, value)
            errors += isinstance(typed, str)
    assert errors > 100


def test_broken_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a DataError may come out of a damaged file."""
    path = tmp_path / "p.json"
    rng = np.random.default_rng(0)
    good = json.dumps(GOOD).encode()
    for _ in range(500):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 2):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.2 else data)
        both(path, monkeypatch)


def test_argument_errors(tmp_path: Path) -> None:
    truth = {"database": {"a": {"subset": "test", "annotations": [{"label": "run", "segment": [0, 1]}]}}}
    for keywords, message in (
        ({"protocol": "thumos"}, "protocol must be one of thumos14, "),
        ({"tious": [0.0, 0.5]}, r"tious must be in \(0, 1\]"),
        ({"tious": [float("nan")]}, r"tious must be in \(0, 1\]"),
        ({"ties": "none"}, "ties must be stable or official"),
        ({"backend": "gpu"}, "backend must be auto"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(truth, {"results": {"a": []}}, **keywords)  # type: ignore[arg-type]
