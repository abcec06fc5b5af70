"""The C++ core under the address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_core_is_clean(sanitizers: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    sources = [ROOT / "csrc" / f"{name}.cpp" for name in ("average_precision", "diagnosis", "ranking", "suppression")]
    if not compiler or not sources[0].is_file():
        pytest.skip("no C++ compiler, or not in a checkout")
    flags = [compiler, "-std=c++17", "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-pthread"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    program = str(tmp_path / "program")
    built = subprocess.run([*flags, str(probe), "-o", program], capture_output=True, text=True, check=False)
    if built.returncode or subprocess.run([program], capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} has no working -fsanitize={sanitizers}: {built.stderr.strip()[-200:]}")
    driver = Path(__file__).with_name("sanitizer_driver.cpp")
    subprocess.run([*flags, f"-I{ROOT / 'csrc'}", *map(str, sources), str(driver), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
