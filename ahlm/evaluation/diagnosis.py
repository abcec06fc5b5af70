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

from ahlm.evaluation.average_precision import Instances, check_finite, temporal_iou
from ahlm.kernels.core import choose_backend, core

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


def diagnose(
    truth: Instances, found: Instances, n_videos: int, n_classes: int, tiou: float = 0.5, *, backend: str = "auto"
) -> Diagnosis:
    """Judge the best detections of each class; times in seconds.

    Raises:
        ValueError: times or scores that are not finite, a threshold outside (`LOW`, 1], an unknown backend.
    """
    check_finite(truth, found)
    if not LOW < tiou <= 1:
        raise ValueError(f"tiou must be in ({LOW}, 1], got {tiou}")
    if choose_backend(backend) == "c++":
        kind, taken_by = core.diagnose(
            *truth[:4], found.video, found.class_index, found.score, found.start, found.end,
            n_videos, n_classes, tiou, LOW,
        )  # fmt: skip
    else:
        kind, taken_by = diagnose_numpy(truth, found, n_classes, tiou)
    judged = np.flatnonzero(kind >= 0)
    judged = judged[np.argsort(-found.score[judged], kind="stable")]
    lengths = np.searchsorted(LENGTHS_S, truth.end - truth.start, side="right")
    return Diagnosis(tiou, kind[judged], judged, taken_by >= 0, lengths)


def diagnose_numpy(
    truth: Instances, found: Instances, n_classes: int, tiou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The specification: kind of each detection [N], -1 if not judged; what takes each instance [G], -1 if missed."""
    kind, taken_by = np.full(found.size, -1, np.int64), np.full(truth.size, -1, np.int64)
    order = np.argsort(-found.score, kind="stable")
    for c in range(n_classes):
        for p in order[found.class_index[order] == c][: int((truth.class_index == c).sum())]:
            near = np.flatnonzero(truth.video == found.video[p])
            overlap = temporal_iou(found.start[p], found.end[p], truth.start[near], truth.end[near])
            own = truth.class_index[near] == c
            free = np.flatnonzero(own & (taken_by[near] < 0) & (overlap >= tiou))
            same, other = overlap[own].max(initial=0), overlap[~own].max(initial=0)
            if len(free):
                best = free[np.argsort(overlap[free], kind="stable")[-1]]
                taken_by[near[best]] = p
                name = "correct"
            elif same >= tiou:
                name = "double"
            elif other >= tiou:
                name = "wrong label"
            elif same >= LOW:
                name = "localisation"
            else:
                name = "confusion" if other >= LOW else "background"
            kind[p] = KINDS.index(name)
    return kind, taken_by
