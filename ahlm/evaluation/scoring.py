"""Detections against ground truth under a protocol: one call, one result."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahlm.errors import DataError
from ahlm.evaluation.average_precision import Instances, average_precision
from ahlm.evaluation.boundaries import score_file
from ahlm.evaluation.diagnosis import diagnose
from ahlm.evaluation.predictions import (
    Source,
    predicted_instances,
    read_database,
    read_results,
    select_subset,
    truth_instances,
    unknown_label,
)
from ahlm.evaluation.protocols import PROTOCOLS, Protocol
from ahlm.evaluation.ranking import average_recall, classification
from ahlm.files import read_text

# ActivityNet's proposal task
AVERAGE_NUMBERS = (1, 5, 10, 100)
RECALL_TIOUS = PROTOCOLS["activitynet-1.3"].tious


class Match(NamedTuple):
    """A detection and the instance that it takes; seconds, whatever the units of the protocol.

    Attributes:
        video: its name.
        label: of both.
        score: of the detection.
        detection: start and end.
        instance: start and end.
    """

    video: str
    label: str
    score: float
    detection: tuple[float, float]
    instance: tuple[float, float]


class Pairs(NamedTuple):
    """What `Result.matches` reads: names, the two sets in seconds, and who takes each instance [K, G], -1 for none."""

    videos: list[str]
    classes: list[str]
    truth: Instances
    found: Instances
    taken_by: NDArray[np.int64]


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
        recall: AR@AN over tIoU 0.5:0.05:0.95, keyed by AN; the classes play no part.
        classification: video-level `mAP`, `top1` and `top3`; a video's score of a class is its best detection's.
        errors: best detections at tIoU 0.5 by kind, and instances that none of them takes (`missed`).
        pairs: what `matches` reads; not written to JSON.
        change_points: precision, recall, F1 and rates per stage and tolerance; none when the file carries none.
    """

    protocol: str
    subset: str
    mAP: dict[str, float]
    average: dict[str, float]
    per_class: dict[str, dict[str, float]]
    counts: dict[str, int]
    recall: dict[str, float]
    classification: dict[str, float]
    errors: dict[str, int]
    pairs: Pairs = dataclasses.field(repr=False, compare=False)
    change_points: dict[str, dict[str, dict[str, float]]] | None = None

    @property
    def headline(self) -> float:
        """The average over the widest range of thresholds: the one number that ranks checkpoints."""
        return list(self.average.values())[-1]

    def matches(self, tiou: float) -> list[Match]:
        """Correct detections at one of the protocol's thresholds, in the order of the ground truth.

        Raises:
            KeyError: a threshold that was not evaluated.
        """
        videos, classes, truth, found, taken_by = self.pairs
        if f"{tiou:g}" not in self.mAP:
            raise KeyError(f"tiou {tiou:g} was not evaluated, only {', '.join(self.mAP)}")
        row = taken_by[list(self.mAP).index(f"{tiou:g}")]
        return [
            Match(
                videos[truth.video[g]],
                classes[truth.class_index[g]],
                float(found.score[p]),
                (float(found.start[p]), float(found.end[p])),
                (float(truth.start[g]), float(truth.end[g])),
            )
            for g, p in enumerate(row.tolist())
            if p >= 0
        ]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, without the pairs."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "pairs"}

    def __str__(self) -> str:
        """A table of percentages."""
        names = [*(f"@{tiou}" for tiou in self.mAP), *(f"avg {span}" for span in self.average)]
        values = [f"{100 * value:.2f}" for value in (*self.mAP.values(), *self.average.values())]
        widths = [max(len(a), len(b)) for a, b in zip(names, values, strict=True)]
        c = self.counts
        judged = max(1, sum(self.errors.values()) - self.errors["missed"])
        lines = [
            f"mAP (%), protocol {self.protocol}, subset {self.subset}: {c['instances']} instances of "
            f"{len(self.per_class)} classes in {c['videos']} videos; {c['predictions']} predictions, "
            f"{c['missing_videos']} videos without any entry",
            "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True)),
            "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True)),
            f"average recall (%), tIoU 0.5:0.95  {_percent(self.recall, '@')}; video-level  "
            f"{_percent(self.classification)}",
            "best detections at tIoU 0.5 (%)  "
            + "  ".join(f"{kind} {100 * n / judged:.1f}" for kind, n in self.errors.items() if kind != "missed")
            + f"; instances missed {100 * self.errors['missed'] / c['instances']:.1f}",
        ]  # fmt: skip
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
    """Mean average precision of detections, and what else their ranking tells.

    Args:
        ground_truth: path or object, ActivityNet JSON.
        predictions: path or object, ActivityNet results; predictions with an unknown label are left out and counted.
        protocol: a name of `PROTOCOLS`.
        subset: of the ground truth; none: the protocol's.
        tious: thresholds instead of the protocol's; their mean is then the only average.
        ambiguous: list of segments `video start end` in seconds; predictions that touch one are left out. Protocols
            that need it look for `Ambiguous_test.txt` beside the ground truth when it is not given.
        ties: see `average_precision`.
        backend: see `average_precision`.

    Raises:
        DataError: a malformed file, a subset without ground truth, a protocol without the list that it needs, or
            predictions of other videos, or with other labels, alone.
        ValueError: an unknown protocol, or a threshold outside (0, 1].
    """
    rules = _rules(protocol, tious)
    subset = subset or rules.subset
    truth_name, database = read_database(ground_truth)
    database = {v: entry for v, entry in database.items() if v not in rules.left_out}
    database = select_subset(truth_name, database, subset)
    videos, classes, truth_s = truth_instances(truth_name, database)
    name, results, extra = read_results(predictions)
    results = {video: items for video, items in results.items() if video not in rules.left_out}
    change_points = None if extra is None else _change_points(name, database, extra)
    found_s, counts = predicted_instances(name, results, videos, classes)
    if results and counts["unknown_videos"] == len(results):
        expected = f"some of the {len(videos)} videos of the ground truth, {videos[0]} among them"
        raise DataError(name, "results", expected, f"others alone: {', '.join(list(results)[:3])}")
    if counts["unknown_labels"] and not found_s.size:
        expected = f"some of the {len(classes)} labels of the ground truth, {classes[0]!r} among them"
        raise DataError(name, "results", expected, f"others alone: {unknown_label(results, videos)!r}")
    backwards = int((found_s.end < found_s.start).sum())
    for number, what in (
        (counts["unknown_labels"], "predictions with labels unknown to the ground truth were left out"),
        (counts["unknown_videos"], f"videos that subset {subset} does not have were left out"),
        (backwards, "predictions end before they begin, and count as false"),
    ):
        if number:
            warnings.warn(f"{name}: {number} {what}", stacklevel=2)
    if ambiguous is None and rules.ambiguous:
        ambiguous = _list_beside(ground_truth, rules.name)
    truth, found = truth_s, found_s
    if rules.snippet is not None:
        truth, found = _in_snippets(truth_s, rules.snippet), _snapped(_in_snippets(found_s, rules.snippet))
        truth = truth._replace(start=np.round(truth.start), end=np.round(truth.end))
        counts["empty_instances"] = int((truth.start == truth.end).sum())
    kept = np.ones(found.size, bool)
    if ambiguous is not None:
        kept = ~_touches(found, read_ambiguous(ambiguous, videos), rules.snippet)
        counts["ambiguous"] = int((~kept).sum())
    if rules.drop_short:
        short = found.end - found.start <= 1
        counts["short"] = int((kept & short).sum())
        kept &= ~short
    found, found_s = found.where(kept), found_s.where(kept)
    n_videos, n_classes = len(videos), len(classes)
    ap, taken_by = average_precision(
        truth, found, n_videos, n_classes, np.array(rules.tious), ties=ties, backend=backend
    )
    means = ap.mean(axis=1)
    keys = [f"{tiou:g}" for tiou in rules.tious]
    averages = {
        f"{low:g}:{high:g}": float(np.mean([m for t, m in zip(rules.tious, means, strict=True) if low <= t <= high]))
        for low, high in rules.averages
    }
    counts |= {"videos": n_videos, "instances": truth.size, "classes": n_classes, "predictions": found.size}
    diagnosis = diagnose(truth, found, n_videos, n_classes, backend=backend)
    recall = average_recall(truth, found, n_videos, RECALL_TIOUS, AVERAGE_NUMBERS, backend=backend)
    return Result(
        rules.name,
        subset,
        dict(zip(keys, means.tolist(), strict=True)),
        averages,
        {label: dict(zip(keys, ap[:, c].tolist(), strict=True)) for c, label in enumerate(classes)},
        counts,
        {str(number): float(value) for number, value in zip(AVERAGE_NUMBERS, recall, strict=True)},
        _classification(truth, found, n_videos, n_classes, backend),
        diagnosis.false_positives() | {"missed": int((~diagnosis.found).sum())},
        Pairs(videos, classes, truth_s, found_s, taken_by),
        change_points,
    )


