"""Annotations as the field writes them: ActivityNet JSON, split lists, or a CSV of videos and labels."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ahlm.errors import DataError
from ahlm.files import read_json

# names under which the two halves of a data set go; compared without case
SUBSETS: Mapping[str, frozenset[str]] = {
    "train": frozenset({"train", "training", "validation", "val"}),
    "test": frozenset({"test", "testing", "validation", "val"}),
}


class Segment(NamedTuple):
    """One annotated action instance, in seconds."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Annotation:
    """What is known of a video.

    Attributes:
        subset: as the file names it; empty when it does not.
        duration_s: none when the file does not say.
        labels: video-level labels, sorted.
        segments: action instances; empty for videos with tags only.
    """

    subset: str
    duration_s: float | None
    labels: tuple[str, ...]
    segments: tuple[Segment, ...]


def read_annotations(path: str | Path) -> dict[str, Annotation]:
    """Annotations of every video of an ActivityNet JSON or of a CSV `video,label[,start,end]`.

    Segments may be numbers or strings, durations may be absent, as in the files of BaSNet and CoLA.
    """
    path = Path(path)
    return _read_csv(path) if path.suffix == ".csv" else _read_activitynet(path)


def _read_activitynet(path: Path) -> dict[str, Annotation]:
    content = read_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise DataError(path, "database", "an object of videos", type(database).__name__)
    return {name: _annotation(path, name, entry) for name, entry in database.items()}


def _annotation(path: Path, name: str, entry: Any) -> Annotation:
    if not isinstance(entry, dict) or not isinstance(entry.get("annotations", []), list):
        raise DataError(path, f"database.{name}", "an object with a list of annotations", type(entry).__name__)
    segments = []
    for i, item in enumerate(entry.get("annotations", [])):
        field = f"database.{name}.annotations[{i}]"
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            raise DataError(path, f"{field}.label", "a string", item)
        segments.append(Segment(*_segment(path, f"{field}.segment", item.get("segment")), item["label"]))
    duration = entry.get("duration")
    if duration is not None:
        duration = _number(path, f"database.{name}.duration", duration)
        if duration <= 0:
            raise DataError(path, f"database.{name}.duration", "a positive number of seconds", duration)
    labels = tuple(sorted({segment.label for segment in segments}))
    return Annotation(str(entry.get("subset", "")), duration, labels, tuple(segments))


def _read_csv(path: Path) -> dict[str, Annotation]:
    if not path.is_file():
        raise DataError(path, "file", "a CSV with the columns video,label", "no such file")
    labels: dict[str, set[str]] = {}
    segments: dict[str, list[Segment]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if not {"video", "label"} <= set(reader.fieldnames or ()):
            raise DataError(path, "header", "the columns video,label[,start,end]", reader.fieldnames)
        for row in reader:
            name, label = (row["video"] or "").strip(), (row["label"] or "").strip()
            if not name or not label:
                raise DataError(path, f"line {reader.line_num}", "a video and a label", dict(row))
            labels.setdefault(name, set()).add(label)
            if row.get("start") and row.get("end"):
                bounds = _segment(path, f"line {reader.line_num}", [row["start"], row["end"]])
                segments.setdefault(name, []).append(Segment(*bounds, label))
    return {
        name: Annotation("", None, tuple(sorted(own)), tuple(segments.get(name, ()))) for name, own in labels.items()
    }


def _number(path: Path, field: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(path, field, "a number of seconds", repr(value)) from None
    if not math.isfinite(number):
        raise DataError(path, field, "a finite number of seconds", value)
    return number


def _segment(path: Path, field: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise DataError(path, field, "[start, end] in seconds", value)
    return _number(path, field, value[0]), _number(path, field, value[1])


def read_split(path: str | Path) -> list[str]:
    """Video names of a split list, one a line; empty lines and repeats are dropped."""
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "file", "a list of video names, one a line", "no such file")
    return list(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))


def class_list(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """All labels, sorted."""
    return tuple(sorted({label for annotation in annotations for label in annotation.labels}))
