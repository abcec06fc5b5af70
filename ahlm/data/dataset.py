"""One split of a data set: videos with labels and features, their timeline and class list."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.config import DataConfig
from ahlm.data.annotations import Annotation, Segment, as_json, class_list, read_annotations, unknown_subsets
from ahlm.data.feature_store import (
    SUFFIXES,
    Source,
    check_features,
    features_shape,
    load_features,
    map_features,
    streams_differ,
)
from ahlm.data.layouts import (
    FOLDERS_DEEP,
    SPEC,
    Layout,
    affixes,
    array_files,
    detect_layout,
    find_annotations,
    is_side_file,
    skipped_videos,
    split_videos,
    timestamps_spec,
)
from ahlm.errors import DataError
from ahlm.files import read_json
from ahlm.timeline import FeatureSpec

FILE_SUFFIXES = (*SUFFIXES, ".mp4", ".avi", ".mkv", ".mov", ".webm")  # of what a list of videos may name by mistake
MEMORY_BUDGET = 4 << 30  # bytes of features kept in memory; beyond it they are memory-mapped each time
USUAL_SCALE = (0.02, 100.0)  # root mean squares; L2-normalised features of 2,048 dimensions have .022
FAR = 1.1  # durations at which a segment's end is no rounding
DURATION_TOLERANCE = 2  # snippets by which a duration and a snippet count may disagree


@dataclass(frozen=True)
class Video:
    """A video of a split.

    Attributes:
        id: its name.
        source: its feature file, one file a stream, or the array [n, F] itself.
        labels: video-level labels, sorted.
        segments: action instances, for evaluation only; training never reads them.
        duration_s: none when unknown; detections then end with the last snippet.
    """

    id: str
    source: Source | NDArray[np.float32]
    labels: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    duration_s: float | None = None


class FeatureDataset:
    """Videos of one split; `features(i)` is checked when first read and then kept, or memory-mapped beyond the budget.

    Attributes:
        videos: in the order of the split list.
        classes: names, sorted; the order of the model's outputs.
        spec: fps, stride and window of the features.
        spec_source: where `spec` comes from: the path of a features.json, or `timestamps`, `settings` or `demo`.
        feature_dim: F.
        layout: name of the layout on disk, or `files`, `memory` or `generated demo`.
        missing: listed videos without features, left out.
        notes: what was found and mended on opening, a line each.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        classes: tuple[str, ...],
        spec: FeatureSpec,
        *,
        spec_source: str = "settings",
        layout: str = "memory",
        missing: Sequence[str] = (),
        feature_dim: int | None = None,
    ) -> None:
        self.videos, self.classes, self.spec = tuple(videos), classes, spec
        self.spec_source, self.layout, self.missing = spec_source, layout, tuple(missing)
        self.notes: tuple[str, ...] = ()
        self._cache: dict[int, NDArray[np.float32]] = {}
        self._lengths: dict[int, int] = {}
        self._checked: set[int] = set()
        self._cached_bytes = 0
        self._feature_dim = feature_dim

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def feature_dim(self) -> int:
        """F, taken from the first video unless given."""
        if self._feature_dim is None:
            self.n_snippets(0)
        assert self._feature_dim is not None
        return self._feature_dim

    def features(self, i: int) -> NDArray[np.float32]:
        """Features of video i [n, F]; raises `DataError` naming the file when they are not that."""
        if i in self._cache:
            return self._cache[i]
        source = self.videos[i].source
        if isinstance(source, np.ndarray):
            features = check_features(source, self.videos[i].id, self._feature_dim)
        elif i in self._checked:
            # beyond the budget: float32 files are read only where they are touched
            features = map_features(source)
        else:
            features = load_features(source, self._feature_dim)
        self._checked.add(i)
        self._lengths[i] = len(features)
        if self._feature_dim is None:
            self._feature_dim = features.shape[1]
        if self._cached_bytes + features.nbytes <= MEMORY_BUDGET:
            self._cache[i] = features
            self._cached_bytes += features.nbytes
        return features

    def n_snippets(self, i: int) -> int:
        """Snippets of video i, from its file's header where that suffices."""
        if i not in self._lengths:
            source = self.videos[i].source
            if isinstance(source, np.ndarray):
                self.features(i)
            else:
                self._lengths[i], self._feature_dim = features_shape(source, self._feature_dim)
        return self._lengths[i]

    @property
    def root_mean_square(self) -> float:
        """Of the features of its first videos."""
        values = [self.features(i) for i in range(min(len(self), 32))]
        total = sum(float(np.square(features, dtype=np.float64).sum()) for features in values)
        return math.sqrt(total / sum(features.size for features in values))

    @property
    def segment_labels(self) -> set[str]:
        """Classes that can be scored: those of some segment."""
        return {segment.label for video in self.videos for segment in video.segments}

    @property
    def longest(self) -> int:
        """Snippets of the longest video."""
        return max(map(self.n_snippets, range(len(self))))

    def label_matrix(self) -> NDArray[np.float32]:
        """Multi-hot video-level labels y [V, C]."""
        index = {label: c for c, label in enumerate(self.classes)}
        matrix = np.zeros((len(self.videos), len(self.classes)), np.float32)
        for row, video in zip(matrix, self.videos, strict=True):
            row[[index[label] for label in video.labels]] = 1
        return matrix

    def ground_truth(self, subset: str) -> dict[str, Any]:
        """The split as an ActivityNet JSON object, every video in `subset`."""
        database = {}
        for i, video in enumerate(self.videos):
            duration = self.spec.duration_s(self.n_snippets(i)) if video.duration_s is None else video.duration_s
            database[video.id] = {"subset": subset, "duration": duration, "annotations": as_json(video.segments)}
        return {"version": "ahlm", "taxonomy": list(self.classes), "database": database}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, labels, timeline and features, for which every video is read; not of segments."""
        digest = hashlib.sha256(json.dumps(vars(self.spec)).encode())
        for i, video in enumerate(self.videos):
            features = self.features(i)
            digest.update(json.dumps([video.id, video.labels, features.shape]).encode())
            digest.update(np.ascontiguousarray(features).data)
        return digest.hexdigest()

    def split_validation(self, share: float) -> tuple[FeatureDataset, FeatureDataset]:
        """The first `int(n * (1 - share))` videos for training and the others for validation.

        Where that takes most videos of a class, as in a list that goes class by class, it is the last of every class,
        and a note says so; a video of several classes counts for the one that has fewest.
        """
        n, n_train = len(self), int(len(self) * (1 - share) + 1e-9)
        if not 0 < n_train < n:
            raise DataError("training list", "validation", "videos on both sides", f"{share:g} of {n}")
        held = np.arange(n) >= n_train
        labels, notes = self.label_matrix(), self.notes
        if (labels[held].sum(0) > (1 + share) / 2 * labels.sum(0)).any():
            rarest = np.where(labels > 0, labels.sum(0), np.inf).argmin(1)
            for c in np.unique(rarest):
                own = np.flatnonzero(rarest == c)
                held[own] = np.arange(len(own)) >= max(1, round(len(own) * (1 - share)))
            notes += (f"the last {share:g} of the list holds most of a class: the last of every class validate",)
        training, validation = (self.subset(np.flatnonzero(part).tolist()) for part in (~held, held))
        training.missing, training.notes = self.missing, notes
        return training, validation

    def subset(self, indices: Sequence[int]) -> FeatureDataset:
        """The same data set with some of its videos."""
        part = FeatureDataset(
            [self.videos[i] for i in indices],
            self.classes,
            self.spec,
            spec_source=self.spec_source,
            layout=self.layout,
            feature_dim=self.feature_dim,
        )
        part._cache = {new: self._cache[old] for new, old in enumerate(indices) if old in self._cache}
        part._cached_bytes = sum(features.nbytes for features in part._cache.values())
        part._lengths = {new: self._lengths[old] for new, old in enumerate(indices) if old in self._lengths}
        part._checked = {new for new, old in enumerate(indices) if old in self._checked}
        return part

    @classmethod
    def from_files(
        cls, files: Sequence[str | Path], classes: tuple[str, ...], config: DataConfig, feature_dim: int
    ) -> FeatureDataset:
        """Feature files without annotations, each named by its stem; of a folder, all that are in it.

        Their timeline is that of the `features.json` beside them or up to two folders above, else of video_features'
        timestamps beside them, else that of `config`.

        Raises:
            DataError: two files of one name, a folder without any, or files of several timelines.
        """
        paths: list[Path] = []
        for path in map(Path, files):
            files_in = array_files(path)
            inside = [file for name, file in files_in.items() if not is_side_file(name, files_in)]
            if path.is_dir() and not inside:
                raise DataError(path, "folder", "feature files ID.npy or ID.npz", "none")
            paths += inside or [path]
        repeated = [name for name, count in Counter(path.stem for path in paths).items() if count > 1]
        if repeated:
            raise DataError(repeated[0], "file name", "one file a video", "several files of this name")
        specs: dict[Path, tuple[FeatureSpec, str]] = {}
        for folder in dict.fromkeys(path.parent for path in paths):
            root = _spec_folder(folder)
            own, source, _ = read_spec(root, config)
            if source == "settings":
                stems = (path.stem for path in paths if path.parent == folder)
                bare = (stem.removesuffix("_rgb").removesuffix("_flow") for stem in stems)
                if stamped := timestamps_spec(folder, bare):
                    own, source = stamped, "timestamps"
            specs.setdefault(root, (own, source))
        (first, (spec, source)), *others = specs.items()
        for root, (other, _) in others:
            if other != spec:
                raise DataError(root, "timeline", f"{spec}, as in {first}", other, "infer them apart")
        return cls(
            [Video(path.stem, path) for path in paths],
            classes,
            spec,
            spec_source=str(first / SPEC) if source == SPEC else source,
            layout="files",
            feature_dim=feature_dim,
        )


def _spec_folder(folder: Path) -> Path:
    """The folder itself or one of those above whose `features.json` is the timeline of its files."""
    folder = Path(os.path.abspath(folder))  # links stay, `..` does not
    above = (root for root in folder.parents[:FOLDERS_DEEP] if (root / SPEC).is_file())
    if (folder / SPEC).is_file():
        return folder
    return next((root for root in above if b'"fps"' in (root / SPEC).read_bytes()), folder)


def read_spec(root: Path, config: DataConfig) -> tuple[FeatureSpec, str, int | None]:
    """Timeline of the features, where it comes from, and the feature dimension if stated.

    `features.json` in `root` wins over the settings. It holds `fps`, `stride` and `window`, and may hold `feature_dim`.
    """
    path = root / SPEC
    if not path.exists():
        return FeatureSpec(config.fps, config.stride, config.window), "settings", None
    content = read_json(path)
    values = []
    for name in ("fps", "stride", "window"):
        value = content.get(name) if isinstance(content, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise DataError(path, name, "a positive number", "none" if value is None else repr(value))
        values.append(float(value))
    feature_dim = content.get("feature_dim")
    if feature_dim is not None and not (type(feature_dim) is int and feature_dim > 0):
        raise DataError(path, "feature_dim", "a positive integer", feature_dim)
    return FeatureSpec(*values), SPEC, feature_dim


@dataclass(frozen=True)
class Tree:
    """A data set as it lies on disk, before any feature is read.

    Attributes:
        root: its folder.
        layout: what holds the features.
        annotations_path: file of `annotations`.
        annotations: of every video, by name.
        spec: timeline of the features.
        spec_source: where `spec` comes from: `features.json`, `timestamps` or `settings`.
        feature_dim: F if `features.json` states it.
    """

    root: Path
    layout: Layout
    annotations_path: Path
    annotations: dict[str, Annotation]
    spec: FeatureSpec
    spec_source: str
    feature_dim: int | None

    def resolve(self, listed: str) -> str | None:
        """The annotated name of a listed one; ActivityNet's lists have a `v_` that its annotations lack."""
        return next((name for name in (listed, listed.removeprefix("v_")) if name in self.annotations), None)

    def sources(self, split: str, names: Sequence[str]) -> tuple[dict[str, Source], tuple[str, str]]:
        """Feature files of the listed names that have some, and the prefix and suffix of files' names."""
        files = self.layout.files(split)
        others = [stem for stem in files if stem not in self.annotations]
        prefix, suffix = ("", "") if any(name in files for name in names) else affixes(names, others)
        stems = {name: f"{prefix}{name}{suffix}" for name in names}
        return {name: files[stem] for name, stem in stems.items() if stem in files}, (prefix, suffix)


