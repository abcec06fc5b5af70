"""A whole training step with the compiled scans against the same step with the reference scans.

Shapes of the recipe `ucf15` on seeded synthetic videos (200 of 60 to 200 snippets, 256 dimensions, 10 classes): as it
is, with the GRU's prior at a change, in the literal reading of eqs. 4-8, and with that and level 1's GRU. Prints the
five largest items of the profile under both backends; the same weights and draws on both sides.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ahlm.ablation.rows import LITERAL, replaced
from ahlm.arguments import load_recipe
from ahlm.config import Config
from ahlm.data.dataset import FeatureDataset, Video
from ahlm.timeline import FeatureSpec
from ahlm.train import Trainer, new_model

N_VIDEOS, N_FEATURES, N_CLASSES = 200, 256, 10
BACKENDS = ("reference", "cpu")
# the recipe's detector has no GRU at all, the paper's one at either level
READINGS: dict[str, Mapping[str, Any]] = {
    "recipe": {},
    "gru": {"detector.change_prior": "state"},
    "literal": LITERAL,
    "paper": LITERAL | {"detector.level1": "gru"},
}


@contextmanager
def scans(backend: str) -> Iterator[None]:
    """Scans of this backend for a while."""
    before = os.environ.get("AHLM_BACKEND")
    os.environ["AHLM_BACKEND"] = backend
    try:
        yield
    finally:
        del os.environ["AHLM_BACKEND"]
        if before is not None:
            os.environ["AHLM_BACKEND"] = before


def new_trainer(config: Config) -> Trainer:
    """A trainer on synthetic videos; the same for the same config."""
    rng = np.random.default_rng(0)
    classes = tuple(f"class {c}" for c in range(N_CLASSES))
    videos = [
        Video(f"v{i}", rng.normal(size=(rng.integers(60, 200), N_FEATURES)).astype(np.float32), (classes[i % 10],))
        for i in range(N_VIDEOS)
    ]
    dataset = FeatureDataset(videos, classes, FeatureSpec())
    return Trainer(new_model(dataset, config), dataset, config)


def step_seconds(config: Config, steps: int) -> dict[str, list[float]]:
    """Sorted seconds of a step for each backend, their steps taken in turns so that a busy machine is fair to both."""
    trainers = {backend: new_trainer(config) for backend in BACKENDS}
    taken: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for i in range(steps + 2):
        losses = []
        for backend, trainer in trainers.items():
            with scans(backend):
                start = time.perf_counter()
                losses.append(trainer.train_step()["loss_dfc"])
            if i >= 2:
                taken[backend].append(time.perf_counter() - start)
        if i == 0:
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    return {backend: sorted(values) for backend, values in taken.items()}


def largest_items(config: Config, backend: str, steps: int = 4) -> tuple[list[tuple[str, float]], float]:
    """The five operators with the most time of their own, and the share of the scans, in shares of a step."""
    trainer = new_trainer(config)
    with scans(backend):
        trainer.train_step()
        start = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as record:
            for _ in range(steps):
                trainer.train_step()
        total = 1e6 * (time.perf_counter() - start)
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    # on other threads than this one, autograd's too, so shares may add up to more than one
    shares = [(event.key, event.self_cpu_time_total / total) for event in events]
    # the op, its backward, and the autograd node around them, in whose own time the forward stands
    scan_share = sum(share for name, share in shares if "ahlm" in name)
    return shares[:5], scan_share


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.benchmark(group="training step, shapes of ucf15, both modules")
def test_training_step(benchmark: Any, record: Any, reading: str) -> None:
    torch.set_num_threads(2)
    config = replaced(load_recipe("ucf15", seed=0), READINGS[reading])
    taken = step_seconds(config, steps=40)
    ratio = median(taken["reference"]) / median(taken["cpu"])
    figures: dict[str, Any] = {
        "seconds_a_step": {name: {"min": min(t), "median": median(t)} for name, t in taken.items()},
        "times_faster": ratio,
    }
    for backend in BACKENDS:
        items, scan_share = largest_items(config, backend)
        figures[f"largest_items_{backend}"] = dict(items)
        if backend == "cpu":
            figures["share_of_scans"] = scan_share
    trainer = new_trainer(config)
    benchmark.pedantic(trainer.train_step, rounds=5, warmup_rounds=1)
    record(f"training_step_{reading}", figures)
