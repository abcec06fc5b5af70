"""Registers, stack, shared memory and occupancy of the Triton kernels, compiled ahead of time; no GPU is needed.

`python bench/resources.py` prints a line a kernel, reading, precision and architecture and writes
`bench/results/triton_resources.json`. Compiled is not run: none of these figures is a time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ahlm.files import write_json
from ahlm.kernels.change_point_scan import ScanRules
from ahlm.kernels.change_point_scan import fused_triton as change_point
from ahlm.kernels.snippet_scan import fused_triton as snippet
from ahlm.kernels.triton_blocks import FORWARD, cut
from ahlm.kernels.triton_reverse import LAUNCH, PRODUCTS, reverse_kernel

H, Z = 256, 64
READINGS = {
    "filtered": ScanRules(),
    "constant": ScanRules(change_prior="constant"),
    "literal": ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0),
}
KERNELS = ("change_point_scan", "snippet_scan")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# of one multiprocessor: registers, bytes of shared memory (1024 of them go to each block's system use), threads
LIMITS = {80: (65536, 164 * 1024, 2048), 90: (65536, 228 * 1024, 2048)}


def signature(kernel: Any, constants: dict[str, Any]) -> dict[str, str]:
    """Triton's types of a kernel's arguments, told from their names."""
    half = constants.get("HALF", False)
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in ("B", "T", "refractory"):
            types[name] = "i32"
        elif name in ("change_ptr", "forced_ptr", "restart_ptr"):
            types[name] = "*i8"
        elif name in ("length_ptr", "order_ptr"):
            types[name] = "*i64"
        elif half and name in ("input_ptr", "state_weight_ptr", "prior_state_ptr", "posterior_state_ptr"):
            types[name] = "*fp16"
        else:
            types[name] = "*fp32" if name.endswith("_ptr") else "fp32"
    return types


def compiled(scan: str, direction: str, reading: str, precision: str, capability: int) -> Any:
    """One kernel compiled for `sm_{capability}` at H 256, Z 64."""
    constants = cut((FORWARD if direction == "forward" else LAUNCH)[precision], H, Z)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    rules = READINGS.get(reading)
    if direction == "reverse":
        kernel: Any = reverse_kernel
        constants |= {"PRECISION": PRODUCTS[precision], "AFTER_RESTART": rules is None}
        constants["HAS_STATE"] = rules is None or rules.uses_state
        constants["TRANSITION"] = rules is None or rules.uses_posterior
    elif rules is not None:
        kernel = change_point.forward_kernel
        constants |= {"HALF": precision == "fp16", "NOISE": True, "FORCED": False} | change_point.reading(rules)
    else:
        kernel = snippet.forward_kernel
        constants["HALF"] = precision == "fp16"
    types = signature(kernel, constants)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if types[name][0] == "*"}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(kernel: Any, capability: int) -> dict[str, int]:
    """What the machine code asks for, read by the cuobjdump that Triton ships; bytes of stack are spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        read = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        text = subprocess.run(read, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
    assert found, text
    registers, stack = map(int, found.groups())
    shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
    all_registers, all_shared, all_threads = LIMITS[capability]
    # registers are given out in eights
    per_thread = -(-registers // 8) * 8
    blocks = min(all_registers // (per_thread * threads), all_threads // threads, all_shared // (shared + 1024))
    return {"registers": registers, "stack": stack, "shared": shared, "threads": threads, "blocks_per_sm": blocks}


def table(capabilities: tuple[int, ...] = (80, 90)) -> list[dict[str, Any]]:
    """Every kernel, reading, precision and architecture."""
    rows = []
    for scan in KERNELS:
        for reading in READINGS if scan == "change_point_scan" else ("-",):
            for direction in ("forward", "reverse"):
                for precision in ("fp32", "fp16"):
                    for capability in capabilities:
                        kernel = compiled(scan, direction, reading, precision, capability)
                        names = {"scan": scan, "direction": direction, "reading": reading, "precision": precision}
                        rows.append({**names, "sm": capability, **resources(kernel, capability)})
    return rows


def main() -> None:
    """Print the table and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "triton_resources.json")
    options = parser.parse_args()
    rows = table()
    for row in rows:
        print(" ".join(f"{name} {value}" for name, value in row.items()))
    write_json(options.output, {"triton": triton.__version__, "H": H, "Z": Z, "compiled_not_run": rows})


if __name__ == "__main__":
    main()
