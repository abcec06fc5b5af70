"""From JSON files to the score, against orjson and a NumPy loop; JSON libraries compared; the start of the command.

`pytest bench/bench_end_to_end.py -s`; `AHLM_BENCH_FULL=1` adds a file of a gigabyte. Every program runs in a process
of its own, imports not counted; memory is the process's peak, Python and NumPy included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.kernels.core import core

# THUMOS14 and ActivityNet v1.3, and twenty times the latter: videos, classes, instances, predictions
SIZES = {
    "thumos14": (212, 20, 3358, 20_000),
    "activitynet": (4728, 200, 7654, 470_000),
    "gigabyte": (94_560, 200, 153_080, 9_400_000),
}
PROTOCOLS = {"thumos14": "thumos14", "activitynet": "activitynet-1.3", "gigabyte": "activitynet-1.3"}
FULL = bool(os.environ.get("AHLM_BENCH_FULL"))
BENCH = str(Path(__file__).parent)
# not ru_maxrss, which a process inherits from the one that started it
END = """
taken = time.perf_counter() - start
peak = 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
print(taken, peak, answer)
"""
OURS = """
import time
from ahlm.evaluation import evaluate
start = time.perf_counter()
result = evaluate({truth!r}, {found!r}, {protocol!r})
answer = sum(result.mAP.values()) / len(result.mAP)
"""
ORJSON_AND_LOOP = """
import sys, time
import numpy as np, orjson
from ahlm.evaluation import PROTOCOLS
sys.path.insert(0, {bench!r})
from bench_average_precision import Instances, numpy_loop
start = time.perf_counter()
database = orjson.loads(open({truth!r}, "rb").read())["database"]
results = orjson.loads(open({found!r}, "rb").read())["results"]
videos = {{v: i for i, v in enumerate(database)}}
classes = {{}}
rows = [[(videos[v], classes.setdefault(d["label"], len(classes)), *d["segment"], d.get("score", 0.0))
         for v, items in source for d in items]
        for source in (((v, e["annotations"]) for v, e in database.items()), results.items())]
truth, found = (Instances(*(np.array(c) for c in zip(*r))) for r in rows)
answer = np.nanmean(numpy_loop(truth, found, len(classes), PROTOCOLS[{protocol!r}].tious))
"""
# predictions into columns, the sum of the scores as the answer
TYPED = """
import time
from ahlm.evaluation.predictions import predicted_instances, read_results
start = time.perf_counter()
name, results, _ = read_results({found!r})
columns, _ = predicted_instances(name, results, list(results), {classes!r})
answer = columns.score.sum()
"""
GENERAL = """
import time
import numpy as np
{imports}
start = time.perf_counter()
results = {load}["results"]
index = {{label: c for c, label in enumerate({classes!r})}}
parts = []
for v, items in enumerate(results.values()):
    rows = [(v, index[d["label"]], *d["segment"], d["score"]) for d in items]
    parts.append(np.array(rows, np.float64).reshape(-1, 5))
