"""The Triton kernels without a GPU: run by the interpreter, and compiled for two architectures."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ahlm.kernels import cuda
from ahlm.kernels.change_point_scan import ScanStreams, ScanWeights, change_point_scan
from ahlm.kernels.compiled import candidates

pytest.importorskip("triton", reason="Triton is not installed")
from ahlm.kernels import triton_reverse
from ahlm.kernels.change_point_scan import fused_triton as change_point
from ahlm.kernels.snippet_scan import fused_triton as snippet

HERE = Path(__file__).parent
# bytes of stack a thread; measured: 40 at most
SPILL_BOUND = 64


def run_scans(interpret: bool, *selection: str) -> None:
    """Run `triton_scans.py` in a process of its own: Triton reads the switch when a kernel is defined."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_scans.py")]
    done = subprocess.run([*command, *selection], env=environment, capture_output=True, text=True)
    print(done.stdout[-8000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_in_the_interpreter() -> None:
    run_scans(True)


@pytest.mark.slow
def test_every_case_in_the_interpreter() -> None:
    run_scans(True, "-m", "slow", "-s")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu() -> None:
    run_scans(False, "-m", "slow or not slow", "-s")


def resources() -> Any:
    path = HERE.parents[1] / "bench" / "resources.py"
    specification = importlib.util.spec_from_file_location("resources", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_compiles_ahead_of_time() -> None:
    found = resources()
    kernel = found.compiled("snippet_scan", "reverse", "-", "fp32", 80)
    row = found.resources(kernel, 80)
    assert row["registers"] > 0
    assert row["stack"] <= SPILL_BOUND, row
    assert_barriers(kernel, triton_reverse)


def assert_barriers(kernel: Any, module: Any) -> None:
    """Every `debug_barrier` of a source file is a barrier of the machine: warps read what others have written."""
    source = Path(module.__file__)
    wanted = {i for i, line in enumerate(source.read_text().splitlines(), 1) if "tl.debug_barrier()" in line}
    ptx = kernel.asm["ptx"]
    files = {number: Path(path).name for number, path in re.findall(r'\.file\s+(\d+)\s.*?"([^"]*)"\s*$', ptx, re.M)}
    at, found = None, set()
    for line in ptx.splitlines():
        if place := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            at = (files[place[1]], int(place[2]))
        elif "bar.sync" in line:
            found.add(at)
    assert wanted
    assert {(source.name, line) for line in wanted} <= found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_barriers_of_the_forward_kernels(precision: str) -> None:
    for scan, reading, module in (("change_point_scan", "literal", change_point), ("snippet_scan", "-", snippet)):
        assert_barriers(resources().compiled(scan, "forward", reading, precision, 90), module)


@pytest.mark.slow
def test_resources_of_every_kernel() -> None:
    rows = resources().table()
    assert len(rows) == 2 * 2 * 2 * (3 + 1)  # directions, precisions, architectures, readings of both scans
    for row in rows:
        print(row)
        assert row["stack"] <= SPILL_BOUND, row
        assert row["blocks_per_sm"] >= 1, row


def test_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    weights = ScanWeights(*(torch.zeros(s) for s in ((3, 1), (3, 1), (3,), (3,), (2, 1), (2,))), None, torch.zeros(1))
    with pytest.raises(ValueError, match=r"backend=triton takes float32 tensors on a GPU, got torch\.float32 on cpu"):
        change_point_scan(ScanStreams(torch.zeros(1, 2, 2)), weights, backend="triton")


@pytest.mark.parametrize(
    ("wanted", "expected"), [("", ("triton",)), ("triton", ("triton",)), ("reference", ()), ("cpu", ())]
)
def test_order_on_a_gpu(wanted: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device, dtype = torch.device("cuda"), torch.float32

    monkeypatch.setenv("AHLM_BACKEND", wanted)
    on_gpu: Any = OnGpu()
    assert candidates(on_gpu) == expected


def test_cuda_before_triton_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device, dtype = torch.device("cuda"), torch.float32

    on_gpu: Any = OnGpu()
    monkeypatch.setenv("AHLM_BACKEND", "cuda")
    for obstacle, expected in ((None, ("cuda", "triton")), ("needs another card", ("triton",))):
        monkeypatch.setattr(cuda, "obstacle", lambda device, obstacle=obstacle: obstacle)
        assert candidates(on_gpu) == expected
