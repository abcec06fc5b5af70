"""One row of a table for one seed: trained or read, localised, evaluated, resampled, kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ahlm.ablation.bootstrap import resampled_f1, resampled_map, video_counts
from ahlm.ablation.change_points import DETECTORS, Fitted, boundaries, control_points, fit
from ahlm.ablation.rows import Row, replaced
from ahlm.ablation.trainings import Trainings, hashed
from ahlm.arguments import config_mapping
from ahlm.config import Config
from ahlm.data.dataset import FeatureDataset
from ahlm.evaluation import PROTOCOLS, evaluate
from ahlm.files import read_json, write_json
from ahlm.infer import Predictor, VideoAnalysis, of_labels, predict

STAGES = ("detected", "foreground")


class Experiment:
    """Rows on one data set. What is on disk is not computed again, whatever ended the run before.

    Everything is found again by a hash of settings, data and seed, not of the code: after a change of the package's
    own code, start in an empty folder.

    Args:
        config: the recipe.
        training: videos that both modules are trained on.
        scored: videos that rows are compared on.
        tuning: videos whose segments choose the settings of the other change-point detectors.
        folder: where trainings and rows are kept.
        device: as `select_device` gives it.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        config: Config,
        training: FeatureDataset,
        scored: FeatureDataset,
        tuning: FeatureDataset,
        folder: Path,
        device: str = "cpu",
        resamples: int = 1000,
    ) -> None:
        self.config, self.training, self.scored, self.tuning = config, training, scored, tuning
        self.folder, self.device = folder, device
        self.trainings = Trainings(folder / "trainings", training, device)
        self.counts = video_counts(len(scored), resamples)
        self._truth, self._ground_truth = boundaries(scored), scored.ground_truth("test")
        truths = [self._ground_truth, *(split.ground_truth("") for split in (training, tuning))]
        self._prints = [*truths, *(split.fingerprint for split in (training, scored, tuning))]
        self._classes = scored.segment_labels
        self._fitted: dict[str, Fitted] = {}
        self._analyses: dict[tuple[str, str, bool, float, int, int | None], tuple[Predictor, list[VideoAnalysis]]] = {}

    def row_path(self, row: Row, seed: int) -> Path:
        """File of a row's result, named after all that it depends on."""
        values = config_mapping(replaced(self.config, {**row.settings, "seed": seed}))
        used = {name: value for name, value in values.items() if name not in ("data", "device", "save_every")}
        own = [row.points, row.plain_mil, self._prints, self.counts.shape]
        return self.folder / "rows" / f"{hashed([used, own])}.json"

    def result(self, row: Row, seed: int) -> dict[str, Any]:
        """Figures of a row, from its file or made now; all values are fractions.

        Returns:
            `mAP` per threshold, `average`, and `resampled` averages; per stage of `STAGES` scores of the
            `change_points` at one snippet and `resampled_f1`; `counts` of the evaluation; `points_settings` of a
            detector tuned here. Resampled values begin with that of the whole split. No change-point figures where
            the row's proposals use none.
        """
        path = self.row_path(row, seed)
        if not path.exists():
            write_json(path, self._compute(row, replaced(self.config, {**row.settings, "seed": seed})))
        result: dict[str, Any] = read_json(path)
        return result

    def _compute(self, row: Row, config: Config) -> dict[str, Any]:
        predictor, analyses = self._analysed(config, row.plain_mil)
        analyses, settings = self._with_points(row, config.seed, analyses)
        everything = predict(predictor, self.scored, analyses, config, oracle=row.points == "oracle")
        # a validation split may lack a class; what is found of it counts for nothing, as in the evaluation of a file
        predictions = of_labels(everything, self._classes)
        result = evaluate(self._ground_truth, predictions, config.protocol, subset="test")
        samples = resampled_map(
            self._ground_truth["database"], predictions["results"], self.counts, PROTOCOLS[config.protocol]
        )
        values: dict[str, Any] = {
            "mAP": result.mAP,
            "average": result.headline,
            "resampled": [None if math.isnan(value) else value for value in samples.tolist()],
            "counts": result.counts,
            "points_settings": settings,
        }
        if config.localization.proposals != "thresholds":
            assert result.change_points is not None
            values["change_points"] = {stage: result.change_points[stage]["1"] for stage in STAGES}
            values["resampled_f1"] = {stage: self._f1(predictions["ahlm"], stage).tolist() for stage in STAGES}
        return values

    def _f1(self, extra: dict[str, Any], stage: str) -> np.ndarray[Any, Any]:
        spec = self.scored.spec
        found = [
            spec.edge_position(np.array(extra["change_points"][video.id][stage], float)) for video in self.scored.videos
        ]
        return resampled_f1(found, self._truth, self.counts)

    def _analysed(self, config: Config, plain_mil: bool) -> tuple[Predictor, list[VideoAnalysis]]:
        """The scored videos under the two trainings that a row needs; rows of one seed share them."""
        parts = (self.trainings.key(config, "classifier", plain_mil), self.trainings.key(config, "detector"))
        reading = (config.classifier.passes, config.classifier.window)
        key = (*parts, config.detector.both_directions, config.detector.lone_ratio, *reading)
        if key not in self._analyses:
            predictor = Predictor(self.trainings.checkpoint(config, plain_mil), self.device)
            self._analyses[key] = (predictor, predictor.analyse_dataset(self.scored, progress=False))
        return self._analyses[key]

    def forget_analyses(self) -> None:
        """Free the memory of the rows so far; called between seeds."""
        self._analyses.clear()

    def _with_points(
        self, row: Row, seed: int, analyses: Sequence[VideoAnalysis]
    ) -> tuple[list[VideoAnalysis], dict[str, Any] | None]:
        """The analyses with a row's change-points in the place of DFC's, and how its detector was set."""
        if row.points in ("detected", "oracle"):
            return list(analyses), None
        if row.points in DETECTORS:
            if row.points not in self._fitted:
                self._fitted[row.points] = fit(row.points, self.training, self.tuning)
            fitted = self._fitted[row.points]
            points = [fitted.detect(self.scored.features(i)) for i in range(len(analyses))]
            return self._replaced(analyses, points), {**fitted.settings, "tuning_f1": fitted.f1}
        points = [
            control_points(row.points, len(analysis.cas), analysis.change_points, [seed, i])
            for i, analysis in enumerate(analyses)
        ]
        return self._replaced(analyses, points), None

    def _replaced(
        self, analyses: Sequence[VideoAnalysis], points: Sequence[np.ndarray[Any, Any]]
    ) -> list[VideoAnalysis]:
        return [a.with_change_points(p, self.scored.spec) for a, p in zip(analyses, points, strict=True)]
