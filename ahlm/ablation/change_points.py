"""Change-points that DFC did not find: controls without knowledge, and the detectors that one would try first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ahlm.data.dataset import FeatureDataset
from ahlm.evaluation.boundaries import change_point_scores, true_boundaries

Features = NDArray[np.float32]
Edges = NDArray[np.int64]
Floats = NDArray[np.float64]
Reading = Callable[[Features], Any]  # features [n, F] as a detector takes them [n, Z], float32 or float64
DETECTORS = ("difference", "slow_features", "kernel_linear", "kernel_rbf", "kernel_cosine")


def control_points(kind: str, n: int, detected: Edges, seed: Sequence[int]) -> Edges:
    """Edges of a video of n snippets that know nothing of it; `random` and `uniform` are as many as were detected."""
    if kind == "every_third":
        return np.arange(3, n, 3)
    if kind == "random":
        return np.sort(np.random.default_rng(seed).choice(np.arange(1, n), len(detected), replace=False))
    return np.unique(np.rint(np.linspace(0, n, len(detected) + 2)[1:-1]).astype(np.int64))


class Fitted(NamedTuple):
    """A detector of edges, its settings, and the F1 that chose them."""

    detect: Callable[[Features], Edges]
    settings: dict[str, Any]
    f1: float


class Candidate(Protocol):
    """A detector with one number left open: the level above which a change counts."""

    def settings(self) -> dict[str, Any]:
        """What it is, in words for the output."""

    def detect(self, video: Features, level: float) -> Edges:
        """Sorted edges in 1 .. n-1."""

    def sweep(self, videos: Sequence[Features]) -> Iterator[tuple[float, list[Edges]]]:
        """Levels worth trying and the edges of every video at each."""


def fit(kind: str, training: FeatureDataset, tuning: FeatureDataset) -> Fitted:
    """One of `DETECTORS`: statistics from the training features, the best F1 at one snippet on `tuning`.

    Raises:
        ModuleNotFoundError: the kernel detectors need ruptures.
    """
    videos = [training.features(i) for i in range(len(training))]
    tuned, truth = [tuning.features(i) for i in range(len(tuning))], boundaries(tuning)
    lengths = [len(video) for video in tuned]
    best: Fitted | None = None
    for candidate in _candidates(kind, videos):
        for level, found in candidate.sweep(tuned):
            f1 = change_point_scores(found, truth, lengths).f1
            if best is None or f1 > best.f1:
                settings = {**candidate.settings(), "level": float(level)}
                best = Fitted(partial(candidate.detect, level=level), settings, f1)
    assert best is not None
    return best


def boundaries(dataset: FeatureDataset) -> list[Floats]:
    """True boundaries of every video, in snippets."""
    return [
        true_boundaries([(s.start_s, s.end_s) for s in video.segments], dataset.spec, dataset.n_snippets(i))
        for i, video in enumerate(dataset.videos)
    ]


def _candidates(kind: str, videos: Sequence[Features]) -> Iterator[Candidate]:
    snippets = np.concatenate(videos)
    mean, deviation = snippets.mean(0), snippets.std(0)
    scale = np.where(deviation > 0, deviation, np.inf)
    readings: dict[str, Reading] = {
        "raw": lambda video: video,
        "standardised": lambda video: (video - mean) / scale,
        "squashed": lambda video: np.tanh((video - mean) / scale),
    }
    if kind == "slow_features":
        # the projection has its own scaling
        del readings["standardised"]
        readings = {name: after for before in readings.items() for name, after in _slow_readings(*before, videos)}
    if kind in ("difference", "slow_features"):
        for name, read in readings.items():
            for window in range(1, 7):
                for distance in (1, 2, 3):
                    yield Differences(name, read, window, distance)
        return
    kernel = kind.removeprefix("kernel_")
    for name, read in readings.items():
        # the linear kernel's costs are sums of squares; those of the others lie between 0 and 2 a snippet
        unit = float(read(snippets).var(0).sum()) if kernel == "linear" else 1.0
        for min_size in (1, 2):
            yield KernelPartition(name, read, kernel, min_size, unit)


def _slow_readings(name: str, read: Reading, videos: Sequence[Features]) -> Iterator[tuple[str, Reading]]:
    for size, projection in slow_projections([read(video) for video in videos]).items():
        yield f"{name}, {size}", partial(_projected, read, projection)


def _projected(read: Reading, projection: Floats, video: Features) -> Floats:
    projected: Floats = read(video) @ projection
    return projected


@dataclass(frozen=True)
class Differences:
    """Edges where the snippets after differ most from those before."""

    name: str
    read: Reading
    window: int
    distance: int

    def settings(self) -> dict[str, Any]:
        """What it reads, snippets on either side, distance between edges."""
        return {"features": self.name, "window": self.window, "distance": self.distance}

    def detect(self, video: Features, level: float) -> Edges:
        """Peaks above a level."""
        edges, height = self._peaks(video)
        return edges[height > level]

    def sweep(self, videos: Sequence[Features]) -> Iterator[tuple[float, list[Edges]]]:
        """Levels that leave up to 40 % of the edges."""
        peaks = [self._peaks(video) for video in videos]
        heights = np.concatenate([height for _, height in peaks])
        n_edges = sum(len(video) - 1 for video in videos)
        for share in np.geomspace(0.01, 0.4, 40):
            level = float(np.sort(heights)[-min(len(heights), max(1, round(share * n_edges)))])
            yield level, [edges[height > level] for edges, height in peaks]

    def _peaks(self, video: Features) -> tuple[Edges, Floats]:
        scores = difference_scores(self.read(video), self.window)
        edges = peaks(scores, self.distance)
        return edges, scores[edges]


def difference_scores(features: Floats, window: int) -> Floats:
    """Distance of the mean of the `window` snippets after each edge from that of those before it [n], 0 at edge 0."""
    n = len(features)
    sums = np.concatenate([np.zeros((1, features.shape[1])), features.cumsum(0)])
    edge = np.arange(1, n)
    first, last = np.maximum(edge - window, 0), np.minimum(edge + window, n)
    before = (sums[edge] - sums[first]) / (edge - first)[:, None]
    after = (sums[last] - sums[edge]) / (last - edge)[:, None]
    return np.concatenate([[0.0], np.linalg.norm(after - before, axis=1)])


def peaks(scores: Floats, distance: int) -> Edges:
    """Edges taken by falling score, none nearer than `distance` to one taken before; sorted. Edge 0 is none."""
    blocked = np.zeros(len(scores), bool)
    chosen = []
    for edge in np.argsort(-scores[1:], kind="stable") + 1:
        if not blocked[edge]:
            chosen.append(edge)
            blocked[max(0, edge - distance + 1) : edge + distance] = True
    return np.sort(np.array(chosen, np.int64))


def slow_projections(videos: Sequence[Features], sizes: Sequence[int] = (4, 8, 16, 32)) -> dict[str, Floats]:
    """Linear projections [F, Z] in which a video varies most against what changes from snippet to snippet.

    The noise covariance is that of the differences of neighbours, without the fifth that are largest: boundaries are
    among them, and they are what the projection should keep.
    """
    snippets = np.concatenate(videos).astype(np.float64)
    scale = 1 / (snippets.std(0) + 1e-3)
    steps = np.concatenate([np.diff(video.astype(np.float64), axis=0) for video in videos]) * scale
    length = np.linalg.norm(steps, axis=1)
    quiet = steps[length <= np.quantile(length, 0.8)]
    noise = quiet.T @ quiet / len(quiet)
    # a dimension that hardly moves must not become a slow one by rounding
    values, vectors = np.linalg.eigh(noise + 1e-3 * np.trace(noise) / len(noise) * np.eye(len(noise)))
    whitening = vectors / np.sqrt(values)
    _, directions = np.linalg.eigh(np.cov((snippets * scale @ whitening).T))
    slowest_first = scale[:, None] * (whitening @ directions[:, ::-1])
    return {f"{z} slow features": slowest_first[:, :z] for z in sizes if z <= len(scale)}


@dataclass(frozen=True)
class KernelPartition:
    """`ruptures.KernelCPD`: the partition of least cost under a penalty a change-point."""

    name: str
    read: Reading
    kernel: str
    min_size: int
    unit: float

    def settings(self) -> dict[str, Any]:
        """What it reads and the shortest segment; the level is the penalty in units of a snippet's variance."""
        return {"features": self.name, "kernel": self.kernel, "min_size": self.min_size}

    def detect(self, video: Features, level: float) -> Edges:
        """Edges of the best partition at a penalty of `level` units."""
        return self._edges(self._model(video), level)

    def sweep(self, videos: Sequence[Features]) -> Iterator[tuple[float, list[Edges]]]:
        """Penalties from next to nothing to 20 snippets' variance."""
        models = [self._model(video) for video in videos]
        for level in np.geomspace(0.02, 20, 40):
            yield float(level), [self._edges(model, level) for model in models]

    def _model(self, video: Features) -> Any:
        if len(video) < 2 * self.min_size:
            return None
        return import_ruptures().KernelCPD(kernel=self.kernel, min_size=self.min_size).fit(self.read(video))

    def _edges(self, model: Any, level: float) -> Edges:
        return np.array([] if model is None else model.predict(pen=level * self.unit)[:-1], np.int64)


def import_ruptures() -> Any:
    """The package; raises `ModuleNotFoundError` with the remedy where the extra is missing."""
    try:
        import ruptures
    except ModuleNotFoundError:
        raise ModuleNotFoundError("KernelCPD needs ruptures: pip install 'ahlm[bench]'") from None
    return ruptures