def open_tree(config: DataConfig, problems: list[DataError] | None = None) -> Tree:
    """Find layout, annotations and timeline of the data set in `config.root`.

    Args:
        config: where it is.
        problems: takes the errors of single annotated videos, which are then left out; none: the first is raised.

    Raises:
        DataError: no features, no annotations, or a malformed file.
    """
    root = Path(config.root or ".")
    layout = detect_layout(root, config.features)
    path = find_annotations(root, config.annotations)
    annotations = read_annotations(path, problems)
    spec, spec_source, feature_dim = read_spec(root, config)
    if layout.name == "video_features" and spec_source == "settings":
        stamped = timestamps_spec(layout.folder, layout.files(""))
        if stamped is not None:
            spec, spec_source = stamped, "timestamps"
    return Tree(root, layout, path, annotations, spec, spec_source, feature_dim)


def open_dataset(config: DataConfig, split: str, classes: tuple[str, ...] | None = None) -> FeatureDataset:
    """Open one split of the data set in `config.root`, in any layout of `ahlm.data.layouts`.

    Headers of all its feature files are read, so that wrong shapes are known at once; values are checked when a video
    is first used.

    Args:
        config: where it is and what to do about missing videos.
        split: `train`, `test`, or another name that has a split list or a subset.
        classes: the model's classes; none: all labels of this split.

    Raises:
        NoSplit: nothing names this split.
        DataError: anything missing or malformed; a label that `classes` does not hold; an empty split.
    """
    tree = open_tree(config)
    listed = split_videos(tree.root, tree.layout, tree.annotations, split)
    names_path, where = tree.root / f"split_{split}.txt", tree.layout.split_folder(split)
    names_path = names_path if names_path.exists() else tree.annotations_path
    skipped = skipped_videos(tree.root, tree.layout)
    notes = []
    if left_out := [name for name in listed if name in skipped or tree.resolve(name) in skipped]:
        notes.append(f"{names_path}: {len(left_out)} videos left out, as the list of missing files says")
        listed = [name for name in listed if name not in set(left_out)]
    sources, (prefix, suffix) = tree.sources(split, listed)
    if prefix or suffix:
        notes.append(f"{where}: features are named {prefix}ID{suffix}")
    if split == "train" and not any(tree.root.glob("split_*.txt")):
        notes += [
            f"{tree.annotations_path}: videos of subset {name} are neither trained on nor tested"
            for name in unknown_subsets(tree.annotations)
        ]
    videos, missing = [], []
    for name in listed:
        resolved = tree.resolve(name)
        if resolved is None:
            raise DataError(names_path, name, f"a video of {tree.annotations_path.name}", "not annotated there")
        if name not in sources:
            missing.append(name)
            continue
        annotation = tree.annotations[resolved]
        videos.append(Video(resolved, sources[name], annotation.labels, annotation.segments, annotation.duration_s))
    if missing and config.missing == "error":
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        suffix = Path(missing[0]).suffix.lower()
        raise DataError(
            where,
            "feature files",
            f"{len(listed)} videos of {names_path.name}",
            f"{len(missing)} missing: {shown}",
            f"videos are named without {suffix}" if suffix in FILE_SUFFIXES else "--data.missing skip leaves them out",
        )
    if not videos:
        raise DataError(names_path, "videos", "at least one video with features", "none")
    known = classes if classes is not None else class_list(tree.annotations[video.id] for video in videos)
    for video in videos:
        unknown = set(video.labels) - set(known)
        if unknown:
            raise DataError(
                tree.annotations_path,
                f"database.{video.id}",
                f"labels among {len(known)} known classes",
                sorted(unknown)[0],
            )
        if split == "train" and not video.labels:
            raise DataError(tree.annotations_path, f"database.{video.id}", "at least one label", "none")
    dataset = FeatureDataset(
        videos,
        known,
        tree.spec,
        spec_source=tree.spec_source,
        layout=tree.layout.name,
        missing=missing,
        feature_dim=tree.feature_dim,
    )
    dataset.notes = (*notes, *_reconcile(dataset, tree.annotations_path))
    return dataset


