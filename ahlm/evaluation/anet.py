"""`ANETdetection` with the interface of ActivityNet's script, for code that was written against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahlm.evaluation.average_precision import Instances, average_precision
from ahlm.evaluation.predictions import (
    predicted_instances,
    read_database,
    read_results,
    select_subset,
    truth_instances,
)

_TIOUS = tuple(hundredths / 100 for hundredths in range(50, 100, 5))


class ANETdetection:
    """Detection task of the ActivityNet challenge: same arguments, same numbers, ties included, nothing downloaded.

    `ground_truth` and `prediction` are plain dicts of NumPy columns (`video-id`, `t-start`, `t-end`, `label`, and
    `score` of predictions) instead of data frames; labels unknown to the ground truth are left out instead of raising
    `KeyError`.

    Attributes:
        ground_truth: columns of the instances of the subset.
        prediction: columns of the predictions of its videos.
        activity_index: class index of each label, in order of appearance.
        ap: [K, C] after `evaluate`.
        mAP: [K] after `evaluate`.
        average_mAP: after `evaluate`.
    """

    def __init__(
        self,
        ground_truth_filename: str | Path,
        prediction_filename: str | Path,
        ground_truth_fields: Sequence[str] = ("database",),
        prediction_fields: Sequence[str] = ("results",),
        tiou_thresholds: ArrayLike = _TIOUS,
        subset: str = "validation",
        verbose: bool = False,
        check_status: bool = False,
    ) -> None:
        """Read both files.

        Args:
            ground_truth_filename: ActivityNet JSON.
            prediction_filename: ActivityNet results JSON.
            ground_truth_fields: accepted; `database` is all that is needed.
            prediction_fields: accepted; `results` is all that is needed.
            tiou_thresholds: [K].
            subset: of the ground truth.
            verbose: print what was read and the result.
            check_status: accepted; the list of blocked videos is not asked for, so no video is left out.

        Raises:
            DataError: a malformed file, or a subset without ground truth.
        """
        self.gt_fields, self.pred_fields = list(ground_truth_fields), list(prediction_fields)
        self.tiou_thresholds: NDArray[np.float64] = np.array(tiou_thresholds, np.float64).reshape(-1)
        self.subset, self.verbose, self.check_status = subset, verbose, check_status
        self.blocked_videos: list[str] = []
        self.ap: NDArray[np.float64] | None = None
        self.mAP: NDArray[np.float64] | None = None
        self.average_mAP: float | None = None
        truth_name, database = read_database(ground_truth_filename)
        self._videos, classes, truth = truth_instances(truth_name, select_subset(truth_name, database, subset))
        name, results, _ = read_results(prediction_filename)
        found, _ = predicted_instances(name, results, self._videos, classes)
        _, first = np.unique(truth.class_index, return_index=True)
        appearance = np.argsort(first)  # sorted class index of each class in order of appearance
        position = np.argsort(appearance)
        self.activity_index = {classes[c]: i for i, c in enumerate(appearance.tolist())}
        self._truth = truth._replace(class_index=position[truth.class_index])
        self._found = found._replace(class_index=position[found.class_index])
        self.ground_truth = self._columns(self._truth)
        self.prediction = self._columns(self._found) | {"score": self._found.score}
        if verbose:
            print(
                f"[INIT] Loaded annotations from {subset} subset.\n"
                f"\tNumber of ground truth instances: {truth.size}\n"
                f"\tNumber of predictions: {found.size}\n"
                f"\tFixed threshold for tiou score: {self.tiou_thresholds}"
            )

    def _columns(self, instances: Instances) -> dict[str, NDArray[Any]]:
        return {
            "video-id": np.array(self._videos)[instances.video],
            "t-start": instances.start,
            "t-end": instances.end,
            "label": instances.class_index,
        }

    def evaluate(self) -> None:
        """Set `ap`, `mAP` and `average_mAP`."""
        self.ap = average_precision(
            self._truth,
            self._found,
            len(self._videos),
            len(self.activity_index),
            self.tiou_thresholds,
            ties="official",
        ).ap
        self.mAP = self.ap.mean(axis=1)
        self.average_mAP = float(self.mAP.mean())
        if self.verbose:
            print(f"[RESULTS] Performance on ActivityNet detection task.\n\tAverage-mAP: {self.average_mAP}")
