"""Where the field's projects keep features, annotations and splits, and which of these trees a folder is.

| layout           | features of a video                                  | read as                          |
| ---------------- | ---------------------------------------------------- | -------------------------------- |
| `acmnet`         | `SPLIT/ID.npy`                                       | [n, F]                           |
| `basnet`         | `features/SPLIT/{rgb,flow}/ID.npy`                   | rgb and flow side by side        |
| `actionformer`   | one folder of `[prefix]ID[suffix].npy` or `.npz`     | [n, F]; `feats` of a .npz        |
| `video_features` | one folder of `ID_{rgb,flow}.npy`                    | rgb and flow side by side        |

`SPLIT` is `train` or `test`. The layouts are those of ACM-Net and ASM-Loc, of BaSNet and CoLA, of ActionFormer and
OpenTAD, and of the extractor video_features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ahlm.data.annotations import Annotation, read_split, subset_videos
from ahlm.data.feature_store import SUFFIXES, Source
from ahlm.errors import DataError, NoSplit
from ahlm.files import read_json
from ahlm.timeline import FeatureSpec

STREAMS = ("rgb", "flow")
SPLIT_FOLDERS = ("train", "test")
SIDE_FILES = ("_fps", "_timestamps_ms")  # ends of what video_features writes beside a video's features
SPEC = "features.json"  # the timeline of the features
SKIP_LIST = "missing_files.txt"  # OpenTAD's list of videos whose features could not be had
FOLDERS_DEEP = 2  # features are looked for this many folders below the root


class Layout(NamedTuple):
    """A tree of features.

    Attributes:
        name: `acmnet`, `basnet`, `actionformer` or `video_features`.
        folder: where the features, or the folders of the splits, are.
        streams: files a video has, in the order in which they are joined; empty: one file.
    """

    name: str
    folder: Path
    streams: tuple[str, ...] = ()

    def files(self, split: str) -> dict[str, Source]:
        """Feature files of a split by the video's name on disk; flat layouts keep all splits in one folder.

        Videos that lack a stream are left out.
        """
        folder = self.split_folder(split)
        if not self.streams:
            return dict(array_files(folder))
        if self.name == "basnet":
            stems = [array_files(folder / stream) for stream in self.streams]
        else:
            files = array_files(folder)
            stems = [
                {stem.removesuffix(f"_{stream}"): path for stem, path in files.items() if stem.endswith(f"_{stream}")}
                for stream in self.streams
            ]
        complete = [name for name in stems[0] if all(name in own for own in stems)]
        return {name: tuple(own[name] for own in stems) for name in complete}

    def split_folder(self, split: str) -> Path:
        """Where the features of a split are."""
        return self.folder / split if self.has_split_folders else self.folder

    @property
    def has_split_folders(self) -> bool:
        """Whether each split has a folder of its own."""
        return self.name in ("acmnet", "basnet")


def array_files(folder: Path) -> dict[str, Path]:
    """Array files of a folder by stem, sorted; a .npy goes before a .npz of the same stem."""
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # files under a leading dot are half-written ones
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            files.setdefault(path.stem, path)
    return files


def is_side_file(stem: str, stems: Collection[str]) -> bool:
    """Whether a file tells the timeline of another one's features."""
    for end in SIDE_FILES:
        name = stem.removesuffix(end)
        if name != stem and not {name, *(f"{name}_{stream}" for stream in STREAMS)}.isdisjoint(stems):
            return True
    return False


def detect_layout(root: Path, features: str | None = None) -> Layout:
    """The layout of a data set.

    Args:
        root: its folder.
        features: the folder of the features within `root`, where there are several.

    Raises:
        DataError: no features are found, or several folders hold some.
    """
    if not root.is_dir():
        raise DataError(root.absolute(), "folder", "a data set", "a file" if root.is_file() else "no such folder")
    homes = [root / features] if features else [root, root / "features"]
    for home in homes:
        splits = [home / split for split in SPLIT_FOLDERS]
        streams = tuple(stream for stream in STREAMS if any((split / stream).is_dir() for split in splits))
        if streams:
            return Layout("basnet", home, streams)
        if any(array_files(split) for split in splits):
            return Layout("acmnet", home)
    packs = sorted(root.glob("*-JOINTFeatures.npy"))
    if packs:
        hint = f"python -m ahlm.convert wtalc {root} OUT"
        raise DataError(packs[0], "layout", "one feature file a video", "a pickled pack of all videos", hint)
    # a folder that was named counts alone, whatever is below it
    folders = _feature_folders(homes[0], 0 if features and array_files(homes[0]) else FOLDERS_DEEP)
    if len(folders) > 1:
        names = ", ".join(str(folder.relative_to(root)) for folder in folders[:5])
        hint = f"choose one: --data.features {folders[0].relative_to(root)}"
        raise DataError(root, "features", "one folder of feature files", f"{len(folders)}: {names}", hint)
    if not folders:
        if any((home / split).is_dir() for home in homes for split in SPLIT_FOLDERS):
            return Layout("acmnet", homes[0])  # empty folders: every video will be reported as missing
        raise DataError(
            homes[0], "features", "train/ID.npy, features/train/rgb/ID.npy, or a folder of ID.npy", "no .npy or .npz"
        )
    stems = list(array_files(folders[0]))
    streams = tuple(stream for stream in STREAMS if any(stem.endswith(f"_{stream}") for stem in stems))
    return Layout("video_features" if streams else "actionformer", folders[0], streams)


