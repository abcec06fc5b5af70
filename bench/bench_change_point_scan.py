"""The change-point scan against `torch.nn.GRU(64, 256)` on the same batch, what a user would compare it with, and
against the reference loop.

Forward, and forward with backward; the filtered and the literal reading; change-points forced at 0, 10 and 50 % of the
snippets, and free. Answers are compared before anything is timed. Under pytest a short selection; as a script the whole
grid, which AHLM_BENCH_WRITE=1 puts into `bench/results/change_point_scan.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.kernels.change_point_scan import ScanOutput, ScanRules, ScanStreams, ScanWeights, change_point_scan
from ahlm.kernels.compiled import instruction_sets

Z, H = 64, 256
READINGS = {
    "filtered": ScanRules(),
    "literal": ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0),
}
FIRING: tuple[float | None, ...] = (None, 0.0, 0.1, 0.5)
BACKENDS = ("reference", "cpu")
LEAST_SECONDS = 1.0  # of measuring a case: a few milliseconds, timed five times, are an accident
LONG = 10000  # snippets from which on only free firing is measured, three times
MOST_ROWS = 16 * LONG  # video-steps of the largest case: 64 videos that long take minutes each
REFERENCE_ROWS = 64 * 750  # video-steps beyond which the reference is neither differentiated nor timed


class Case:
    """Seeded inputs of one size and reading."""

    def __init__(self, rules: ScanRules, batch: int, n: int, firing: float | None) -> None:
        generator = torch.Generator().manual_seed(0)

        # the scale of torch's own GRU; three times as large it is chaotic, and no two roundings stay together
        def draw(*shape: int, scale: float = H**-0.5 / 2) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

        literal = rules.change_prior == "full"
        streams = [draw(batch, n, 2 * Z, scale=1.0) if wanted else None for wanted in (True, literal, literal)]
        assert streams[0] is not None
        self.rules, self.streams = rules, ScanStreams(streams[0], streams[1], streams[2])
        self.weights = ScanWeights(
            *(draw(*shape) for shape in ((3 * H, Z), (3 * H, H), (3 * H,), (3 * H,), (2 * Z, H))),
            None if literal else draw(2 * Z),
            draw(2 * Z, H) if literal else None,
            draw(H),
        )
        self.noise = torch.randn(batch, n, Z, generator=generator)
        self.forced = None if firing is None else torch.rand(batch, n, generator=generator) < firing
        self.gru = torch.nn.GRU(Z, H, batch_first=True)
        self.gru_input = draw(batch, n, Z)

    def output(self, backend: str) -> ScanOutput:
        """All that the scan finds."""
        return change_point_scan(
            self.streams, self.weights, self.rules, noise=self.noise, forced_changes=self.forced, backend=backend
        )

    def scan(self, backend: str) -> Tensor:
        """Forward; what a loss would look at."""
        output = self.output(backend)
        return output.kl_charged.sum() + output.latent.sum()

    def library(self) -> Tensor:
        """The yardstick: the library's GRU, which does less."""
        total: Tensor = self.gru(self.gru_input)[0].sum()
        return total


def compare(found: ScanOutput, expected: ScanOutput, rules: ScanRules) -> None:
    """The same answers; of hundreds of thousands of decisions one may be a tie (eq. 7), after which a video differs."""
    differs = found.change_points != expected.change_points
    same = ~differs.any(1)
    for name in ("kl_charged", "latent", "state"):
        torch.testing.assert_close(getattr(found, name)[same], getattr(expected, name)[same], rtol=1e-3, atol=1e-3)
    for video in torch.nonzero(~same).flatten():
        first, beta = int(differs[video].int().argmax()), rules.beta0
        for changed in expected.change_points[video, 1:first].tolist():  # eq. 8
            beta = min(max(beta + (rules.alpha if changed else -rules.alpha), rules.beta_range[0]), rules.beta_range[1])
        ratio = expected.kl_static[video, first] / (beta * expected.kl_change[video, first])
        assert abs(ratio - 1) < 1e-4, f"video {video} differs at snippet {first}, where the KLs' ratio is {ratio} beta"


def seconds_of(run: Callable[[], Tensor], backward: bool) -> float:
    """Time of one run, with its backward or without gradients."""
    start = time.perf_counter()
    if backward:
        run().backward()  # type: ignore[no-untyped-call]
    else:
        with torch.inference_mode():
            run()
    return time.perf_counter() - start