columns = np.concatenate(parts)
answer = columns[:, 4].sum()
"""


def general(module: str) -> str:
    """The program for a library that makes plain objects of the whole file."""
    load = f"{module}.loads(open({{found!r}}, 'rb').read())"
    return GENERAL.replace("{imports}", f"import {module}").replace("{load}", load)


READERS = {
    "msgspec, typed (ours)": TYPED,
    "orjson": general("orjson"),
    "pysimdjson": general("simdjson"),
    "json": general("json"),
}


def write_files(folder: Path, name: str) -> dict[str, Any]:
    """Ground truth and predictions of a size; one video after the other, so that a gigabyte needs no more memory."""
    from bench_average_precision import case

    n_videos, n_classes, _, _ = SIZES[name]
    paths = {"truth": str(folder / f"{name}_truth.json"), "found": str(folder / f"{name}_found.json")}
    subset = "test" if name == "thumos14" else "validation"
    for key, instances in zip(paths, case(*SIZES[name]), strict=True):
        ordered = instances.where(np.argsort(instances.video, kind="stable"))
        edges = np.searchsorted(ordered.video, np.arange(n_videos + 1))
        with open(paths[key], "w") as file:
            file.write('{"database": {' if key == "truth" else '{"results": {')
            for v in range(n_videos):
                part = slice(edges[v], edges[v + 1])
                columns = (column[part].tolist() for column in ordered[1:])
                items = ", ".join(
                    f'{{"label": "class number {c}", "score": {s}, "segment": [{a}, {b}]}}'
                    for c, a, b, s in zip(*columns, strict=True)
                )
                entry = f'{{"subset": "{subset}", "annotations": [{items}]}}' if key == "truth" else f"[{items}]"
                file.write(f'{", " if v else ""}"v_{v:011d}": {entry}')
            file.write("}}")
    classes = sorted(f"class number {c}" for c in range(n_classes))
    return {**paths, "protocol": PROTOCOLS[name], "bench": BENCH, "classes": classes}


def measure(programs: dict[str, str], times: int) -> dict[str, tuple[float, float, float]]:
    """Least seconds, peak memory in bytes, and answer of each; in turns, so that a busy machine is busy for all."""
    runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
    for _ in range(times):
        for name, program in programs.items():
            printed = subprocess.check_output([sys.executable, "-c", program + END], text=True)
            runs[name].append(tuple(map(float, printed.split())))
    return {name: min(each) for name, each in runs.items()}  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert core is not None, "this benchmark measures the compiled core"
    if not Path("/proc/self/status").is_file():
        pytest.skip("peak memory is read from /proc/self/status")
    monkeypatch.syspath_prepend(BENCH)


@pytest.mark.parametrize("name", SIZES)
def test_from_files(tmp_path: Path, record: Any, name: str) -> None:
    pytest.importorskip("orjson")
    if name == "gigabyte" and not FULL:
        pytest.skip("AHLM_BENCH_FULL is not set")
    values = write_files(tmp_path, name)
    programs = {"ours": OURS} if name == "gigabyte" else {"ours": OURS, "loop": ORJSON_AND_LOOP}
    measured = measure({key: code.format(**values) for key, code in programs.items()}, 1 if name == "gigabyte" else 3)
    size = Path(values["found"]).stat().st_size
    our_s, our_memory, score = measured["ours"]
    figures: dict[str, Any] = {
        "videos, classes, instances, predictions": SIZES[name],
        "file_mb": size / 1e6,
        "ours_s": our_s,
        "ours_peak_memory_over_file": our_memory / size,
    }
    if "loop" in measured:
        loop_s, loop_memory, expected = measured["loop"]
        assert score == pytest.approx(expected, rel=1e-9)
        figures |= {
            "orjson_and_numpy_loop_s": loop_s,
            "ratio": loop_s / our_s,
            "orjson_and_numpy_loop_peak_memory_over_file": loop_memory / size,
        }
    # the goals (3 times, 4 times the file) are read off the record: a busy machine must not fail a benchmark
    record(f"end_to_end_{name}", figures)


def test_json_libraries(tmp_path: Path, record: Any) -> None:
    """The predictions of ActivityNet's size into columns."""
    for module in ("orjson", "simdjson"):
        pytest.importorskip(module)
    values = write_files(tmp_path, "activitynet")
    measured = measure({key: code.format(**values) for key, code in READERS.items()}, 3)
    size = Path(values["found"]).stat().st_size
    answers = [answer for _, _, answer in measured.values()]
    np.testing.assert_allclose(answers, answers[0], rtol=1e-9)
    record(
        "json_libraries",
        {"file_mb": size / 1e6}
        | {key: {"s": seconds, "peak_memory_over_file": peak / size} for key, (seconds, peak, _) in measured.items()},
    )


def test_start_of_the_command(record: Any) -> None:
    """`python -m ahlm.evaluate --help`, the interpreter's own start included."""
    seconds: dict[str, list[float]] = {"help": [], "python": []}
    for _ in range(10):
        for key, arguments in (("help", ["-m", "ahlm.evaluate", "--help"]), ("python", ["-c", "pass"])):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[key].append(time.perf_counter() - start)
    record("evaluate_help", {f"{key}_s": {"min": min(s), "median": float(np.median(s))} for key, s in seconds.items()})
