"""Detections against ground truth under a protocol: one call, one result."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ahlm.errors import DataError
from ahlm.evaluation.average_precision import Instances, average_precision
from ahlm.evaluation.boundaries import score_file
from ahlm.evaluation.predictions import (
    Source,
    predicted_instances,
    read_database,
    read_results,
    select_subset,
    truth_instances,
)
from ahlm.evaluation.protocols import PROTOCOLS, Protocol


@dataclass(frozen=True)
class Result:
    """What an evaluation found; all values are fractions.

    Attributes:
        protocol: its name.
        subset: of the ground truth.
        mAP: per threshold, keyed as `0.5`.
        average: means over ranges of thresholds, keyed as `0.1:0.7`.
        per_class: AP of each class per threshold.
        counts: videos, instances, predictions, missing_videos, ...
        change_points: precision, recall, F1 and rates per stage and tolerance; none when the file carries none.
    """

    protocol: str
    subset: str
    mAP: dict[str, float]
    average: dict[str, float]
    per_class: dict[str, dict[str, float]]
    counts: dict[str, int]
    change_points: dict[str, dict[str, dict[str, float]]] | None = None

    @property
    def headline(self) -> float:
        """The average over the widest range of thresholds: the one number that ranks checkpoints."""
        return list(self.average.values())[-1]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A table of percentages."""
        names = [*(f"@{tiou}" for tiou in self.mAP), *(f"avg {span}" for span in self.average)]
        values = [f"{100 * value:.2f}" for value in (*self.mAP.values(), *self.average.values())]
        widths = [max(len(a), len(b)) for a, b in zip(names, values, strict=True)]
        c = self.counts
        lines = [
            f"mAP (%), protocol {self.protocol}, subset {self.subset}: {c['instances']} instances of "
            f"{len(self.per_class)} classes in {c['videos']} videos; {c['predictions']} predictions, "
            f"{c['missing_videos']} videos without any entry",
            "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True)),
            "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True)),
        ]
        for stage, scores in (self.change_points or {}).items():
            one, two = scores["1"], scores["2"]
            lines.append(
                f"change-points {stage:10s} F1 {one['f1']:.3f} at 1 snippet, {two['f1']:.3f} at 2; precision "
                f"{one['precision']:.3f}, recall {one['recall']:.3f}; rate {one['rate']:.3f}, "
                f"true rate {one['true_rate']:.3f}"
            )
        return "\n".join(lines)


def evaluate(
    ground_truth: Source,
    predictions: Source,
    protocol: str | Protocol = "thumos14",
    *,
    subset: str | None = None,
    tious: Sequence[float] | None = None,
    ambiguous: str | Path | None = None,
    ties: str = "stable",
    backend: str = "auto",
) -> Result:
    """Mean average precision of detections.

    Args:
        ground_truth: path or object, ActivityNet JSON.
        predictions: path or object, ActivityNet results; predictions with an unknown label are left out and counted.
        protocol: a name of `PROTOCOLS`.
        subset: of the ground truth; none: the protocol's.
        tious: thresholds instead of the protocol's; their mean is then the only average.
        ambiguous: list of segments `video start end` in seconds; predictions that touch one are left out.
        ties: see `average_precision`.
        backend: see `average_precision`.

    Raises:
        DataError: a malformed file, or a subset without ground truth.
        ValueError: an unknown protocol, or a threshold outside (0, 1].
    """
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    if tious is not None:
        tious = sorted(set(tious))
        # at 0 a prediction would take an instance that it does not even touch
        if not tious or not all(0 < tiou <= 1 for tiou in tious):
            raise ValueError(f"tious must be in (0, 1], got {tious}")
        rules = dataclasses.replace(rules, tious=tuple(tious), averages=((tious[0], tious[-1]),))
    subset = subset or rules.subset
    truth_name, database = read_database(ground_truth)
    database = select_subset(truth_name, database, subset)
    videos, classes, truth = truth_instances(truth_name, database)
    name, results, extra = read_results(predictions)
    found, counts = predicted_instances(name, results, videos, classes)
    if counts["unknown_labels"]:
        warnings.warn(
            f"{name}: {counts['unknown_labels']} predictions with labels unknown to the ground truth were left out",
            stacklevel=2,
        )
    if rules.snippet_s is not None:
        truth = _in_snippets(truth, rules.snippet_s, rounded=True)
        found = _in_snippets(found, rules.snippet_s, rounded=False)
    if ambiguous is not None:
        found = found.where(~_touches(found, read_ambiguous(ambiguous, videos), rules.snippet_s))
    if rules.drop_short:
        found = found.where(found.end - found.start > 1)
    ap = average_precision(
        truth, found, len(videos), len(classes), np.array(rules.tious), ties=ties, backend=backend
    ).ap
    means = ap.mean(axis=1)
    keys = [f"{tiou:g}" for tiou in rules.tious]
    averages = {
        f"{low:g}:{high:g}": float(np.mean([m for t, m in zip(rules.tious, means, strict=True) if low <= t <= high]))
        for low, high in rules.averages
    }
    counts |= {"videos": len(videos), "instances": truth.size, "classes": len(classes), "predictions": found.size}
    return Result(
        rules.name,
        subset,
        dict(zip(keys, means.tolist(), strict=True)),
        averages,
        {label: dict(zip(keys, ap[:, c].tolist(), strict=True)) for c, label in enumerate(classes)},
        counts,
        None if extra is None else score_file(database, extra),
    )


def _in_snippets(instances: Instances, snippet_s: float, rounded: bool) -> Instances:
    start, end = instances.start / snippet_s, instances.end / snippet_s
    if rounded:
        start, end = np.round(start), np.round(end)
    return instances._replace(start=start, end=end)


def read_ambiguous(path: str | Path, videos: Sequence[str]) -> list[tuple[int, float, float]]:
    """Segments `(video index, start, end)` of the list that THUMOS14 marks as ambiguous, unknown videos left out."""
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "file", "lines `video start end`", "no such file")
    index = {video: v for v, video in enumerate(videos)}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            video, start, end = words[0], float(words[1]), float(words[2])
        except (IndexError, ValueError):
            raise DataError(path, f"line {number}", "video start end", line) from None
        if video in index:
            rows.append((index[video], start, end))
    return rows


def _touches(found: Instances, segments: list[tuple[int, float, float]], snippet_s: float | None) -> Any:
    """Which predictions share time with an ambiguous segment; in snippets both are rounded as the W-TALC line does."""
    touched = np.zeros(found.size, bool)
    start, end = (np.trunc(found.start), np.trunc(found.end)) if snippet_s else (found.start, found.end)
    for video, first, last in segments:
        if snippet_s:
            first, last = round(first / snippet_s), round(last / snippet_s)
        touched |= (found.video == video) & (np.minimum(end, last) > np.maximum(start, first))
    return touched
