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
  "-m pytest"*|"-c import sys"*"from ahlm"*) exit 0;;
  *"profile --output"*) exit 1;;
  "bench/gpu_scan.py triton --output"*) echo '[{"what": "triton"}]' > "$4"; exit 0;;
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

# the measurements on the CPU: Triton interpreted, CUDA's kernels an error in each of their rows
MEASURE = """
import json, runpy, sys
import torch
from ahlm.config import ClassifierConfig, Config, DetectorConfig

script = runpy.run_path(sys.argv[1])
names = script["inputs"].__globals__
rows = []

def once(run, repeats):
    run()
    return {"min_ms": 1.0, "median_ms": 1.0}

names.update(DEVICE=torch.device("cpu"), Z=16, H=16, milliseconds=once)
for part in ("baselines", "triton", "cuda"):
    script["Times"](part, 2, 4, 1, rows.append).measure()
detector = DetectorConfig(crop=9, width=32, state_size=16, latent_size=8)
config = Config(detector=detector, classifier=ClassifierConfig(n_snippets=9))
steps = [script["step_times"](kernel, 1, n_snippets=9, n_features=8, config=config)
         for kernel in ("triton", "cuda", "reference")]
print(json.dumps([rows, steps]))
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
    assert codes["build_without_cuda"] == 1
    assert codes["card"] == codes["triton"] == codes["times_triton"] == codes["resources"] == codes["parts"] == 0
    assert result["steps"]["build"]["last_lines"] == ["no compiler"]
    assert result["times"] == [{"what": "triton"}]
    assert "== build\nno compiler" in (tmp_path / "results" / "gpu_some_card_80gb.log").read_text()
    assert "no compiler" in done.stdout


def test_every_row_of_the_measurements(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, SCRIPT.with_name("gpu_scan.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "AHLM_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows, steps = json.loads(done.stdout.splitlines()[-1])
    errors = [row["error"] for row in rows if row["what"].startswith("cuda")]
    assert errors
    assert all("must be on cuda, got cpu" in error or "has no CUDA kernels" in error for error in errors)
    assert [row for row in rows if "error" in row and not row["what"].startswith("cuda")] == []
    kernels = [f"{kernel} {precision}" for kernel in ("cuda", "triton") for precision in ("fp32", "fp16")]
    kernels += ["nn.GRU fp32", "nn.GRU tf32", "nn.GRU fp16", *(f"{kernel} snippets" for kernel in kernels)]
    forward = {row["what"] for row in rows if row["direction"] == "forward"}
    assert forward == {*kernels, "eager", "eager snippets"}
    assert {row["what"] for row in rows if row["direction"] == "forward + backward"} == set(kernels)
    interpreted = [row for row in rows if row["what"] == "triton fp32" and row["direction"] == "forward"]
    assert [row["decisions_that_differ"] for row in interpreted] == [0, 0]
    assert [step["backend"] for step in steps] == ["triton", "cuda", "reference"]
    assert "min_ms" in steps[0]
    assert "AHLM_BACKEND=cuda" in steps[1]["error"]
    assert "min_ms" in steps[2]
