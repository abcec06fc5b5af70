"""What is wrong with detections: false positives by kind, misses by length.

At one tIoU threshold, of the best-scored detections of each class, as many as the class has ground-truth instances,
each is one of

- `correct`: takes an instance of its class,
- `double`: overlaps an instance of its class enough, but a better detection has taken it,
- `wrong label`: overlaps an instance of another class enough,
- `localisation`: overlaps one of its class, between `LOW` and the threshold,
- `confusion`: overlaps one of another class that much,
- `background`: overlaps nothing by `LOW`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahlm.evaluation.average_precision import Instances, average_precision, temporal_iou

KINDS = ("correct", "double", "wrong label", "localisation", "confusion", "background")
LOW = 0.1
LENGTHS_S = (2.0, 4.0, 8.0, 16.0)  # bounds of the length classes of ground truth, seconds


class Diagnosis(NamedTuple):
    """Counts at one tIoU threshold.

    Attributes:
        tiou: the threshold.
        kind: index into `KINDS` of each judged detection [D].
        judged: which predictions those are [D].
        found: whether each ground-truth instance was taken [G].
        length_class: of each instance [G], an index into the classes that `LENGTHS_S` bounds.
    """

    tiou: float
    kind: NDArray[np.int64]
    judged: NDArray[np.int64]
    found: NDArray[np.bool_]
    length_class: NDArray[np.int64]

    def false_positives(self) -> dict[str, int]:
        """Judged detections by kind."""
        return {name: int((self.kind == k).sum()) for k, name in enumerate(KINDS)}

    def misses(self) -> dict[str, tuple[int, int]]:
        """Missed instances and all instances, by length."""
        bounds = ("0", *(f"{bound:g}" for bound in LENGTHS_S))
        names = [f"{a}-{b} s" for a, b in pairwise(bounds)] + [f"over {bounds[-1]} s"]
        counts = [
            (int((~self.found[m]).sum()), int(m.sum())) for m in (self.length_class == k for k in range(len(names)))
        ]
        return dict(zip(names, counts, strict=True))


def diagnose(truth: Instances, found: Instances, n_videos: int, n_classes: int, tiou: float = 0.5) -> Diagnosis:
    """Judge the best detections of each class; times in seconds."""
    order = np.argsort(-found.score, kind="stable")
    rank_in_class = np.empty(found.size, np.int64)
    for c in range(n_classes):
        members = order[found.class_index[order] == c]
        rank_in_class[members] = np.arange(len(members))
    n_truth = np.bincount(truth.class_index, minlength=n_classes)
    judged = order[rank_in_class[order] < n_truth[found.class_index[order]]]
    kept = found.where(judged)
    matched = average_precision(truth, kept, n_videos, n_classes, np.array([tiou]), want_matches=True).matched[0]
    kind = np.array([_kind(truth, kept, i, int(matched[i]), tiou) for i in range(kept.size)], np.int64)
    taken = np.zeros(truth.size, bool)
    taken[matched[matched >= 0]] = True
    return Diagnosis(tiou, kind, judged, taken, np.searchsorted(LENGTHS_S, truth.end - truth.start, side="right"))


def _kind(truth: Instances, kept: Instances, i: int, matched: int, tiou: float) -> int:
    if matched >= 0:
        return KINDS.index("correct")
    near = np.flatnonzero(truth.video == kept.video[i])
    overlap = temporal_iou(kept.start[i], kept.end[i], truth.start[near], truth.end[near])
    own = truth.class_index[near] == kept.class_index[i]
    same, other = overlap[own].max(initial=0), overlap[~own].max(initial=0)
    if same >= tiou:
        return KINDS.index("double")
    if other >= tiou:
        return KINDS.index("wrong label")
    if same >= LOW:
        return KINDS.index("localisation")
    return KINDS.index("confusion" if other >= LOW else "background")