def _feature_folders(folder: Path, deep: int) -> list[Path]:
    if not folder.is_dir():
        return []
    own = [folder] if array_files(folder) else []
    if deep == 0:
        return own
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return own + [found for path in below for found in _feature_folders(path, deep - 1)]


def find_annotations(root: Path, named: str | None = None) -> Path:
    """The annotation file: `named`, or gt.json, labels.csv, or the one ActivityNet JSON in `root` or `annotations/`."""
    if named:
        return root / named
    for name in ("gt.json", "labels.csv"):
        if (root / name).is_file():
            return root / name
    found = sorted(path for folder in (root, root / "annotations") for path in folder.glob("*.json"))
    if len(found) > 1:
        # others are class lists, feature specs, predictions
        found = [path for path in found if isinstance(content := read_json(path), dict) and "database" in content]
    found = [path for path in found if path.name != SPEC]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        hint = f"choose one: --data.annotations {found[0].relative_to(root)}"
        raise DataError(root, "annotations", "one ActivityNet JSON", names, hint)
    if not found:
        raise DataError(root / "gt.json", "file", "annotations: gt.json, labels.csv or annotations/*.json", "none")
    return found[0]


def split_videos(root: Path, layout: Layout, annotations: Mapping[str, Annotation], split: str) -> list[str]:
    """Names of a split: of `split_NAME.txt`, else of the annotations' subset, else those with files in its folder.

    Where nothing names the videos to train on, they are all that are not named for anything else.

    Raises:
        NoSplit: none of these.
    """
    listed = root / f"split_{split}.txt"
    if listed.exists():
        return read_split(listed)
    if names := subset_videos(annotations, split):
        return names
    unnamed = [name for name, annotation in annotations.items() if not annotation.subset]
    if layout.has_split_folders:
        stems = layout.files(split)
        names = [name for name in unnamed if name in stems]
    elif split == "train":
        elsewhere = {name.removeprefix("v_") for path in root.glob("split_*.txt") for name in read_split(path)}
        names = [name for name in unnamed if name.removeprefix("v_") not in elsewhere]
    if not names:
        subsets = sorted({annotation.subset for annotation in annotations.values()} - {""})
        got = f"no such file, and subsets {', '.join(subsets) or 'none'}"
        raise NoSplit(listed, "file", "a list of video names, or a subset of the annotations for it", got)
    return names


def skipped_videos(root: Path, layout: Layout) -> set[str]:
    """Names on the skip list beside the features or in `root`."""
    lists = [path for path in (layout.folder / SKIP_LIST, root / SKIP_LIST) if path.is_file()]
    return {name for path in lists for name in read_split(path)}


def affixes(names: Iterable[str], stems: Iterable[str]) -> tuple[str, str]:
    """Prefix and suffix that file stems have around video names, such as ActivityNet's `v_`; empty when none fit."""
    names, known = list(names), set(stems)
    candidates = {("", "")}
    for name in names[:20]:
        for stem in known:
            if name and name in stem:
                prefix, _, suffix = stem.partition(name)
                candidates.add((prefix, suffix))

    def matches(affix: tuple[str, str]) -> tuple[int, int]:
        prefix, suffix = affix
        return sum(f"{prefix}{name}{suffix}" in known for name in names), -len(prefix) - len(suffix)

    return max(sorted(candidates), key=matches)


def timestamps_spec(folder: Path, names: Iterable[str]) -> FeatureSpec | None:
    """Timeline from video_features' `ID_fps.npy` and `ID_timestamps_ms.npy`; none where there are no such files.

    A timestamp is the time at which the last frame of a snippet begins, counted from 0, so the first is the window and
    the spacing the stride.

    Raises:
        DataError: not numbers, or the videos' timelines differ by more than 2 %.
    """
    first: tuple[str, float, float] | None = None
    spec = None
    for name in names:
        rate_path, times_path = folder / f"{name}_fps.npy", folder / f"{name}_timestamps_ms.npy"
        if not (rate_path.is_file() and times_path.is_file()):
            continue
        rate, times = _numbers(rate_path), _numbers(times_path) / 1000
        if rate.size != 1 or not rate.item() > 0:
            raise DataError(rate_path, "fps", "one positive number", rate.tolist())
        if times.ndim != 1 or not (np.diff(times, prepend=0) > 0).all():
            raise DataError(times_path, "timestamps", "rising milliseconds [n]", times_path.name)
        if len(times) < 2:
            continue  # one snippet has no spacing
        window, stride = float(times[0]), float(times[-1] - times[0]) / (len(times) - 1)
        if first is None:
            fps = float(rate.item())
            first, spec = (name, window, stride), FeatureSpec(fps, _frames(stride * fps), _frames(window * fps))
        elif abs(stride / first[2] - 1) > 0.02 or abs(window / first[1] - 1) > 0.02:
            expected = f"snippets of {first[1]:.3f} s every {first[2]:.3f} s as in {first[0]}"
            hint = "extract all videos at one frame rate (extraction_fps)"
            raise DataError(times_path, "timestamps", expected, f"{window:.3f} s every {stride:.3f} s", hint)
    return spec


def _frames(frames: float) -> float:
    """A whole number of frames where the timestamps' rounding allows."""
    return float(round(frames)) if abs(frames - round(frames)) < 0.05 else frames


def _numbers(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, "file", "a .npy of numbers", error) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(path, "dtype", "numbers", getattr(array, "dtype", "an archive"))
    return array.astype(np.float64)
