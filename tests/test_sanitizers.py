"""The C++ core under the address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each of `tests/sanitizers/NAME.cpp` with the sources it drives and what they need to compile
SCANS = ["scan", "change_point_scan", "change_point_scan_kernel", "snippet_scan", "snippet_scan_kernel"]
ONE_LEVEL = ["-DAHLM_SCAN_PORTABLE", "-DAHLM_LEVEL=portable"]
DRIVERS = {
    "evaluation": (["average_precision", "diagnosis", "ranking", "suppression"], []),
    "scans": (SCANS, ONE_LEVEL),
    "scans, vectors of this machine": (SCANS, [*ONE_LEVEL, "-march=native"]),
}


@pytest.mark.parametrize("sanitizers", ["address,undefined", pytest.param("thread", marks=pytest.mark.slow)])
@pytest.mark.parametrize("driver", DRIVERS)
def test_core_is_clean(driver: str, sanitizers: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    names, defines = DRIVERS[driver]
    sources = [str(ROOT / "csrc" / f"{name}.cpp") for name in names]
    if not compiler or not Path(sources[0]).is_file():
        pytest.skip("no C++ compiler, or not in a checkout")
    flags = [compiler, *defines, "-std=c++17", "-O1", "-g", "-pthread"]
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    program = str(tmp_path / "program")
    built = subprocess.run([*flags, str(probe), "-o", program], capture_output=True, text=True, check=False)
    if built.returncode or subprocess.run([program], capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} has no working -fsanitize={sanitizers}: {built.stderr.strip()[-200:]}")
    sources.append(str(Path(__file__).parent / "sanitizers" / f"{driver.split(',')[0]}.cpp"))
    subprocess.run([*flags, f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