def _reconcile(dataset: FeatureDataset, path: Path) -> list[str]:
    """Compare headers with annotations; a line each about cut streams, odd durations and late segments.

    Where the features go on for long after the stated duration, that duration is wrong and the features' counts:
    detections are cut at the features' end. Segments stay as annotated, so that a score is that of the annotation file:
    cutting the 62 late ones of THUMOS14's test set takes 1.2 points of average mAP from published detections.
    """
    cut, late, far, beyond, disagree = 0, 0, 0, 0, []
    videos = list(dataset.videos)
    for i, video in enumerate(videos):
        n = dataset.n_snippets(i)
        cut += isinstance(video.source, tuple) and streams_differ(video.source)
        if video.duration_s is None:
            beyond += sum(ends_beyond(dataset.spec, n, segment.end_s) for segment in video.segments)
            continue
        late += sum(segment.end_s > video.duration_s + 1e-6 for segment in video.segments)
        far += sum(segment.end_s > FAR * video.duration_s for segment in video.segments)
        if snippets_off(dataset.spec, n, video.duration_s) > DURATION_TOLERANCE:
            disagree.append(f"{video.id} has {n} snippets and lasts {video.duration_s:g} s")
            videos[i] = replace(video, duration_s=max(video.duration_s, dataset.spec.duration_s(n)))
    dataset.videos = tuple(videos)
    notes = []
    if cut:
        notes.append(f"{path.parent}: {cut} videos have streams one snippet apart, and the longer was cut")
    if disagree:
        notes.append(
            f"{path}: {len(disagree)} of {len(dataset)} durations disagree with {dataset.spec.snippet_s:.3g} s a "
            f"snippet ({dataset.spec_source}) by more than {DURATION_TOLERANCE} snippets, and the longer counts: "
            f"{disagree[0]}"
        )
    if beyond:
        where = f"{dataset.spec}, {dataset.spec_source}"
        notes.append(f"{path}: {beyond} segments end after their video's features ({where}); are they in seconds?")
    if late:
        doubt = "; are they in seconds?" if far > 0.1 * sum(len(video.segments) for video in videos) else ""
        notes.append(f"{path}: {late} segments end after their video's duration, and stay as they are annotated{doubt}")
    return notes


def unusual_scale(root_mean_square: float) -> str | None:
    """What to say of features far larger or smaller than the usual ones, which EFC learns slowly or not at all."""
    low, high = USUAL_SCALE
    if low <= root_mean_square <= high:
        return None
    return (
        f"the features' root mean square is {root_mean_square:.2g}, usual are {low:g} to {high:g}; scale them, or "
        "train with --squash true"
    )


def snippets_off(spec: FeatureSpec, n_snippets: int, duration_s: float) -> float:
    """How many snippets more or fewer there are than fit into the duration."""
    return abs((duration_s - spec.duration_s(n_snippets)) / spec.snippet_s)


def ends_beyond(spec: FeatureSpec, n_snippets: int, end_s: float) -> bool:
    """Whether a time lies further after the features' end than durations may."""
    return end_s > spec.duration_s(n_snippets) + DURATION_TOLERANCE * spec.snippet_s
