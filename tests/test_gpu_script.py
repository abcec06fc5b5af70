"""bench/gpu.sh where there is no GPU, and its steps with a stand-in for the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.sh"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file() or os.name != "posix", reason="not in a checkout")

# says that there is a GPU; its pip fails, its pytest does not, its benchmarks write or fail
STAND_IN = """#!/bin/sh
case "$*" in
  "-m pip"*) echo "no compiler"; exit 1;;
  "-m pytest"*) exit 0;;
  *"profile --output"*) exit 1;;
  *"times --output"*) echo '{"times": [1]}' > "$4"; exit 0;;
  bench/*) exit 0;;
esac
PYTHONPATH=FOLDER exec PYTHON "$@"
"""
TORCH = """
from types import SimpleNamespace as N
cuda = N(is_available=lambda: True, get_device_properties=lambda i: N(name="Some Card (80GB)", major=9, minor=0))
backends = N(cudnn=N(version=lambda: 1))
__version__ = "0"
"""


def test_without_a_card_it_says_so_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = subprocess.run(
        [SCRIPT], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "bench/gpu.sh: torch finds no GPU here; nothing was run\n"


def test_a_step_that_fails_loses_no_other(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    python = tmp_path / "python"
    python.write_text(STAND_IN.replace("FOLDER", str(tmp_path)).replace("PYTHON ", f"{sys.executable} "))
    python.chmod(0o755)
    done = subprocess.run(
        [SCRIPT, tmp_path / "results"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads((tmp_path / "results" / "gpu_some_card_80gb.json").read_text())
    codes = {name: step["exit_code"] for name, step in result["steps"].items()}
    assert codes["build"] == codes["profile"] == 1
    assert codes["card"] == codes["triton"] == codes["times"] == codes["resources"] == 0
    assert result["steps"]["build"]["last_lines"] == ["no compiler"]
    assert result["times"] == [1]
    assert "no compiler" in done.stdout
