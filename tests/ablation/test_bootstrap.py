from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ahlm.ablation.bootstrap import interval, resampled_f1, resampled_map, video_counts
from ahlm.evaluation import PROTOCOLS, evaluate
from ahlm.evaluation.boundaries import change_point_scores


def scene(seed: int, n_videos: int = 6) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections of two classes; some videos have none of one, some have no detection."""
    rng = np.random.default_rng(seed)
    database, results = {}, {}
    for v in range(n_videos):
        starts = np.sort(rng.uniform(0, 50, rng.integers(1, 5)))
        annotations = [{"label": "ab"[rng.integers(2)], "segment": [s, s + rng.uniform(2, 8)]} for s in starts.tolist()]
        database[f"v{v}"] = {"subset": "test", "duration": 60.0, "annotations": annotations}
        results[f"v{v}"] = [
            {"label": label, "segment": [start + shift, end + shift], "score": float(rng.uniform())}
            for _ in range(rng.integers(0, 3))
            for label, (start, end) in ((a["label"], a["segment"]) for a in annotations)
            for shift in (float(rng.normal(0, 1)),)
        ]
    return database, results


@pytest.mark.parametrize("protocol", ["thumos14", "activitynet-1.3"])
def test_equals_the_evaluation_of_repeated_videos(protocol: str) -> None:
    database, results = scene(0)
    counts = video_counts(len(database), 12, seed=3)
    got = resampled_map(database, results, counts, PROTOCOLS[protocol])
    for row, value in zip(counts, got, strict=True):
        # video names decide nothing but the order of equal scores, and copies stand next to each other
        names = [(f"{v}#{k}", v) for v, n in zip(database, row, strict=True) for k in range(n)]
        repeated = {
            "database": {copy: database[v] for copy, v in names},
        }
        again = {"results": {copy: results[v] for copy, v in names}}
        assert value == pytest.approx(evaluate(repeated, again, protocol, subset="test").headline, abs=1e-12)


def test_first_line_is_the_split_itself_and_the_rest_are_repeatable() -> None:
    counts = video_counts(20, 50)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 20).all()
    assert (counts == video_counts(20, 50)).all()
    assert len(np.unique(counts, axis=0)) == 51


def test_a_resample_without_instances_counts_for_nothing() -> None:
    database, results = scene(1, n_videos=3)
    for video in ("v1", "v2"):
        database[video]["annotations"] = []
    counts = np.array([[1, 1, 1], [0, 2, 1], [2, 0, 1], [3, 0, 0]])
    got = resampled_map(database, results, counts, PROTOCOLS["thumos14"])
    assert np.isnan(got).tolist() == [False, True, False, False]
    low, high = sorted(got[2:].tolist())
    assert low <= interval(got).low <= interval(got).high <= high


def test_f1_equals_that_of_repeated_videos() -> None:
    rng = np.random.default_rng(0)
    found, truth = ([np.sort(rng.choice(np.arange(1, 40), 5, replace=False)) for _ in range(4)] for _ in range(2))
    counts = video_counts(4, 10)
    for row, value in zip(counts, resampled_f1(found, truth, counts), strict=True):
        index = np.repeat(np.arange(4), row)
        scores = change_point_scores([found[i] for i in index], [truth[i] for i in index], [40] * len(index))
        assert value == pytest.approx(scores.f1)


def test_protocol_in_snippets_is_refused() -> None:
    database, results = scene(0)
    with pytest.raises(ValueError, match="thumos14-snippet"):
        resampled_map(database, results, video_counts(6, 2), PROTOCOLS["thumos14-snippet"])


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Means of 30 numbers, resampled: 95 % intervals hold the true mean in 300 trials within chance."""
    rng, counts, covered = np.random.default_rng(0), video_counts(30, 300), 0
    for _ in range(300):
        bounds = interval(counts @ rng.normal(5, 2, 30) / 30)
        covered += bounds.low <= 5 <= bounds.high
    assert 0.90 <= covered / 300 <= 0.98
