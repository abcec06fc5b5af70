"""What every benchmark's figures depend on, and where they may be written."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from ahlm.files import write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores in use and versions."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        cpu = names[0] if names else cpu
    packages = ("ahlm", "numpy", "torch", "numba", "msgspec", "orjson", "pandas")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": cores,
        "load_before": load,
        "python": platform.python_version(),
        "versions": versions,
    }


def pytest_report_header() -> str:
    facts = machine()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"bench: {facts['cpu']}, {facts['cores']} cores, load {facts['load_before']}; {versions}; "
        f"AHLM_BACKEND={os.environ.get('AHLM_BACKEND', 'auto')}"
    )


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    """`record(name, figures)` writes `bench/results/NAME.json` with the machine when AHLM_BENCH_WRITE is set."""

    before = machine()  # its load, before there is a benchmark to add to it

    def write(name: str, figures: dict[str, Any]) -> None:
        print(f"\n{name}: {figures}")
        if os.environ.get("AHLM_BENCH_WRITE"):
            write_json(RESULTS / f"{name}.json", {"machine": before, **figures})

    return write
