"""The scans on a GPU against cuDNN's `nn.GRU(64, 256)` and the eager loop, by CUDA events.

`gpu.sh` runs its parts one by one, so that one that fails loses nothing but itself; each row is on the disk before the
next begins.
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahlm.files import write_json
from ahlm.kernels.change_point_scan import ScanOutput, ScanRules, ScanStreams, ScanWeights, change_point_scan
from ahlm.kernels.change_point_scan.linear_backward import scan_linear_backward
from ahlm.kernels.compiled import gpu_module
from ahlm.kernels.cuda import FEW_VIDEOS, installed
from ahlm.kernels.snippet_scan import SnippetOutput, SnippetWeights, snippet_scan
from ahlm.kernels.snippet_scan.linear_backward import snippet_linear_backward

Z, H = 64, 256
MOST_BACKWARD = 1024  # videos: what the backward keeps of 4,096 of 750 snippets, 113 GiB and more, no H100 has
READINGS = {
    "filtered": ScanRules(),
    "literal": ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0),
}
DEVICE = torch.device("cuda")


def inputs(rules: ScanRules, batch: int, n: int, ragged: bool = False) -> dict[str, Any]:
    """Seeded, on the device."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, device=DEVICE)

    wanted = (True, rules.uses_prior, rules.uses_posterior)
    streams = [draw(batch, n, 2 * Z) if there else None for there in wanted]
    small = H**-0.5
    weights = ScanWeights(
        draw(3 * H, Z, scale=small),
        draw(3 * H, H, scale=small),
        draw(3 * H, scale=0.1),
        draw(3 * H, scale=0.1),
        draw(2 * Z, H, scale=small),
        None if rules.change_prior == "full" else draw(2 * Z, scale=0.1),
        draw(2 * Z, H, scale=small) if rules.uses_posterior else None,
        draw(H),
    )
    lengths = torch.full((batch,), n, device=DEVICE)
    if ragged:
        lengths[1::2] = max(1, n // 2)
    return {
        "streams": ScanStreams(*streams),  # type: ignore[arg-type]
        "weights": weights,
        "rules": rules,
        "noise": draw(batch, n, Z),
        "lengths": lengths,
        "forced_changes": None,
    }


def snippet_inputs(batch: int, n: int, ragged: bool = False) -> dict[str, Any]:
    """Those of the literal reading, with a change at every tenth snippet."""
    given = inputs(READINGS["literal"], batch, n, ragged)
    streams, weights = given["streams"], given["weights"]
    heads = (weights.prior_state, weights.posterior_state, weights.initial_state)
    changes = (torch.arange(n, device=DEVICE) % 10 == 9).expand(batch, n).contiguous()
    rest = {"noise": given["noise"], "change_points": changes, "lengths": given["lengths"]}
    return {
        "prior_stream": streams.prior,
        "posterior_stream": streams.posterior,
        "weights": SnippetWeights(*weights[:4], *heads),
        **rest,
    }


def milliseconds(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Least and median time of a call on the device, after two to warm up."""
    times = []
    for i in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return {"min_ms": min(times), "median_ms": statistics.median(times)}


def attempt(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """`milliseconds`, or the error."""
    try:
        return dict(milliseconds(run, repeats))
    except Exception as error:  # Triton's are no RuntimeErrors
        return {"error": str(error)[:300]}


class Times:
    """Rows of one part, written down one by one."""

    def __init__(self, part: str, batch: int, n: int, repeats: int, keep: Callable[[dict[str, Any]], None]) -> None:
        self.part, self.batch, self.n, self.repeats, self.keep = part, batch, n, repeats, keep

    def add(self, name: str, reading: str, direction: str, run: Callable[[], Any], **more: Any) -> None:
        """Measure a call; `more` stands in its row."""
        found = attempt(run, 2 if name.startswith("eager") else self.repeats)
        if "min_ms" in found:
            found["us_per_step"] = 1e3 * found["min_ms"] / self.n
        row = {"what": name, "reading": reading, "direction": direction, "batch": self.batch, "snippets": self.n}
        self.keep({**row, **found, **more})

    def measure(self) -> None:
        """`nn.GRU` and the eager loops, or the kernels `triton` or `cuda` of both scans."""
        if self.part == "baselines":
            for name, dtype, tf32 in (
                ("nn.GRU fp32", torch.float32, False),
                ("nn.GRU tf32", torch.float32, True),
                ("nn.GRU fp16", torch.float16, False),
            ):
                torch.backends.cudnn.allow_tf32 = tf32
                self.gru(name, dtype)
        for reading, rules in READINGS.items():
            self.change_points(reading, rules)
        self.snippets()

    def gru(self, name: str, dtype: torch.dtype) -> None:
        """What a user would take instead."""
        gru = torch.nn.GRU(Z, H, batch_first=True).to(DEVICE, dtype)
        x = torch.randn(self.batch, self.n, Z, device=DEVICE, dtype=dtype, requires_grad=True)
        with torch.inference_mode():
            self.add(name, "-", "forward", lambda: gru(x))
        leaves = [x, *gru.parameters()]
        if self.batch <= MOST_BACKWARD:
            self.add(name, "-", "forward + backward", lambda: torch.autograd.grad(gru(x)[0].sum(), leaves))

    def change_points(self, reading: str, rules: ScanRules) -> None:
        """The change-point scan in one reading."""
        given = inputs(rules, self.batch, self.n)
        eager = partial(change_point_scan, **given, backend="reference")
        if self.part == "baselines":
            if self.batch <= 64:
                self.add("eager", reading, "forward", eager)
            return
        kernel = gpu_module(self.part, "change_point_scan")
        known = {name: value for name, value in given.items() if name != "forced_changes"}
        for precision in ("fp32", "fp16"):
            forward = partial(kernel.forward, **given, precision=precision)

            def both(forward: Any = forward, precision: str = precision) -> Any:
                output = forward()
                ones = ScanOutput(output[0], *map(torch.ones_like, output[1:]))
                return scan_linear_backward(kernel.solver(precision), ones, output, **known)

            try:
                differ = int((forward().change_points != eager().change_points).sum())
            except Exception:  # `add` says what
                differ = None
            counts = {"decisions": self.batch * self.n, "decisions_that_differ": differ}
            self.add(f"{self.part} {precision}", reading, "forward", forward, **counts)
            if self.batch <= MOST_BACKWARD:
                self.add(f"{self.part} {precision}", reading, "forward + backward", both)

    def snippets(self) -> None:
        """The snippet scan."""
        given = snippet_inputs(self.batch, self.n)
        if self.part == "baselines":
            if self.batch <= 64:
                self.add("eager snippets", "-", "forward", partial(snippet_scan, **given, backend="reference"))
            return
        kernel = gpu_module(self.part, "snippet_scan")
        for precision in ("fp32", "fp16"):
            forward = partial(kernel.forward, **given, precision=precision)

            def both(forward: Any = forward, precision: str = precision) -> Any:
                output = forward()
                ones = SnippetOutput(*map(torch.ones_like, output))
                return snippet_linear_backward(kernel.solver(precision), ones, output, **given)

            self.add(f"{self.part} {precision} snippets", "-", "forward", forward)
            if self.batch <= MOST_BACKWARD:
                self.add(f"{self.part} {precision} snippets", "-", "forward + backward", both)


def small(kernel: str) -> None:
    """Small cases, forward and reverse, for compute-sanitizer; the kernels for few videos and those for many."""
    scan, snippet = gpu_module(kernel, "change_point_scan"), gpu_module(kernel, "snippet_scan")
    for batch in (10, FEW_VIDEOS + 4):
        for precision in ("fp32", "fp16"):
            for rules in READINGS.values():
                given = inputs(rules, batch, 6, ragged=True)
                output = scan.forward(**given, precision=precision)
                del given["forced_changes"]
                scan_linear_backward(scan.solver(precision), output, output, **given)
            snippets = snippet_inputs(batch, 6, ragged=True)
            found = snippet.forward(**snippets, precision=precision)
            snippet_linear_backward(snippet.solver(precision), found, found, **snippets)
    torch.cuda.synchronize()


def trainer(n_snippets: int = 800, n_features: int = 2048, config: Any = None) -> Any:
    """A trainer at the default sizes, on synthetic videos long enough for them."""
    from ahlm.config import Config
    from ahlm.data.dataset import FeatureDataset, Video
    from ahlm.timeline import FeatureSpec
    from ahlm.train import Trainer, new_model

    rng = np.random.default_rng(0)
    classes = tuple(f"class {c}" for c in range(20))
    videos = [
        Video(f"v{i}", rng.normal(size=(n_snippets, n_features)).astype(np.float32), (classes[i % 20],))
        for i in range(32)
    ]
    dataset, config = FeatureDataset(videos, classes, FeatureSpec()), config or Config()
    return Trainer(new_model(dataset, config), dataset, config, str(DEVICE))


def step_times(backend: str, repeats: int, **options: Any) -> dict[str, Any]:
    """A training step with one implementation of the scans, or the error that kept it from running."""
    os.environ["AHLM_BACKEND"] = backend
    step = trainer(**options).train_step
    return {"backend": backend, **attempt(step, 2 if backend == "reference" else repeats)}


def profile() -> dict[str, Any]:
    """Where one training step spends its time."""
    stepping = trainer()
    for _ in range(2):
        stepping.train_step()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        stepping.train_step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:25]
    return {event.key: {"us": event.self_device_time_total, "calls": event.count} for event in events}


def main() -> None:
    """One part, its result in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["small", "resources", "baselines", "triton", "cuda", "steps", "profile"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kernel", choices=["triton", "cuda", "reference"], default="cuda", help="of small and steps")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 512, 4096])
    parser.add_argument("--snippets", type=int, default=750)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # a step without the kernel that is asked for is none to report
    warnings.filterwarnings("error", message="the .* kernel is off")
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        print(row, flush=True)
        rows.append(row)
        write_json(options.output, rows)

    if options.part == "small":
        small(options.kernel)
    elif options.part == "resources":
        library = installed()
        if library is None:
            raise SystemExit("the CUDA kernels are not installed")
        write_json(options.output, library.resources(DEVICE))
    elif options.part == "steps":
        keep(step_times(options.kernel, options.repeats))
    elif options.part == "profile":
        write_json(options.output, profile())
    else:
        for batch in options.batches:
            Times(options.part, batch, options.snippets, options.repeats, keep).measure()


if __name__ == "__main__":
    main()