def _change_points(name: str, database: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    try:
        return score_file(database, extra)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            name, "ahlm", "features, n_snippets and change_points as ahlm.infer writes", repr(error)
        ) from None


def _percent(values: dict[str, float], prefix: str = "") -> str:
    return "  ".join(f"{prefix}{name} {100 * value:.2f}" for name, value in values.items())


def _rules(protocol: str | Protocol, tious: Sequence[float] | None) -> Protocol:
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    if tious is None:
        return rules
    tious = sorted(set(tious))
    # at 0 a prediction would take an instance that it does not even touch
    if not tious or not all(0 < tiou <= 1 for tiou in tious):
        raise ValueError(f"tious must be in (0, 1], got {tious}")
    return dataclasses.replace(rules, tious=tuple(tious), averages=((tious[0], tious[-1]),))


def _classification(
    truth: Instances, found: Instances, n_videos: int, n_classes: int, backend: str
) -> dict[str, float]:
    """A class without a detection stands behind those with one, and behind other such classes if it is there.

    Three classes that nothing has keep one without a detection out of the best three, however few classes there are.
    """
    labels = np.zeros((n_videos, n_classes + 3), bool)
    labels[truth.video, truth.class_index] = True
    scores = found.score.min(initial=0.0) - np.where(labels, 2.0, 1.0)
    np.maximum.at(scores, (found.video, found.class_index), found.score)
    mean, top = classification(scores, labels, backend=backend)
    return {"mAP": mean, **{f"top{k}": share for k, share in top.items()}}


