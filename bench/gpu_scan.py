"""The change-point scan on a GPU against cuDNN's `nn.GRU(64, 256)` and the eager loop, by CUDA events.

`gpu.sh` runs its parts one by one, so that one that fails loses nothing but itself.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.config import Config
from ahlm.data.synthetic import demo_dataset
from ahlm.files import write_json
from ahlm.kernels.change_point_scan import ScanOutput, ScanRules, ScanStreams, ScanWeights, change_point_scan
from ahlm.kernels.change_point_scan import fused_cuda as fused
from ahlm.kernels.compiled import gpu_module
from ahlm.kernels.cuda import FEW_VIDEOS, installed
from ahlm.kernels.snippet_scan import SnippetOutput, SnippetWeights, snippet_scan
from ahlm.kernels.snippet_scan import fused_cuda as fused_snippets
from ahlm.train import Trainer, new_model

Z, H = 64, 256
READINGS = {
    "filtered": ScanRules(),
    "literal": ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0),
}
DEVICE = torch.device("cuda")


def inputs(rules: ScanRules, batch: int, n: int) -> dict[str, Any]:
    """Seeded, ragged, on the device."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, device=DEVICE)

    literal = rules.change_prior == "full"
    streams = [draw(batch, n, 2 * Z) if wanted else None for wanted in (True, literal, literal)]
    small = H**-0.5
    weights = ScanWeights(
        draw(3 * H, Z, scale=small),
        draw(3 * H, H, scale=small),
        draw(3 * H, scale=0.1),
        draw(3 * H, scale=0.1),
        draw(2 * Z, H, scale=small),
        None if literal else draw(2 * Z, scale=0.1),
        draw(2 * Z, H, scale=small) if literal else None,
        draw(H),
    )
    lengths = torch.full((batch,), n, device=DEVICE)
    lengths[1::2] = max(1, n // 2)
    return {
        "streams": ScanStreams(*streams),  # type: ignore[arg-type]
        "weights": weights,
        "rules": rules,
        "noise": draw(batch, n, Z),
        "lengths": lengths,
        "forced_changes": None,
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
    except (RuntimeError, RuntimeWarning, ValueError) as error:
        return {"error": str(error)[:300]}


def with_backward(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    """The same and its gradients."""
    return lambda: torch.autograd.grad(run(), leaves)


def kernels(scan: str) -> Iterator[tuple[str, Any, str]]:
    """Name, module and precision of every kernel of a scan."""
    for kernel in ("cuda", "triton"):
        for precision in ("fp32", "fp16"):
            yield f"{kernel} {precision}", gpu_module(kernel, scan), precision


def measure(batch: int, n: int, repeats: int) -> list[dict[str, Any]]:
    """A row an implementation, reading and direction."""
    rows = []

    def add(name: str, reading: str, direction: str, run: Callable[[], Any], times: int = repeats) -> None:
        found = attempt(run, times)
        if "min_ms" in found:
            found["us_per_step"] = 1e3 * found["min_ms"] / n
        rows.append({"what": name, "reading": reading, "direction": direction, "batch": batch, "snippets": n, **found})
        print(rows[-1], flush=True)

    for dtype in (torch.float32, torch.float16):
        gru = torch.nn.GRU(Z, H, batch_first=True).to(DEVICE, dtype)
        x = torch.randn(batch, n, Z, device=DEVICE, dtype=dtype, requires_grad=True)
        name = f"nn.GRU {str(dtype).removeprefix('torch.')}"
        with torch.inference_mode():
            add(name, "-", "forward", lambda gru=gru, x=x: gru(x))
        both = with_backward(lambda gru=gru, x=x: gru(x)[0].sum(), [x, *gru.parameters()])  # type: ignore[misc]
        add(name, "-", "forward + backward", both)
    for reading, rules in READINGS.items():
        given = inputs(rules, batch, n)
        eager = partial(change_point_scan, **given, backend="reference")
        expected = eager()
        if batch <= 64:
            add("eager", reading, "forward", eager, 2)
        ones = ScanOutput(expected[0], *(torch.ones_like(value) for value in expected[1:]))
        known = {name: value for name, value in given.items() if name != "forced_changes"}
        for name, kernel, precision in kernels("change_point_scan"):
            forward = partial(kernel.forward, **given, precision=precision)
            add(name, reading, "forward", forward)
            if "error" not in rows[-1]:
                differ = (forward().change_points != expected.change_points).sum().item()
                rows[-1] |= {"decisions": int(given["lengths"].sum()), "decisions_that_differ": differ}
            if name != "cuda fp16":  # its reverse is that of fp32
                add(name, reading, "backward", partial(kernel.backward, ones, expected, **known, precision=precision))
    given = snippet_inputs(batch, n)
    eager = partial(snippet_scan, **given, backend="reference")
    output = eager()
    if batch <= 64:
        add("eager snippets", "-", "forward", eager, 2)
    ones = SnippetOutput(*map(torch.ones_like, output))
    for name, kernel, precision in kernels("snippet_scan"):
        add(f"{name} snippets", "-", "forward", partial(kernel.forward, **given, precision=precision))
        if name != "cuda fp16":
            backward = partial(kernel.backward, ones, output, **given, precision=precision)
            add(f"{name} snippets", "-", "backward", backward)
    return rows


def snippet_inputs(batch: int, n: int) -> dict[str, Any]:
    """Those of the literal reading, with a change at every tenth snippet."""
    given = inputs(READINGS["literal"], batch, n)
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


def small() -> None:
    """Small cases, forward and reverse, for compute-sanitizer; the kernels for few videos and those for many."""
    for batch in (10, FEW_VIDEOS + 4):
        for rules in READINGS.values():
            given = inputs(rules, batch, 6)
            for precision in ("fp32", "fp16"):
                output = fused.forward(**given, precision=precision)  # type: ignore[arg-type]
            gradients = ScanOutput(output[0], *(torch.ones_like(value) for value in output[1:]))
            fused.backward(gradients, output, *(given[k] for k in ("streams", "weights", "rules", "noise", "lengths")))
        snippets = snippet_inputs(batch, 6)
        for precision in ("fp32", "fp16"):
            found = fused_snippets.forward(**snippets, precision=precision)
        fused_snippets.backward(found, found, **snippets)
    torch.cuda.synchronize()


def step_times(repeats: int) -> dict[str, Any]:
    """A training step at the default sizes with each kernel of the scans, or why the self-check refused it."""
    config, dataset, found = Config(), demo_dataset("train"), {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", message="the .* kernel is off")
        for backend in ("reference", "triton", "cuda"):
            patch.setenv("AHLM_BACKEND", backend)
            trainer = Trainer(new_model(dataset, config), dataset, config, str(DEVICE))
            found[backend] = attempt(trainer.train_step, 2 if backend == "reference" else repeats)
            print(backend, found[backend], flush=True)
    return found


def profile(device: str) -> dict[str, Any]:
    """Where one training step at the default sizes spends its time, on the demo's videos."""
    config, dataset = Config(), demo_dataset("train")
    trainer = Trainer(new_model(dataset, config), dataset, config, device)
    trainer.train_step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        trainer.train_step()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        trainer.train_step()
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))[:25]
    return {event.key: {"us": getattr(event, key), "calls": event.count} for event in events}


def main() -> None:
    """One part, its result in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["small", "resources", "times", "profile"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 512, 4096])
    parser.add_argument("--snippets", type=int, default=750)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.part == "small":
        small()
    elif options.part == "resources":
        library = installed()
        if library is None:
            raise SystemExit("the CUDA kernels are not installed")
        write_json(options.output, {"resources": library.resources(DEVICE)})
    elif options.part == "profile":
        write_json(options.output, {"training_step_ms": step_times(options.repeats), "training_step": profile("cuda")})
    else:
        rows: list[dict[str, Any]] = []
        for batch in options.batches:
            rows += measure(batch, options.snippets, options.repeats)
            write_json(options.output, {"times": rows})  # what was measured stays, should a larger batch fail


if __name__ == "__main__":
    main()
