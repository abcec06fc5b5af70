"""`report.html`: one self-contained page of a run's results, curves, errors and videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ahlm.data.dataset import FeatureDataset
from ahlm.evaluation import Result
from ahlm.evaluation.boundaries import split_at_boundaries, true_boundaries
from ahlm.evaluation.diagnosis import KINDS, Diagnosis, diagnose
from ahlm.files import write_text
from ahlm.infer import Detection, Predictor, VideoAnalysis
from ahlm.localization import Localization
from ahlm.report.histogram_svg import histogram_svg
from ahlm.report.timeline_svg import Bar, Timeline, timeline_svg

# what the page draws at most, so that it stays under 5 MB: videos, bytes of pictures, detections in one
MAX_VIDEOS, MAX_BYTES, MAX_DETECTIONS = 200, 4_700_000, 30
# title of a small plot, and the metrics in it with their names
CURVES: dict[str, dict[str, str]] = {
    "L_EFC": {"loss_efc": "training"},
    "L_DFC": {"loss_dfc": "training"},
    "L_seg": {"loss_segment": "training"},
    "change-points, validation": {
        "validation_f1": "F1",
        "validation_precision": "precision",
        "validation_recall": "recall",
    },
    "firing rate": {"firing_rate": "training", "validation_rate": "validation", "validation_true_rate": "true rate"},
    "validation mAP": {"validation_mAP": "mAP"},
}


class VideoRow(NamedTuple):
    """One video of the page: what is searched and sorted, and its picture."""

    id: str
    labels: tuple[str, ...]
    duration_s: float
    errors: dict[str, int]
    missed: int
    picture: Markup


def draw(predictor: Predictor, dataset: FeatureDataset, i: int, analysis: VideoAnalysis, found: Localization) -> str:
    """Picture of video i of a data set."""
    video = dataset.videos[i]
    edges_s = predictor.spec.edges_s(len(analysis.cas))
    best = int(np.argmax(analysis.video_scores.max(axis=0)))
    detections = predictor.detections(found)
    top = max((d.score for d in detections), default=1.0)
    ratio = log_ratio(analysis)
    return timeline_svg(
        Timeline(
            f"{video.id}, {edges_s[-1]:.0f} s",
            edges_s,
            [Bar(s.label, s.start_s, s.end_s) for s in video.segments],
            [
                Bar(d.label, d.start_s, d.end_s, _opacity(d, top))
                for d in detections[:MAX_DETECTIONS]
                if d.score > 0.25 * top
            ],
            analysis.attention,
            analysis.cas[:, best],
            predictor.classes[best],
            np.where(np.isfinite(ratio), ratio, np.nan),
            analysis.boundaries_s,
            analysis.boundaries_at(found.change_points),
            analysis.boundaries_at(found.foreground_change_points),
        )
    )


def log_ratio(analysis: VideoAnalysis) -> NDArray[np.float64]:
    """log(D_static / D_change) of every snippet [n], minus infinity at the first, which is not tested."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(analysis.kl_static / np.maximum(analysis.kl_change, 1e-9)), np.float64)


def ratio_histogram(predictor: Predictor, dataset: FeatureDataset, analyses: Sequence[VideoAnalysis]) -> Markup | None:
    """Picture of log(D_static / D_change) at true boundaries and elsewhere; none without a boundary."""
    parts = []
    for video, analysis in zip(dataset.videos, analyses, strict=True):
        segments = [(s.start_s, s.end_s) for s in video.segments]
        truth = true_boundaries(segments, predictor.spec, len(analysis.cas))
        parts.append(split_at_boundaries(log_ratio(analysis), truth))
    at, elsewhere = (np.concatenate(side) for side in zip(*parts, strict=True))
    if not (np.isfinite(at).any() and np.isfinite(elsewhere).any()):
        return None
    return Markup(histogram_svg(at, elsewhere, predictor.config.detector.beta_range))


def _opacity(detection: Detection, top: float) -> float:
    return float(np.clip(detection.score / max(top, 1e-9), 0.15, 1))