def _in_snippets(instances: Instances, snippet: tuple[float, float]) -> Instances:
    """Seconds as snippets, not rounded."""
    frames, fps = snippet
    return instances._replace(start=instances.start * fps / frames, end=instances.end * fps / frames)


def _snapped(instances: Instances) -> Instances:
    """Positions that were whole snippets before they were written as seconds are whole again."""
    start, end = (
        np.where(np.abs(column - np.round(column)) < 1e-6, np.round(column), column)
        for column in (instances.start, instances.end)
    )
    return instances._replace(start=start, end=end)


def _list_beside(ground_truth: Source, protocol: str) -> Path:
    """`Ambiguous_test.txt` in the folder of the ground truth."""
    beside = Path("ground truth" if isinstance(ground_truth, dict) else ground_truth).with_name("Ambiguous_test.txt")
    if isinstance(ground_truth, dict) or not beside.is_file():
        expected = "THUMOS14's list of ambiguous segments (--ambiguous FILE)"
        raise DataError(beside, f"protocol {protocol}", expected, "no such file")
    return beside


def read_ambiguous(path: str | Path, videos: Sequence[str]) -> list[tuple[int, float, float]]:
    """Segments `(video index, start, end)` of the list that THUMOS14 marks as ambiguous, unknown videos left out."""
    path = Path(path)
    text = read_text(path, "lines `video start end`")
    index = {video: v for v, video in enumerate(videos)}
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            video, start, end = words[0], float(words[1]), float(words[2])
            if not np.isfinite((start, end)).all():
                raise ValueError
        except (IndexError, ValueError):
            raise DataError(path, f"line {number}", "video start end", line) from None
        if video in index:
            rows.append((index[video], start, end))
    return rows


def _touches(
    found: Instances, segments: list[tuple[int, float, float]], snippet: tuple[float, float] | None
) -> NDArray[np.bool_]:
    """Which predictions share time with an ambiguous segment (seconds).

    Predictions in snippets are cut to whole ones, and the segments rounded, as the W-TALC line of work does.
    """
    touched = np.zeros(found.size, bool)
    if snippet:
        found = found._replace(start=np.trunc(found.start), end=np.trunc(found.end))
    for video, first, last in segments:
        if snippet:
            first, last = (round(second * snippet[1] / snippet[0]) for second in (first, last))
        touched |= (found.video == video) & (np.minimum(found.end, last) > np.maximum(found.start, first))
    return touched
