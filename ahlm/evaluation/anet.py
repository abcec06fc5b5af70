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

TIOUS = np.linspace(0.5, 0.95, 10)  # the script's, which are not the exact decimals of `PROTOCOLS`


class ANETdetection:
    """Detection task of the ActivityNet challenge: same arguments, same numbers, ties included, nothing downloaded.

    As in the script, predictions in videos outside the subset are false positives. Other than there, labels unknown
    to the ground truth are left out instead of ending with `KeyError`.

    Attributes:
        tiou_thresholds: [K].
        subset, verbose, check_status, gt_fields, pred_fields: as given.
        blocked_videos: empty; the list of blocked videos is on a server that is not asked.
        activity_index: class index of each label, in order of appearance.
        ap: [K, C] after `evaluate`.
        mAP: [K] after `evaluate`.
        average_mAP: after `evaluate`.
    """

    GROUND_TRUTH_FIELDS = ("database", "taxonomy", "version")
    PREDICTION_FIELDS = ("results", "version", "external_data")

    def __init__(
        self,
        ground_truth_filename: str | Path | None = None,
        prediction_filename: str | Path | None = None,
        ground_truth_fields: Sequence[str] = GROUND_TRUTH_FIELDS,
        prediction_fields: Sequence[str] = PREDICTION_FIELDS,
        tiou_thresholds: ArrayLike = TIOUS,
        subset: str = "validation",
        verbose: bool = False,
        check_status: bool = True,
    ) -> None:
        """Read both files.

        Args:
            ground_truth_filename: ActivityNet JSON.
            prediction_filename: ActivityNet results JSON.
            ground_truth_fields: kept; a file without `taxonomy` and `version` is read all the same.
            prediction_fields: kept; a file without `version` and `external_data` is read all the same.
            tiou_thresholds: [K], above 0.
            subset: of the ground truth.
            verbose: print what was read and the result.
            check_status: kept; no video is left out as blocked.

        Raises:
            OSError: a file name is missing.
            DataError: a malformed file, or a subset without ground truth.
        """
        if not ground_truth_filename:
            raise OSError("Please input a valid ground truth file.")
        if not prediction_filename:
            raise OSError("Please input a valid prediction file.")
        self.gt_fields, self.pred_fields = ground_truth_fields, prediction_fields
        self.tiou_thresholds: NDArray[np.float64] = np.array(tiou_thresholds, np.float64).reshape(-1)
        self.subset, self.verbose, self.check_status = subset, verbose, check_status
        self.blocked_videos: list[str] = []
        self.ap: NDArray[np.float64] | None = None
        self.mAP: NDArray[np.float64] | None = None
        self.average_mAP: float | None = None
        truth_name, database = read_database(ground_truth_filename)
        videos, classes, truth = truth_instances(truth_name, select_subset(truth_name, database, subset))
        name, results, _ = read_results(prediction_filename)
        self._videos = list(dict.fromkeys([*videos, *results])) if results.keys() & set(videos) else videos
        found, _ = predicted_instances(name, results, self._videos, classes)
        _, first = np.unique(truth.class_index, return_index=True)
        appearance = np.argsort(first)  # sorted class index of each class in order of appearance
        position = np.argsort(appearance)
        self.activity_index = {classes[c]: i for i, c in enumerate(appearance.tolist())}
        self._truth = truth._replace(class_index=position[truth.class_index])
        self._found = found._replace(class_index=position[found.class_index])
        if verbose:
            print(f"[INIT] Loaded annotations from {subset} subset.")
            print(f"\tNumber of ground truth instances: {truth.size}")
            print(f"\tNumber of predictions: {found.size}")
            print(f"\tFixed threshold for tiou score: {self.tiou_thresholds}")

    @property
    def ground_truth(self) -> Any:
        """Instances of the subset as a pandas data frame: `video-id`, `t-start`, `t-end`, `label` (its index)."""
        return self._frame(self._truth)

    @property
    def prediction(self) -> Any:
        """Predictions as a pandas data frame: `video-id`, `t-start`, `t-end`, `label` (its index), `score`."""
        return self._frame(self._found).assign(score=self._found.score)

    def _frame(self, instances: Instances) -> Any:
        try:
            import pandas
        except ModuleNotFoundError:
            raise ModuleNotFoundError("data frames need pandas: pip install pandas") from None
        columns = (np.array(self._videos)[instances.video], instances.start, instances.end, instances.class_index)
        return pandas.DataFrame(dict(zip(("video-id", "t-start", "t-end", "label"), columns, strict=True)))

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
            print("[RESULTS] Performance on ActivityNet detection task.")
            print(f"\tAverage-mAP: {self.average_mAP}")
