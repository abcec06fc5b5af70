"""The evaluator against an independent, straightforward implementation of ActivityNet's algorithm, to the last bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.evaluation import ANETdetection
from ahlm.evaluation.average_precision import Instances, average_precision
from ahlm.kernels.core import core

TIOUS = [0.1, 0.25, 0.5, 0.75, 1.0]
BACKENDS = ["numpy", pytest.param("c++", marks=pytest.mark.skipif(core is None, reason="no compiled core"))]


def overlap(a: tuple[float, float], b: tuple[float, float], official: bool) -> float:
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    either = (b[1] - b[0]) + (a[1] - a[0]) - both
    if official:
        return both / either if either else math.nan
    return both / either if either > 0 else 0.0


def straightforward_class(
    truth: list[tuple[int, float, float]],
    found: list[tuple[int, float, float, float]],
    tiou: float,
    official: bool,
) -> float:
    """AP of one class at one threshold; rows are (video, start, end) and (video, start, end, score)."""
    scores = [row[3] for row in found]
    visits = np.argsort(scores)[::-1].tolist() if official else sorted(range(len(found)), key=lambda i: (-scores[i], i))
    free = [True] * len(truth)
    hits, precision, recall = 0, [], []
    for rank, i in enumerate(visits):
        video, start, end, _ = found[i]
        near = [j for j, row in enumerate(truth) if row[0] == video]
        overlaps = [overlap((start, end), truth[j][1:], official) for j in near]
        if official:
            by_overlap = np.argsort(np.array(overlaps, float))[::-1].tolist()
        else:
            by_overlap = sorted(range(len(near)), key=lambda n: (-overlaps[n], -n))
        for n in by_overlap:
            if overlaps[n] < tiou:
                break
            if free[near[n]]:
                free[near[n]] = False
                hits += 1
                break
        precision.append(hits / (rank + 1))
        recall.append(hits / len(truth))
    precision, recall = [0.0, *precision, 0.0], [0.0, *recall, 1.0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    rises = [i for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return float(np.sum([(recall[i] - recall[i - 1]) * precision[i] for i in rises]))


def straightforward(truth: Instances, found: Instances, n_classes: int, official: bool) -> np.ndarray:
    ap = np.full((len(TIOUS), n_classes), np.nan)
    for c in range(n_classes):
        rows = [
            [tuple(row) for row in zip(*(column[s.class_index == c].tolist() for column in columns), strict=True)]
            for s, columns in (
                (truth, (truth.video, truth.start, truth.end)),
                (found, (found.video, found.start, found.end, found.score)),
            )
        ]
        for k, tiou in enumerate(TIOUS):
            if rows[0]:
                ap[k, c] = straightforward_class(rows[0], rows[1], tiou, official)
    return ap


def adversarial(seed: int) -> tuple[Instances, Instances, int, int]:
    """Few distinct times and scores: ties, equal overlaps, duplicates, zero lengths, inversions, empty classes."""
    rng = np.random.default_rng(seed)
    n_videos, n_classes = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    shortest = int(rng.integers(-2, 2))

    def instances(n: int) -> Instances:
        start = 0.5 * rng.integers(0, 10, n)
        end = start + 0.5 * rng.integers(shortest, 7, n)
        return Instances(rng.integers(0, n_videos, n), rng.integers(0, n_classes, n), start, end, np.zeros(n))

    truth, found = instances(int(rng.integers(1, 25))), instances(int(rng.integers(0, 60)))
    score = rng.random(found.size) if seed % 3 == 0 else np.round(rng.random(found.size), 1)
    found = found._replace(score=score)
    copies = rng.integers(0, max(1, found.size), found.size // 4)
    return truth, found.where(np.append(np.arange(found.size), copies)), n_videos, n_classes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ties", ["stable", "official"])
def test_bit_equal(ties: str, backend: str) -> None:
    unusual = np.array([np.nan, np.inf, -np.inf, -1.0, -0.0])
    for seed in range(1000 if backend == "c++" else 100):
        truth, found, n_videos, n_classes = adversarial(seed)
        if ties == "official" and seed % 2:
            rng = np.random.default_rng(seed)
            odd = rng.random(found.size) < 0.2
            found.score[odd] = rng.choice(unusual, int(odd.sum()))
        expected = straightforward(truth, found, n_classes, ties == "official")
        ap = average_precision(truth, found, n_videos, n_classes, np.array(TIOUS), ties=ties, backend=backend).ap
        np.testing.assert_array_equal(ap, expected, err_msg=f"seed {seed}")


def test_many_instances_and_ties_in_one_video() -> None:
    """Above 16 elements NumPy's unstable sort stops keeping the order of equal ones."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = 60
        start = rng.integers(0, 4, n).astype(float)
        truth = Instances(np.zeros(n, int), np.zeros(n, int), start, start + rng.integers(0, 3, n), np.zeros(n))
        found = truth.where(rng.integers(0, n, 4 * n))._replace(score=np.round(rng.random(4 * n), 1))
        ap = average_precision(truth, found, 1, 1, np.array(TIOUS), ties="official").ap
        np.testing.assert_array_equal(ap, straightforward(truth, found, 1, True))


def test_files_through_the_drop_in(tmp_path: Path) -> None:
    """Names, strings as numbers, unknown labels, videos of other subsets and videos without predictions."""
    for seed in range(40):
        truth, found, n_videos, n_classes = adversarial(seed)
        database: dict[str, Any] = {
            f"video {v}": {"subset": "validation", "annotations": []} for v in range(n_videos)
        } | {"other": {"subset": "training", "annotations": [{"label": "0", "segment": [0, 1]}]}}
        results: dict[str, Any] = {}
        for v, c, start, end, _ in zip(*(column.tolist() for column in truth), strict=True):
            database[f"video {v}"]["annotations"].append({"label": str(c), "segment": [str(start), end]})
        for v, c, start, end, score in zip(*(column.tolist() for column in found), strict=True):
            results.setdefault(f"video {v}", []).append({"label": str(c), "segment": [start, end], "score": score})
        results["other"] = [{"label": "0", "segment": [0, 1], "score": 0.95}]
        results.setdefault("video 0", []).append({"label": "unknown", "segment": [0, 1], "score": 1})
        files = [tmp_path / "gt.json", tmp_path / "found.json"]
        for file, content in zip(files, ({"database": database}, {"results": results}), strict=True):
            file.write_text(json.dumps(content))
        task = ANETdetection(*files, tiou_thresholds=TIOUS)
        task.evaluate()
        # predictions in the order of the file, the other subset's as one more video
        order = [
            i for video in results if video != "other" for i in np.flatnonzero(found.video == int(video.split()[1]))
        ]
        extra = Instances(*(np.array([value]) for value in (n_videos, 0, 0.0, 1.0, 0.95)))
        by_file = Instances._make(map(np.append, found.where(np.array(order, int)), extra))
        of_truth = truth.where(np.argsort(truth.video, kind="stable"))
        classes = [int(label) for label in task.activity_index]
        assert task.ap is not None
        np.testing.assert_array_equal(task.ap, straightforward(of_truth, by_file, n_classes, True)[:, classes])
