"""Seeded data with known answers: the demo's action videos, and piecewise-constant sequences for the detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahlm.config import DataConfig
from ahlm.data.annotations import Segment
from ahlm.data.dataset import FeatureDataset, Video, open_dataset
from ahlm.data.write import write_dataset
from ahlm.timeline import FeatureSpec

# RandomState, whose streams NumPy has frozen: the demo stays the same data for ever
DEMO_SEED, DEMO_DIM = 2023, 64
DEMO_CLASSES = ("Cartwheel", "Handstand", "Jump", "Spin")
DEMO_SPLITS = {"train": 40, "test": 20}
N_SCENES = 6


def piecewise_constant(
    n_videos: int,
    seed: int,
    *,
    n_snippets: int = 300,
    dim: int = 64,
    mean_length: int = 14,
    switch: float = 1.0,
    noise: float = 0.5,
    drift: float = 0.02,
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """Sequences [n_snippets, dim] that jump at known edges, under noise and a slow random walk.

    Args:
        n_videos: how many.
        seed: of everything random.
        n_snippets: snippets a sequence.
        dim: dimensions.
        mean_length: mean snippets a segment (at least 4 each, exponential beyond).
        switch: standard deviation of the segments' levels.
        noise: standard deviation of each snippet.
        drift: standard deviation of a step of the random walk.

    Returns:
        The sequences, and for each its sorted switch edges in 1 .. n_snippets - 1.
    """
    random = np.random.RandomState(seed)
    sequences, edges = [], []
    for _ in range(n_videos):
        lengths: list[int] = []
        while sum(lengths) < n_snippets:
            lengths.append(4 + int(random.exponential(mean_length - 4)))
        levels = np.repeat(switch * random.randn(len(lengths), dim), lengths, axis=0)[:n_snippets]
        walk = np.cumsum(drift * random.randn(n_snippets, dim), axis=0)
        sequences.append((levels + walk + noise * random.randn(n_snippets, dim)).astype(np.float32))
        switches = np.cumsum(lengths)
        edges.append(switches[switches < n_snippets])
    return sequences, edges


def demo_dataset(split: str) -> FeatureDataset:
    """The demo: short videos in which actions of four classes stand in context, between background scenes."""
    random = np.random.RandomState(DEMO_SEED)
    # what actions, their surroundings and empty scenes look like; context looks a little like its action
    actions = random.randn(len(DEMO_CLASSES), DEMO_DIM)
    contexts = 0.2 * actions + random.randn(len(DEMO_CLASSES), DEMO_DIM)
    scenes = random.randn(N_SCENES, DEMO_DIM)
    spec = FeatureSpec()
    splits = {
        name: [_demo_video(random, f"{name}_{i:03d}", actions, contexts, scenes, spec) for i in range(n)]
        for name, n in DEMO_SPLITS.items()
    }
    return FeatureDataset(
        splits[split], DEMO_CLASSES, spec, spec_source="demo", layout="generated demo", feature_dim=DEMO_DIM
    )


def open_split(config: DataConfig, split: str, classes: tuple[str, ...] | None = None) -> FeatureDataset:
    """A split of the user's data set, or, without a root, of the demo."""
    return demo_dataset(split) if config.root is None else open_dataset(config, split, classes)


def _demo_video(
    random: np.random.RandomState,
    name: str,
    actions: NDArray[np.float64],
    contexts: NDArray[np.float64],
    scenes: NDArray[np.float64],
    spec: FeatureSpec,
) -> Video:
    n_snippets = random.randint(60, 201)
    classes = random.choice(len(DEMO_CLASSES), size=random.randint(1, 3), replace=False)
    pieces: list[tuple[int, NDArray[np.float64], int]] = []  # length, level, class or -1
    while not pieces or sum(piece[0] for piece in pieces) < n_snippets:
        c = random.choice(classes)
        pieces.append((random.randint(5, 20), scenes[random.randint(N_SCENES)], -1))
        if random.rand() < 0.6:
            pieces.append((random.randint(3, 7), contexts[c], -1))
        pieces.append((random.randint(4, 16), actions[c], int(c)))
        if random.rand() < 0.6:
            pieces.append((random.randint(3, 7), contexts[c], -1))
    features, segments, position = [], [], 0
    for length, level, c in pieces:
        end = min(position + length, n_snippets)
        if c >= 0 and end > position:
            segments.append(Segment(position * spec.snippet_s, end * spec.snippet_s, DEMO_CLASSES[c]))
        # no two instances look alike
        features.append(level + 0.4 * random.randn(DEMO_DIM) + 0.5 * random.randn(length, DEMO_DIM))
        position += length
    array = np.concatenate(features)[:n_snippets].astype(np.float16).astype(np.float32)
    labels = tuple(sorted({segment.label for segment in segments}))
    return Video(name, array, labels, tuple(segments), spec.duration_s(n_snippets))


def write_demo(root: str | Path, layout: str = "acmnet") -> None:
    """Write the demo in one of `ahlm.data.write.LAYOUTS`, as an example of a tree that `ahlm.train` reads."""
    write_dataset(root, {split: demo_dataset(split) for split in DEMO_SPLITS}, layout, features="ahlm demo, generated")
