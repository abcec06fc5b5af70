"""The CUDA kernels compiled for the CPU.

In csrc/cuda/emulation.hpp every thread of a cluster is a fibre, and a seed shuffles what a card leaves open: who runs
ahead, what arrives when.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # torch: this folder's other tests run without it
    from ahlm.kernels import cuda

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda"
SOURCES = [FOLDER / f"{name}.cu" for name in ("change_point_scan", "snippet_scan")]


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> cuda.Library:
    from ahlm.kernels import cuda

    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler or not SOURCES[0].is_file():
        pytest.skip("no C++ compiler, or not in a checkout")
    folder = tmp_path_factory.mktemp("emulation")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-U_FORTIFY_SOURCE", "-DAHLM_EMULATE"]
    objects = [str(folder / f"{source.stem}.o") for source in SOURCES]
    runs = [
        subprocess.Popen([compiler, "-x", "c++", *flags, "-c", str(source), "-o", target])
        for source, target in zip(SOURCES, objects, strict=True)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    path = folder / "emulation.so"
    subprocess.run([compiler, "-shared", *objects, "-o", str(path)], check=True)
    return cuda.Library(path, "cpu")


@pytest.fixture
def emulated(emulation: cuda.Library, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Eight videos a cluster, whatever the batch, and every barrier."""
    from ahlm.kernels import cuda

    monkeypatch.setattr(cuda, "FEW_VIDEOS", 0)
    emulation.calls.ahlm_emulation_seed(ctypes.c_uint64(0))
    yield emulation
    emulation.calls.ahlm_emulation_drop(0)
