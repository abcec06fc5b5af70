"""`localize` against the per-class, per-threshold Python loop that the field's repositories use, same detections.

Synthetic videos of THUMOS14's size, no refinement (see `bench_lcs.py`), proposals from thresholds: the only ones that
the loop knows.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import pytest

from ahlm.config import LocalizationConfig, RefinementConfig
from ahlm.localization import localize
from ahlm.timeline import FeatureSpec

N_SNIPPETS, N_CLASSES, N_VIDEOS = 750, 20, 8
CONFIG = LocalizationConfig(proposals="thresholds", gamma=0.2)
OFF = RefinementConfig(enabled=False)


class Video(NamedTuple):
    """Input of `localize`."""

    cas: np.ndarray
    scores: np.ndarray
    points: np.ndarray
    features: np.ndarray


@pytest.fixture(scope="module")
def videos() -> list[Video]:
    """Smooth CAS of 20 classes, of which three pass the class threshold."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(N_VIDEOS):
        noise = rng.normal(size=(N_CLASSES, N_SNIPPETS + 8))
        smooth = np.stack([np.convolve(row, np.ones(9) / 9, "valid") for row in noise], axis=1)
        scores = np.full(N_CLASSES, 0.01)
        scores[rng.choice(N_CLASSES, 3, replace=False)] = 0.28
        points = np.flatnonzero(rng.random(N_SNIPPETS) < 0.1)
        features = rng.normal(size=(N_SNIPPETS, 256)).astype(np.float32)
        made.append(Video(np.clip(1.2 * smooth + 0.2, 0, 1), scores, points[points > 0], features))
    return made


def localize_loop(video: Video, config: LocalizationConfig) -> list[tuple[int, float, float, float]]:
    """One class, one threshold, one proposal at a time; NMS with an array of overlaps a step."""
    n, up = len(video.cas), config.upsample
    at = (np.arange(n * up) + 0.5) / up - 0.5
    found = []
    for c in np.flatnonzero(video.scores > config.class_threshold):
        values = np.interp(at, np.arange(n), video.cas[:, c])
        dense = np.repeat(video.cas[:, c], up)
        candidates = []
        for threshold in config.cas_thresholds:
            where = np.flatnonzero(values > threshold)
            if not len(where):
                continue
            for group in np.split(where, np.flatnonzero(np.diff(where) != 1) + 1):
                a, b = int(group[0]), int(group[-1]) + 1
                inner = dense[a:b].mean()
                margin = round(config.oic_margin * (b - a))
                outer = np.concatenate([dense[max(0, a - margin) : a], dense[b : b + margin]])
                score = inner - (outer.mean() if len(outer) else 0.0) + config.gamma * video.scores[c]
                candidates.append((score, a / up * 0.64, b / up * 0.64))
        rows = np.array(candidates)
        order = np.argsort(-rows[:, 0])
        while len(order):
            best, rest = rows[order[0]], order[1:]
            found.append((int(c), *best))
            both = np.maximum(0, np.minimum(best[2], rows[rest, 2]) - np.maximum(best[1], rows[rest, 1]))
            union = (best[2] - best[1]) + (rows[rest, 2] - rows[rest, 1]) - both
            order = rest[both / union <= config.nms_tiou]
    return found


def ours(video: Video, config: LocalizationConfig, refinement: RefinementConfig = OFF) -> Any:
    edges = FeatureSpec().edges_s(N_SNIPPETS)
    return localize(
        video.cas,
        video.scores,
        None,
        video.points,
        edges,
        float(edges[-1]),
        config=config,
        refinement=refinement,
        similarity_features=video.features,
    )


@pytest.mark.benchmark(group=f"localisation of {N_VIDEOS} videos of {N_SNIPPETS} snippets, proposals from thresholds")
def test_against_the_loop(benchmark: Any, record: Any, videos: list[Video]) -> None:
    for video in videos:
        expected, found = localize_loop(video, CONFIG), ours(video, CONFIG)
        # the loop rounds its margins to points: scores and hence a few choices of the NMS differ
        segments = {(c, round(a, 6), round(b, 6)) for c, _, a, b in expected}
        columns = (found.class_index.tolist(), found.start_s.round(6).tolist(), found.end_s.round(6).tolist())
        mine = set(zip(*columns, strict=True))
        assert len(segments & mine) >= 0.8 * max(len(segments), len(mine))
    benchmark(lambda: [ours(video, CONFIG) for video in videos])
    times: list[list[float]] = [[], []]
    for _ in range(5):
        for taken, function in zip(times, (localize_loop, ours), strict=True):
            start = time.perf_counter()
            for video in videos:
                function(video, CONFIG)
            taken.append(time.perf_counter() - start)
    ratio = min(times[0]) / min(times[1])
    # the goal (10 times) is read off the record: a busy machine must not fail a benchmark
    record("localization", {"videos_a_second": N_VIDEOS / min(times[1]), "ratio_to_python_loop": ratio})


@pytest.mark.benchmark(group=f"localisation of {N_VIDEOS} videos of {N_SNIPPETS} snippets with the LCS step")
@pytest.mark.parametrize("proposals", ["change_points", "both"])
def test_with_change_points(benchmark: Any, videos: list[Video], proposals: str) -> None:
    config = LocalizationConfig(proposals=proposals)  # type: ignore[arg-type]
    found = benchmark(lambda: [ours(video, config, RefinementConfig()) for video in videos])
    assert all(len(each.score) for each in found)