def seconds(runs: Mapping[str, Callable[[], Tensor]], backward: bool, repeats: int) -> dict[str, list[float]]:
    """Times of runs that take turns, since a machine's speed drifts: `repeats` each, for `LEAST_SECONDS` at least."""
    for run in runs.values():
        seconds_of(run, backward)  # warms up
    taken: dict[str, list[float]] = {name: [] for name in runs}
    turns, began = 0, time.perf_counter()
    while turns < repeats or time.perf_counter() - began < LEAST_SECONDS:
        turns += 1
        for name, run in runs.items():
            taken[name].append(seconds_of(run, backward))
    return taken


def measure(
    reading: str, batch: int, n: int, firing: float | None, backward: bool, repeats: int, both: bool = True
) -> dict[str, Any]:
    """Times of the library and of the backends on one case, seconds; the answers are compared first."""
    case = Case(READINGS[reading], batch, n, firing)
    with torch.inference_mode():
        found = case.output("cpu")
        compare(found, case.output("reference"), case.rules)
    taken = seconds({"nn.GRU": case.library, "cpu": lambda: case.scan("cpu")}, backward, repeats)
    if both and batch * n <= REFERENCE_ROWS:
        taken["reference"] = [seconds_of(lambda: case.scan("reference"), backward)]
    row: dict[str, Any] = {
        "reading": reading,
        "batch": batch,
        "snippets": n,
        "firing": "free" if firing is None else firing,
        "change-points a snippet": found.change_points[:, 1:].float().mean().item(),
        "direction": "forward + backward" if backward else "forward",
    }
    for name, times in taken.items():
        row[name] = {"min": min(times), "median": statistics.median(times), "runs": len(times)}
    ours = row["cpu"]["median"]
    row["times faster than"] = {name: row[name]["median"] / ours for name in taken if name != "cpu"}
    row["GFLOP/s"] = 1e-9 * matrix_operations(reading, found.change_points, backward) / row["cpu"]["min"]
    return row


def matrix_operations(reading: str, change_points: Tensor, backward: bool) -> int:
    """Floating-point operations of the scan's matrix products; the reverse scan repeats them for two gradients each.

    The state has no product where it is d0: at the first snippet and at change-points.
    """
    heads = 2 if reading == "literal" else 1
    steps, states = change_points[:, :-1].numel(), int((~change_points[:, 1:-1]).sum())
    once = 2 * (steps * (3 * H * Z + heads * 2 * Z * H) + states * 3 * H * H)
    return 4 * once if backward else once


def matrix_product_rate(n: int = 2048) -> float:
    """GFLOP/s of the library on one large product: what these cores can do."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2e-9 * n**3 / min(seconds({"product": lambda: a @ b}, backward=False, repeats=5)["product"])


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("reading", sorted(READINGS))
@pytest.mark.parametrize("batch", [1, 16])
def test_scan(benchmark: Any, batch: int, reading: str, backward: bool) -> None:
    torch.set_num_threads(2)
    benchmark.group = f"scan of {batch} videos of 150 snippets, {'forward + backward' if backward else 'forward'}"
    benchmark.extra_info.update(measure(reading, batch, 150, None, backward, repeats=5))
    case = Case(READINGS[reading], batch, 150, None)
    benchmark.pedantic((lambda: case.scan("cpu").backward()) if backward else (lambda: case.scan("cpu")), rounds=5)
    print("\ntimes faster than", benchmark.extra_info["times faster than"])


def main() -> None:
    """The whole grid, a line a case."""
    from conftest import RESULTS, machine, write_json  # a script finds its neighbours, pytest's import mode does not

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--snippets", type=int, nargs="+", default=[150, 750, 10000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = machine() | {"scans_built_for": instruction_sets()[-1], "threads": options.threads}
    facts["GFLOP/s of a matrix product"] = matrix_product_rate()
    print(facts)
    rows = []
    for n in options.snippets:
        for batch in (batch for batch in options.batches if batch * n <= MOST_ROWS):
            for reading in READINGS:
                for firing in FIRING if n < LONG else (None,):
                    for backward in (False, True):
                        # firing changes the reference's time by nothing: once is enough
                        repeats = options.repeats if n < LONG else min(options.repeats, 3)
                        rows.append(measure(reading, batch, n, firing, backward, repeats, firing is None))
                        row = rows[-1]
                        ratios = ", ".join(f"{ratio:.1f}x {name}" for name, ratio in row["times faster than"].items())
                        print(
                            f"B {batch} T {n} {reading} firing {row['firing']} {row['direction']}: "
                            f"{1e3 * row['cpu']['median']:.1f} ms, {row['GFLOP/s']:.0f} GFLOP/s, {ratios}",
                            flush=True,
                        )
    if os.environ.get("AHLM_BENCH_WRITE"):
        write_json(RESULTS / "change_point_scan.json", {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
