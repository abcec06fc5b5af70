"""What the CUDA kernels take of a Hopper GPU, as the compiler says it, and an estimate of their time per step.

Needs nvcc and no card. Writes `bench/results/cuda_resources.json` with `--write`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from cuda_cycles import cycles_a_step

from ahlm.files import write_json
from ahlm.kernels.cuda import SCAN_KERNELS, SNIPPET_KERNELS, Library

FOLDER = Path(__file__).parents[1] / "csrc" / "cuda"
SOURCES = [str(FOLDER / f"{name}.cu") for name in ("change_point_scan", "snippet_scan")]
RESULT = Path(__file__).parent / "results" / "cuda_resources.json"
FLAGS = ("-std=c++17", "-O3", "-gencode", "arch=compute_90,code=sm_90", "-Xptxas", "-v", "-Xcompiler", "-fPIC")

# mangled: function, template arguments
SCAN_PATTERNS = tuple(
    f"{function}ILi256ELb{transition}E{few}"
    for function, few in (
        ("scan_forward", "Lb0E"),
        ("scan_forward", "Lb1E"),
        ("scan_forward_half", ""),
        ("scan_reverse", "Lb0E"),
        ("scan_reverse", "Lb1E"),
    )
    for transition in (0, 1)
)
SNIPPET_PATTERNS = ("scan_snippetsILi256EfLb0", "scan_snippetsILi256EfLb1", "scan_snippetsILi256E6__halfLb0")

# Cycles of the longest chain of a step that are not products, from published latencies (shared memory 29, mma 24,
# distributed shared memory about 200 a hop, a block barrier 40, shuffles 24, special functions 20 to 40).
FORWARD = {"gates": 180, "two hops": 2 * 220, "sum over warps": 130, "eqs. 5, 7, 8": 170, "messages": 180}
REVERSE = {"gates": 40, "one hop": 220, "sum over warps": 130, "filter": 60}
# under `evidence: transition` the filter waits for d' forward, and the state for the evidence backward
FORWARD_TRANSITION, REVERSE_TRANSITION = {"filter": 120}, {"another hop": 220}
# the fp16 forward is bound by the instructions of its warps rather than by these
FROM_MACHINE_CODE = ("forward fp16", "forward fp16, transition")
CLOCK_GHZ = 1.755


def latencies(name: str) -> int:
    """Cycles of a step's longest chain beside the products."""
    chain, more = (REVERSE, REVERSE_TRANSITION) if "reverse" in name else (FORWARD, FORWARD_TRANSITION)
    return sum(chain.values()) + (sum(more.values()) if "transition" in name else 0)


def products(name: str) -> int:
    """Cycles of the matrix products of a step that nothing hides, of H 256, Z 64 on one block."""
    transition = "transition" in name
    # the snippet scan does what the change-point scan does under `transition`, with one head and no KL
    videos = 2 if "few" in name else 8
    if "reverse" in name:
        rows = (32 + 8) * 3 * 256 + (32 * 128 if transition else 0)
        return rows * videos // 128  # 128 multiply-adds a cycle
    if "fp16" in name:
        return 2 * (2 * 33 + 30) + (15 if transition else 0)  # heads and latents: a chain of two mma each
    # the state's product of 8 x 16 rows runs while KLs are on their way, but is longer than that
    rows = 128 * 256 + 128 * 64 + (2 if transition else 1) * 16 * 256
    return rows * videos // 128


def compile_library(path: Path) -> tuple[Library, str]:
    """The kernels, built here, and what ptxas reports of them."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("nvcc is needed and not on PATH")
    done = subprocess.run(
        [nvcc, *FLAGS, "-shared", "-cudart", "static", *SOURCES, "-o", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    return Library(path), done.stderr


def table() -> dict[str, dict[str, Any]]:
    """A row a kernel."""
    patterns = dict(zip((*SCAN_KERNELS, *SNIPPET_KERNELS), (*SCAN_PATTERNS, *SNIPPET_PATTERNS), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        library, report = compile_library(path)
        rows: dict[str, dict[str, Any]] = dict(library.resources(torch.device("cpu")))
        from_machine_code = {name: cycles_a_step(path, patterns[name]) for name in FROM_MACHINE_CODE}
    for name, pattern in patterns.items():
        found = re.search(
            pattern + r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
            r".*?Used (\d+) registers",
            report,
            re.DOTALL,
        )
        if found is None:
            raise SystemExit(f"ptxas says nothing of {name}")
        stack, stores, loads, registers = map(int, found.groups())
        chain = from_machine_code[name] if name in from_machine_code else products(name) + latencies(name)
        rows[name] = {
            "registers": registers,
            "stack_bytes": stack,
            "spill_bytes": stores + loads,
            "shared_bytes": rows[name]["shared_bytes"],
            "threads": rows[name]["threads"],
            "blocks_per_sm": 1,
            "blocks_per_cluster": 8,
            "videos_per_cluster": 2 if "few" in name else 8,
            "estimated_us_per_step": chain and round(chain / CLOCK_GHZ / 1000, 2),
        }
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = table()
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    note = "compiled for sm_90, not run; times are estimates: published latencies, full multiply rates, 1.755 GHz"
    if options.write:
        write_json(RESULT, {"note": note, "state_size": 256, "most_latents": 64, "kernels": rows})
    print(note)


if __name__ == "__main__":
    main()