def errors_of(result: Result) -> tuple[Diagnosis, dict[str, tuple[dict[str, int], int]]]:
    """The diagnosis; and of every video that counts, detections by kind of error and how many instances are missed."""
    videos, classes, truth, found, _ = result.pairs
    diagnosis = diagnose(truth, found, len(videos), len(classes))
    video_of = found.video[diagnosis.judged]
    of_video = {}
    for v, name in enumerate(videos):
        kinds = np.bincount(diagnosis.kind[video_of == v], minlength=len(KINDS))
        errors = {kind: int(n) for kind, n in list(zip(KINDS, kinds, strict=True))[1:] if n}
        of_video[name] = errors, int((~diagnosis.found[truth.video == v]).sum())
    return diagnosis, of_video


def write_report(
    path: Path,
    predictor: Predictor,
    dataset: FeatureDataset,
    analyses: Sequence[VideoAnalysis],
    result: Result | None = None,
    metrics: Sequence[dict[str, Any]] = (),
    best: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    Args:
        path: where.
        predictor: the model.
        dataset: the videos that were scored, or those to draw.
        analyses: of `predictor.analyse_dataset(dataset)`.
        result: of `score`; none: the page shows curves and videos alone.
        metrics: records of metrics.jsonl, for the curves.
        best: `best` of eval.json, the checkpoint that a validation split chose; none: there was no such split.
    """
    diagnosis = None
    errors: dict[str, tuple[dict[str, int], int]] = {video.id: ({}, 0) for video in dataset.videos}
    if result is not None:
        diagnosis, errors = errors_of(result)
    counted = [i for i, video in enumerate(dataset.videos) if video.id in errors]
    rows: list[VideoRow] = []
    drawn = 0
    for i in counted[:MAX_VIDEOS]:
        video = dataset.videos[i]
        localization = predictor.localize_analysis(dataset.features(i), analyses[i], video.duration_s, predictor.config)
        picture = Markup(draw(predictor, dataset, i, analyses[i], localization))
        drawn += len(picture.encode())
        if drawn > MAX_BYTES:
            break
        duration_s = predictor.spec.duration_s(len(analyses[i].cas))
        rows.append(VideoRow(video.id, video.labels, duration_s, *errors[video.id], picture))
    environment = Environment(loader=PackageLoader("ahlm.report", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").render(
        result=result,
        step=predictor.checkpoint.step,
        best=best,
        config=predictor.config,
        dataset=dataset,
        name=Path(predictor.config.data.root).resolve().name if predictor.config.data.root else dataset.layout,
        curves=[plot for title, names in CURVES.items() if (plot := curve(metrics, title, names))],
        histogram=ratio_histogram(predictor, dataset, analyses),
        diagnosis=diagnosis,
        videos=rows,
        left_out=len(counted) - len(rows),
        all_labels=sorted({label for row in rows for label in row.labels}),
        kinds=KINDS[1:],
    )
    write_text(path, page)


class Line(NamedTuple):
    """One line of a small plot: its name, SVG points in a 300 x 80 box, first and last value."""

    name: str
    points: str
    first: float
    last: float


class Curve(NamedTuple):
    """A small plot: title, lines, and the values at its lower and upper edge."""

    title: str
    lines: list[Line]
    low: float
    high: float


def curve(metrics: Sequence[dict[str, Any]], title: str, names: Mapping[str, str], most: int = 300) -> Curve | None:
    """Some of the metrics over the steps, thinned to what a small plot can show; none where there are none."""
    found = {}
    for name, label in names.items():
        pairs = [(r["step"], float(r[name])) for r in metrics if name in r and math.isfinite(r[name])]
        if pairs:
            # thinned from its end, so that the last value is the last
            found[label] = np.array(pairs[:: -max(1, math.ceil(len(pairs) / most))][::-1])
    if not found:
        return None
    every = np.concatenate(list(found.values()))
    (first, low), (last, high) = every.min(0), every.max(0)
    lines = []
    for label, values in found.items():
        x = 300 * (values[:, 0] - first) / max(1.0, last - first)
        y = 80 * (1 - (values[:, 1] - low) / max(high - low, 1e-12))
        # a single value is a level line
        x, y = (x, y) if len(x) > 1 else (np.array([0.0, 300.0]), np.repeat(y, 2))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append(Line(label, points, float(values[0, 1]), float(values[-1, 1])))
    return Curve(title, lines, float(low), float(high))
