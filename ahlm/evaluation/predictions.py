"""Ground truth and prediction files as the field writes them, and ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ahlm.errors import DataError
from ahlm.evaluation import typed_json
from ahlm.evaluation.average_precision import Instances
from ahlm.evaluation.protocols import same_subset
from ahlm.files import read_json, write_json

Source = str | Path | dict[str, Any]


def write_predictions(path: str | Path, predictions: dict[str, Any]) -> None:
    """Write an ActivityNet results object, atomically; scores and seconds keep all their digits."""
    write_json(path, predictions, indent=None)


def read_results(source: Source) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Name of the source, its `results`, and our own part, if any; `version` and `external_data` may be absent.

    The detections of a video may be undecoded; `predicted_instances` takes them as they are.
    """
    results: Any
    typed = None if isinstance(source, dict) else typed_json.read_file(source)
    if typed is not None:
        name, (results, extra) = str(source), typed
    else:
        name, content = _named(source, "predictions")
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict):
            swapped = isinstance(content, dict) and "database" in content
            got = "ground truth: it comes first" if swapped else type(results).__name__
            raise DataError(name, "results", "an object of videos", got)
        extra = content.get("ahlm")
    is_ours = isinstance(extra, dict) and {"features", "n_snippets", "change_points"} <= extra.keys()
    return name, results, extra if is_ours else None


def read_database(source: Source) -> tuple[str, dict[str, Any]]:
    """Name of the source and its videos: ActivityNet's `database`, or the object itself (mmaction2)."""
    name, content = _named(source, "ground truth")
    if isinstance(content, dict) and "results" in content and "database" not in content:
        raise DataError(name, "database", "ground truth", "results: predictions come second")
    database = content.get("database", content) if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise DataError(name, "database", "videos with annotations", type(database).__name__)
    for video, entry in database.items():
        if not isinstance(entry, dict):
            raise DataError(name, f"database.{video}", "a video with annotations", type(entry).__name__)
    if not any("annotations" in entry for entry in database.values()):
        raise DataError(name, "database", "videos with annotations", "none")
    # a video that has tags alone, or nothing
    return name, {video: {"annotations": [], **entry} for video, entry in database.items()}


def _named(source: Source, what: str) -> tuple[str, Any]:
    return (what, source) if isinstance(source, dict) else (str(source), read_json(source))


def select_subset(name: str, database: dict[str, Any], subset: str) -> dict[str, Any]:
    """The videos of a subset, or all where the file names no subsets.

    Raises:
        DataError: it has no ground truth; names the subsets there are.
    """
    subsets = {video: str(entry.get("subset") or "") for video, entry in database.items()}
    there = sorted(set(subsets.values()))
    chosen = {v: entry for v, entry in database.items() if there == [""] or same_subset(subsets[v], subset)}
    if not any(entry["annotations"] for entry in chosen.values()):
        got = "none" if there == [""] else f"none; subsets in this file: {', '.join(there)}"
        raise DataError(name, f"subset {subset}", "videos with segments", got)
    return chosen


def truth_instances(name: str, database: dict[str, Any]) -> tuple[list[str], list[str], Instances]:
    """Video names, class names (sorted) and ground-truth instances in file order."""
    videos = list(database)
    rows: list[tuple[int, str, float, float]] = []
    for v, video in enumerate(videos):
        items = database[video]["annotations"]
        if not isinstance(items, list):
            raise DataError(name, f"{video}.annotations", "a list", items)
        for i, item in enumerate(items):
            field = f"{video}.annotations[{i}]"
            rows.append((v, *_labelled_segment(name, field, item)))
    classes = sorted({row[1] for row in rows})
    index = {label: c for c, label in enumerate(classes)}
    return videos, classes, _columns([(v, index[label], start, end, 0.0) for v, label, start, end in rows])


def predicted_instances(
    name: str, results: dict[str, Any], videos: list[str], classes: list[str]
) -> tuple[Instances, dict[str, int]]:
    """Predictions of the known videos and classes in file order, and counts of the others.

    Raises:
        DataError: a segment or score that is not a finite number.
    """
    video_index = {video: v for v, video in enumerate(videos)}
    class_index = {label: c for c, label in enumerate(classes)}
    if not results.keys() & video_index.keys():
        # mmaction2 writes results without the v_ that its ground truth carries
        video_index |= {video.removeprefix("v_"): v for video, v in video_index.items()}
    parts: list[Instances] = []
    counts = {"unknown_videos": 0, "unknown_labels": 0}
    for video, items in results.items():
        v = video_index.get(video)
        columns = None
        if isinstance(items, typed_json.Raw):
            columns = typed_json.columns(items, class_index) if v is not None else None
            if columns is None:
                try:
                    items = json.loads(bytes(items))
                except (ValueError, RecursionError) as error:
                    raise DataError(name, f"results.{video}", "valid UTF-8 JSON", error) from None
        if columns is None and not isinstance(items, list):
            raise DataError(name, f"results.{video}", "a list of detections", type(items).__name__)
        if v is None:
            counts["unknown_videos"] += 1
            continue
        if columns is None:
            rows = [_detection(name, f"results.{video}[{i}]", item) for i, item in enumerate(items)]
            labels, start, end, score = list(zip(*rows, strict=True)) if rows else ((), (), (), ())
            index = np.array([class_index.get(label, -1) for label in labels], np.int64)
            columns = typed_json.Columns(index, *(np.array(column, np.float64) for column in (start, end, score)))
        part = Instances(np.full(len(columns.score), v, np.int64), *columns)
        unknown = part.class_index < 0
        if unknown.any():
            counts["unknown_labels"] += int(unknown.sum())
            part = part.where(~unknown)
        parts.append(part)
    found = Instances._make(map(np.concatenate, zip(*parts, strict=True))) if parts else _columns([])
    counts["predictions"] = found.size
    counts["missing_videos"] = len(
        set(range(len(videos))) - {video_index[video] for video in results if video in video_index}
    )
    return found, counts


def unknown_label(results: dict[str, Any], videos: list[str]) -> str:
    """One of the labels of a file whose detections in these videos all have labels that nobody knows."""
    for video in videos:
        items = results.get(video, results.get(video.removeprefix("v_")))
        decoded = json.loads(bytes(items)) if isinstance(items, typed_json.Raw) else items
        if decoded:
            return str(decoded[0]["label"])
    return ""


def _detection(name: str, field: str, item: Any) -> tuple[str, float, float, float]:
    return *_labelled_segment(name, field, item), _number(name, f"{field}.score", item.get("score"))


def _columns(rows: list[tuple[int, int, float, float, float]]) -> Instances:
    video, class_index, start, end, score = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Instances(
        np.array(video, np.int64),
        np.array(class_index, np.int64),
        np.array(start, np.float64),
        np.array(end, np.float64),
        np.array(score, np.float64),
    )


def _labelled_segment(name: str, field: str, item: Any) -> tuple[str, float, float]:
    if not isinstance(item, dict) or not isinstance(item.get("label"), str):
        raise DataError(name, f"{field}.label", "a string", item)
    segment = item.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        raise DataError(name, f"{field}.segment", "[start, end] in seconds", segment)
    return item["label"], _number(name, f"{field}.segment", segment[0]), _number(name, f"{field}.segment", segment[1])


def _number(name: str, field: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(name, field, "a number", repr(value)) from None
    if not math.isfinite(number):
        raise DataError(name, field, "a finite number", value)
    return number
