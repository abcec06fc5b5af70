"""Annotations as the field writes them: ActivityNet JSON, split lists, or a CSV of videos and labels."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ahlm.errors import DataError
from ahlm.files import read_json, read_text

COLUMNS = ("video", "label", "start", "end", "subset")
COLUMNS_TEXT = "the columns video,label[,start,end][,subset]"
TRAINING, VALIDATION, TESTING = ({"train", "training"}, {"validation", "val"}, {"test", "testing"})


class Segment(NamedTuple):
    """One annotated action instance, in seconds."""

    start_s: float
    end_s: float
    label: str


def as_json(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """Segments as ActivityNet's `annotations`."""
    return [{"label": s.label, "segment": [s.start_s, s.end_s]} for s in segments]


@dataclass(frozen=True)
class Annotation:
    """What is known of a video.

    Attributes:
        subset: as the file names it; empty when it does not.
        duration_s: none when the file does not say.
        labels: video-level labels, sorted: those of the segments and those of the video itself.
        segments: action instances; empty for videos with tags only.
    """

    subset: str
    duration_s: float | None
    labels: tuple[str, ...]
    segments: tuple[Segment, ...]


def read_annotations(path: str | Path, problems: list[DataError] | None = None) -> dict[str, Annotation]:
    """Annotations of every video of an ActivityNet JSON or of a CSV `video,label[,start,end][,subset]`.

    Segments may be numbers or strings, durations may be absent, as in the files of BaSNet and CoLA. A video of the
    JSON may name video-level `labels` beside or instead of segments.

    Args:
        path: the file; a CSV by its suffix.
        problems: takes the errors of single videos, which are then left out; none: the first one is raised.

    Raises:
        DataError: the file cannot be read, or a video in it is malformed.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path, problems)
    content = read_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise DataError(path, "database", "an object of videos", type(database).__name__)
    annotations = {}
    for name, entry in database.items():
        with _collect(problems):
            annotations[name] = _annotation(path, name, entry)
    return annotations


@contextmanager
def _collect(problems: list[DataError] | None) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        if problems is None:
            raise
        problems.append(error)


def _annotation(path: Path, name: str, entry: Any) -> Annotation:
    if not isinstance(entry, dict) or not isinstance(entry.get("annotations", []), list):
        raise DataError(path, f"database.{name}", "an object with a list of annotations", type(entry).__name__)
    segments = []
    for i, item in enumerate(entry.get("annotations", [])):
        field = f"database.{name}.annotations[{i}]"
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            raise DataError(path, f"{field}.label", "a string", item)
        segments.append(Segment(*_segment(path, f"{field}.segment", item.get("segment")), item["label"]))
    tags = entry.get("labels", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(path, f"database.{name}.labels", "a list of strings", tags)
    duration = entry.get("duration")
    if duration is not None:
        duration = _number(path, f"database.{name}.duration", duration)
        if duration <= 0:
            raise DataError(path, f"database.{name}.duration", "a positive number of seconds", duration)
    labels = tuple(sorted({segment.label for segment in segments} | set(tags)))
    return Annotation(str(entry.get("subset") or ""), duration, labels, tuple(segments))


def _read_csv(path: Path, problems: list[DataError] | None) -> dict[str, Annotation]:
    text = read_text(path, "a CSV with the columns video,label")
    labels: dict[str, set[str]] = {}
    segments: dict[str, list[Segment]] = {}
    subsets: dict[str, str] = {}
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)

    def rows() -> Iterator[dict[str, Any]]:
        try:
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            if not {"video", "label"} <= set(header):
                names = ",".join(header)
                hint = "columns are parted by commas" if ";" in names or "\t" in names else ""
                raise DataError(path, "header", COLUMNS_TEXT, names or "nothing", hint)
            # what is left unread may be the split, under another name
            if others := sorted(set(header) - {*COLUMNS, ""}):
                raise DataError(path, "header", COLUMNS_TEXT, f"also {', '.join(others)}", "rename or leave them out")
            yield from reader
        except csv.Error as error:
            raise DataError(path, f"line {reader.line_num + 1}", "a CSV whose quotes are closed", error) from None

    for row in rows():
        # a short row has none where a column is missing, a long one a list under no name
        cells = {column: value.strip() for column, value in row.items() if column and isinstance(value, str)}
        with _collect(problems):
            name, label = cells.get("video", ""), cells.get("label", "")
            if not name or not label:
                raise DataError(path, f"line {reader.line_num}", "a video and a label", cells)
            if more := [cell for cell in row.get(None, ()) if cell.strip()]:  # type: ignore[call-overload]
                expected = f"{len(reader.fieldnames or ())} cells, as in the header"
                raise DataError(path, f"line {reader.line_num}", expected, f"also {','.join(more)}", "a line a label")
            start, end = cells.get("start", ""), cells.get("end", "")
            if start or end:
                bounds = _segment(path, f"line {reader.line_num}", [start, end])
                segments.setdefault(name, []).append(Segment(*bounds, label))
            if subsets.setdefault(name, cells.get("subset", "")) != cells.get("subset", ""):
                raise DataError(path, f"line {reader.line_num}", f"subset {subsets[name]}", cells.get("subset"))
            labels.setdefault(name, set()).add(label)
    if not labels and not problems:
        raise DataError(path, "lines", "a video and a label each", "none below the header")
    return {
        name: Annotation(subsets[name], None, tuple(sorted(own)), tuple(segments.get(name, ())))
        for name, own in labels.items()
    }


def _number(path: Path, field: str, value: Any) -> float:
    try:
        # a bool is an int to Python and a slip to us
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(path, field, "a number of seconds", repr(value)) from None
    if not math.isfinite(number):
        raise DataError(path, field, "a finite number of seconds", value)
    return number


def _segment(path: Path, field: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise DataError(path, field, "[start, end] in seconds", value)
    start, end = _number(path, field, value[0]), _number(path, field, value[1])
    if end < start:
        raise DataError(path, field, "a start before its end", value, "swapped?")
    return start, end


def read_split(path: str | Path) -> list[str]:
    """Video names of a split list, one a line; empty lines and repeats are dropped."""
    lines = read_text(path, "a list of video names, one a line").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def subset_videos(annotations: Mapping[str, Annotation], split: str) -> list[str]:
    """Videos of a split by the subset that the annotations name, compared without case.

    `validation` trains where there is a test subset with labels (THUMOS14) and tests where there is none (ActivityNet,
    whose test subset is listed without annotations).
    """

    def of(names: set[str]) -> list[str]:
        return [name for name, annotation in annotations.items() if annotation.subset.lower() in names]

    testing = of(TESTING)
    if not any(annotations[name].labels for name in testing):
        testing = []
    if split in TRAINING:
        return of(TRAINING) or (of(VALIDATION) if testing else [])
    if split in TESTING:
        return testing or of(VALIDATION)
    return of(VALIDATION if split in VALIDATION else {split.lower()})


def unknown_subsets(annotations: Mapping[str, Annotation]) -> list[str]:
    """Names of subsets with labelled videos that are none of the usual ones, sorted."""
    known = TRAINING | VALIDATION | TESTING | {""}
    return sorted({a.subset for a in annotations.values() if a.labels and a.subset.lower() not in known})


def class_list(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """All labels, sorted."""
    return tuple(sorted({label for annotation in annotations for label in annotation.labels}))
