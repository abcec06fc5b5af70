from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ahlm.evaluate import main


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    truth = {"database": {"a": {"subset": "Test", "annotations": [{"label": "run", "segment": [0, 10]}]}}}
    found = {"results": {"a": [{"label": "run", "score": 0.5, "segment": [0, 5.5]}]}}
    paths = [tmp_path / "gt.json", tmp_path / "pred.json"]
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


def test_thresholds_of_ones_own(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main([*files, "--tiou", "0.55", "0.1", "0.6", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["mAP"] == {"0.1": 1.0, "0.55": 1.0, "0.6": 0.0}
    assert result["average"] == {"0.1:0.6": pytest.approx(2 / 3)}


@pytest.mark.parametrize("value", ["0", "1.5", "nan", "x"])
def test_thresholds_out_of_range_are_usage_errors(files: list[str], value: str) -> None:
    with pytest.raises(SystemExit) as usage:
        main([*files, "--tiou", value])
    assert usage.value.code == 2


def test_ambiguous_list(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ambiguous = tmp_path / "ambiguous.txt"
    ambiguous.write_text("a 5.0 6.0\nelsewhere 0 9\n")
    assert main([*files, "--ambiguous", str(ambiguous)]) == 0
    assert "0 predictions" in capsys.readouterr().out
    for line in ("a 5.0", "a nan 6.0", "a 5.0 inf"):
        ambiguous.write_text(f"{line}\n")
        assert main([*files, "--ambiguous", str(ambiguous)]) == 3
        assert f"line 1: expected video start end, got {line}" in capsys.readouterr().err


def test_the_installed_module_answers(files: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ahlm.evaluate", *files], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "@0.5" in done.stdout
