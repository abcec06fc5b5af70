"""The packs of W-TALC, CO2-Net, DELU, P-MIL and others, rewritten as one feature file a video.

A pack is `NAME-I3D-JOINTFeatures.npy`, a pickled array of all videos' features, and a folder `NAME-Annotations` of
arrays by video: `videoname`, `subset`, `segments`, `labels` (of each segment), and mostly `labels_all` (of each video)
and `duration`. Its `extracted_fps` is wrong by its author's word (sujoyp/wtalc-pytorch, issue 9) and is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ahlm.data.annotations import Annotation, Segment, as_json, subset_videos
from ahlm.data.feature_store import check_features
from ahlm.data.safe_pickle import load_objects
from ahlm.data.write import begin, write_array, write_spec
from ahlm.errors import DataError
from ahlm.files import read_text, write_json, write_text
from ahlm.timeline import FeatureSpec

AMBIGUOUS = "Ambiguous_test.txt"


def convert_wtalc(
    source: str | Path,
    out: str | Path,
    *,
    spec: FeatureSpec,
    annotations: str | Path | None = None,
    progress: bool = False,
) -> list[str]:
    """Write a pack in ACM-Net's layout; videos that are there already are left alone, so a broken run goes on.

    One video is in memory at a time. The training list holds the videos with labels, the test list those with segments,
    as in W-TALC's own evaluation.

    Args:
        source: the pack, or a folder with one pack.
        out: folder to write to; `gt.json` comes last and marks it as complete.
        spec: timeline of the features; the pack does not hold it.
        annotations: folder of the annotations; none: `NAME-Annotations` beside the pack.
        progress: show a bar on a terminal.

    Returns:
        What was done and found, a line each.

    Raises:
        DataError: a malformed pack, or pickled objects in it other than arrays, numbers and strings.
    """
    pack, out = _find_pack(Path(source)), Path(out)
    folder = Path(annotations) if annotations else pack.with_name(f"{pack.name.split('-')[0]}-Annotations")
    if not folder.is_dir():
        raise DataError(folder, "folder", "the annotations of the pack", "no such folder", "name it: --annotations DIR")
    videos, notes = _read_annotations(folder)
    train, test = (set(subset_videos(videos, split)) for split in ("train", "test"))
    lists = {
        "train": [name for name, video in videos.items() if name in train and video.labels],
        "test": [name for name, video in videos.items() if name in test and video.segments],
    }
    for split, names in lists.items():
        if not names:
            subsets = sorted({video.subset for video in videos.values()})
            raise DataError(folder / "subset.npy", f"{split} videos", "at least one with annotations", subsets)
    names = list(videos)
    where = {name: out / split / f"{name}.npy" for split in lists for name in lists[split]}
    feature_dim: list[int] = []
    written = 0

    begin(out)
    with tqdm(total=len(names), desc="convert", unit="video", disable=None if progress else True) as bar:

        def on_array(number: int, array: NDArray[Any]) -> int:
            nonlocal written
            if number >= len(names):
                raise DataError(pack, "videos", f"{len(names)} as in {folder}", f"more than {number}")
            name = names[number]
            features = check_features(array, f"{pack}[{number}]", feature_dim[0] if feature_dim else None)
            feature_dim[:] = [features.shape[1]]
            bar.update()
            path = where.get(name)
            kept = array if array.dtype in (np.float16, np.float32) else features
            if path is not None and not _holds(path, kept):
                write_array(path, kept)
                written += 1
            return number

        numbers = _read_pack(pack, on_array)
    if len(numbers) != len(names):
        raise DataError(pack, "videos", f"{len(names)} as in {folder}", len(numbers))
    for i, number in enumerate(numbers):
        # something else than an array, or one array twice, shifts the names of all that follow
        if not isinstance(number, int) or number != i:
            got = type(number).__name__ if not isinstance(number, int) else "another video's array"
            raise DataError(
                pack, f"video {i}", "features [n, F] of its own", got, f"delete {out}: names there are wrong"
            )
    for split, listed in lists.items():
        write_text(out / f"split_{split}.txt", "".join(f"{name}\n" for name in listed))
    if (folder / AMBIGUOUS).is_file():
        write_text(out / AMBIGUOUS, read_text(folder / AMBIGUOUS, "a list of segments"))
    write_spec(out, spec, feature_dim[0], f"{pack.name}, converted")
    write_json(out / "gt.json", _ground_truth(pack, videos, where))
    left_out = len(names) - len(where)
    return [
        f"{len(where)} videos ({len(lists['train'])} train, {len(lists['test'])} test), {feature_dim[0]} features a "
        f"snippet, {written} files written -> {out}",
        *([f"note: {left_out} videos without labels (train) or segments (test) left out"] if left_out else []),
        *(f"note: {note}" for note in notes),
    ]


def _find_pack(source: Path) -> Path:
    if source.is_file():
        return source
    packs = sorted(source.glob("*-JOINTFeatures.npy"))
    if len(packs) != 1:
        got = ", ".join(pack.name for pack in packs) or ("none" if source.is_dir() else "no such folder")
        raise DataError(source, "pack", "one NAME-I3D-JOINTFeatures.npy", got, "name it instead of its folder")
    return packs[0]


def _read_pack(pack: Path, on_array: Callable[[int, NDArray[Any]], int]) -> list[Any]:
    """Hand the features of every video over, one by one; returns what `on_array` made of each."""
    try:
        # videos of one length make a plain array
        array = np.load(pack, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return list(load_objects(pack, on_array))
    if not isinstance(array, np.ndarray):
        raise DataError(pack, "file", "one array, .npy", "several, .npz")
    if array.ndim != 3:
        raise DataError(pack, "shape", "[videos, n, F]", list(array.shape))
    return [on_array(i, video) for i, video in enumerate(array)]


def _holds(path: Path, array: NDArray[Any]) -> bool:
    """Whether a file is this array, written before."""
    try:
        return np.array_equal(np.load(path, mmap_mode="r", allow_pickle=False), array)
    except (OSError, ValueError, EOFError):
        return False


def _read_annotations(folder: Path) -> tuple[dict[str, Annotation], list[str]]:
    names = _strings(folder / "videoname.npy", load_objects(folder / "videoname.npy"))
    if len(set(names)) != len(names):
        raise DataError(folder / "videoname.npy", "names", "distinct ones", f"{len(set(names))} among {len(names)}")
    for name in names:
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise DataError(folder / "videoname.npy", "name", "one that can be a file's", repr(name))

    def read(field: str, needed: bool = True) -> NDArray[Any] | None:
        path = folder / f"{field}.npy"
        if not needed and not path.exists():
            return None
        array = load_objects(path)
        if array.ndim == 0 or len(array) != len(names):
            raise DataError(path, "videos", f"{len(names)} as in videoname.npy", list(array.shape))
        return array

    subset, segments, labels = read("subset"), read("segments"), read("labels")
    labels_all, durations = read("labels_all", needed=False), read("duration", needed=False)
    assert subset is not None
    assert segments is not None
    assert labels is not None
    subsets = _strings(folder / "subset.npy", subset)
    videos, differing = {}, 0
    for i, name in enumerate(names):
        own = _strings(folder / "labels.npy", labels[i], i)
        bounds = _bounds(folder / "segments.npy", segments[i], i)
        if len(own) != len(bounds):
            raise DataError(folder / "labels.npy", f"video {i}", f"{len(bounds)} as in segments.npy", len(own))
        tags = _strings(folder / "labels_all.npy", labels_all[i], i) if labels_all is not None else []
        differing += bool(own and tags and set(own) != set(tags))
        duration = _duration(folder / "duration.npy", durations[i], i) if durations is not None else None
        videos[name] = Annotation(
            subsets[i],
            duration,
            tuple(sorted(set(own or tags))),
            tuple(Segment(start, end, label) for (start, end), label in zip(bounds, own, strict=True)),
        )
    note = f"{folder / 'labels_all.npy'}: differs from the segments' labels in {differing} videos; theirs were taken"
    return videos, [note] if differing else []


def _strings(path: Path, values: Any, video: int | None = None) -> list[str]:
    texts = []
    for value in values if isinstance(values, list | tuple | np.ndarray) else [values]:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str):
            field = "values" if video is None else f"video {video}"
            raise DataError(path, field, "strings", type(value).__name__)
        texts.append(str(value))
    return texts


def _bounds(path: Path, values: Any, video: int) -> list[tuple[float, float]]:
    try:
        bounds = np.array([[float(bound) for bound in pair] for pair in values], np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise DataError(path, f"video {video}", "pairs [start, end] of seconds", repr(values)[:80]) from None
    if len(bounds) != len(values) or not np.isfinite(bounds).all():
        raise DataError(path, f"video {video}", "pairs [start, end] of seconds", repr(values)[:80])
    return [(float(start), float(end)) for start, end in bounds]


def _duration(path: Path, value: Any, video: int) -> float | None:
    try:
        seconds = float(np.asarray(value, np.float64).item())
    except (TypeError, ValueError):
        raise DataError(path, f"video {video}", "seconds", repr(value)[:80]) from None
    return seconds if np.isfinite(seconds) and seconds > 0 else None


def _ground_truth(pack: Path, videos: dict[str, Annotation], where: dict[str, Path]) -> dict[str, Any]:
    database: dict[str, Any] = {}
    for name in where:
        video = videos[name]
        entry: dict[str, Any] = {"subset": video.subset}
        if video.duration_s is not None:
            entry["duration"] = video.duration_s
        if not video.segments:
            entry["labels"] = list(video.labels)
        entry["annotations"] = as_json(video.segments)
        database[name] = entry
    taxonomy = sorted({label for name in where for label in videos[name].labels})
    return {"version": pack.name, "taxonomy": taxonomy, "database": database}
