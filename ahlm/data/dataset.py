"""One split of a data set: videos with labels and features, their timeline and class list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.config import DataConfig
from ahlm.data.annotations import Segment, class_list, read_annotations, read_split
from ahlm.data.feature_store import check_features, load_features
from ahlm.errors import DataError
from ahlm.files import read_json
from ahlm.timeline import FeatureSpec

MEMORY_BUDGET = 4 << 30  # bytes of features kept in memory; larger splits are read from disk each time


@dataclass(frozen=True)
class Video:
    """A video of a split.

    Attributes:
        id: its name.
        source: its feature file, or the array [n, F] itself.
        labels: video-level labels, sorted.
        segments: action instances, for evaluation only; training never reads them.
        duration_s: none when unknown; detections then end with the last snippet.
    """

    id: str
    source: Path | NDArray[np.float32]
    labels: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    duration_s: float | None = None


class FeatureDataset:
    """Videos of one split; `features(i)` is checked when first read and then kept, memory permitting.

    Attributes:
        videos: in the order of the split list.
        classes: names, sorted; the order of the model's outputs.
        spec: fps, stride and window of the features.
        spec_source: where `spec` comes from, `features.json` or `recipe`.
        feature_dim: F.
        layout: name of the layout on disk.
        missing: listed videos without features, left out.
        notes: what was found and mended on opening, a line each.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        classes: tuple[str, ...],
        spec: FeatureSpec,
        *,
        spec_source: str = "recipe",
        layout: str = "memory",
        missing: Sequence[str] = (),
        feature_dim: int | None = None,
    ) -> None:
        self.videos, self.classes, self.spec = tuple(videos), classes, spec
        self.spec_source, self.layout, self.missing = spec_source, layout, tuple(missing)
        self.notes: tuple[str, ...] = ()
        self._cache: dict[int, NDArray[np.float32]] = {}
        self._lengths: dict[int, int] = {}
        self._cached_bytes = 0
        self._feature_dim = feature_dim

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def feature_dim(self) -> int:
        """F, taken from the first video unless given."""
        if self._feature_dim is None:
            self._feature_dim = self.features(0).shape[1]
        return self._feature_dim

    def features(self, i: int) -> NDArray[np.float32]:
        """Features of video i [n, F]; raises `DataError` naming the file when they are not that."""
        if i in self._cache:
            return self._cache[i]
        source = self.videos[i].source
        if isinstance(source, np.ndarray):
            features = check_features(source, self.videos[i].id, self._feature_dim)
        else:
            features = load_features(source, self._feature_dim)
        self._lengths[i] = len(features)
        if self._cached_bytes + features.nbytes <= MEMORY_BUDGET:
            self._cache[i] = features
            self._cached_bytes += features.nbytes
        return features

    def n_snippets(self, i: int) -> int:
        """Snippets of video i."""
        if i not in self._lengths:
            self.features(i)
        return self._lengths[i]

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
            annotations = [{"label": s.label, "segment": [s.start_s, s.end_s]} for s in video.segments]
            database[video.id] = {"subset": subset, "duration": duration, "annotations": annotations}
        return {"version": "ahlm", "taxonomy": list(self.classes), "database": database}

    def split_validation(self, share: float) -> tuple[FeatureDataset, FeatureDataset]:
        """The first `int(n * (1 - share))` videos for training and the others for validation."""
        n_train = int(len(self) * (1 - share))
        if not 0 < n_train < len(self):
            raise ValueError(f"validation must leave videos on both sides, got {share} of {len(self)}")
        return self.subset(range(n_train)), self.subset(range(n_train, len(self)))

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
        part._lengths = {new: len(features) for new, features in part._cache.items()}
        return part

    @classmethod
    def from_files(
        cls, files: Sequence[str | Path], classes: tuple[str, ...], spec: FeatureSpec, feature_dim: int
    ) -> FeatureDataset:
        """Feature files without annotations, each named by its stem."""
        videos = [Video(Path(file).stem, Path(file)) for file in files]
        repeated = {video.id for video in videos if [other.id for other in videos].count(video.id) > 1}
        if repeated:
            raise DataError(sorted(repeated)[0], "file name", "one file a video", "several files of this name")
        return cls(videos, classes, spec, layout="files", feature_dim=feature_dim)


def read_spec(root: Path, config: DataConfig) -> tuple[FeatureSpec, str, int | None]:
    """Timeline of the features, where it comes from, and the feature dimension if stated."""
    path = root / "features.json"
    if not path.exists():
        return FeatureSpec(config.fps, config.stride, config.window), "recipe", None
    content = read_json(path)
    values = []
    for name in ("fps", "stride", "window"):
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, int | float) or not value > 0:
            raise DataError(path, name, "a positive number", value)
        values.append(float(value))
    feature_dim = content.get("feature_dim")
    if feature_dim is not None and not (isinstance(feature_dim, int) and feature_dim > 0):
        raise DataError(path, "feature_dim", "a positive integer", feature_dim)
    return FeatureSpec(*values), "features.json", feature_dim


def open_dataset(config: DataConfig, split: str, classes: tuple[str, ...] | None = None) -> FeatureDataset:
    """Open one split of the data set in `config.root`.

    Args:
        config: where it is and what to do about missing videos.
        split: `train` or `test`.
        classes: the model's classes; none: all labels of this split.

    Raises:
        DataError: anything missing or malformed; a label that `classes` does not hold; an empty split.
    """
    root = Path(config.root or ".")
    if not root.is_dir():
        raise DataError(root, "folder", "a data set", "no such folder")
    annotations_path = root / "gt.json"
    annotations = read_annotations(annotations_path)
    list_path = root / f"split_{split}.txt"
    names = read_split(list_path)
    spec, spec_source, feature_dim = read_spec(root, config)
    folder = root / split
    videos, missing = [], []
    for name in names:
        if name not in annotations:
            raise DataError(list_path, name, f"a video of {annotations_path.name}", "not in its database")
        source = folder / f"{name}.npy"
        if not source.is_file():
            missing.append(name)
            continue
        annotation = annotations[name]
        videos.append(Video(name, source, annotation.labels, annotation.segments, annotation.duration_s))
    if missing and config.missing == "error":
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            folder,
            "feature files",
            f"{len(names)} videos of {list_path.name}",
            f"{len(missing)} missing: {shown}",
            "data.missing=skip leaves them out",
        )
    if not videos:
        raise DataError(list_path, "videos", "at least one video with features", "none")
    known = classes if classes is not None else class_list(annotations[video.id] for video in videos)
    for video in videos:
        unknown = set(video.labels) - set(known)
        if unknown:
            raise DataError(
                annotations_path, f"database.{video.id}", f"labels among {len(known)} known classes", sorted(unknown)[0]
            )
        if split == "train" and not video.labels:
            raise DataError(annotations_path, f"database.{video.id}", "at least one label", "none")
    dataset = FeatureDataset(
        videos, known, spec, spec_source=spec_source, layout="acmnet", missing=missing, feature_dim=feature_dim
    )
    return clamp_segments(dataset, annotations_path)


def clamp_segments(dataset: FeatureDataset, path: Path) -> FeatureDataset:
    """Cut segments at the end of their video where its duration is stated; says in one line how many."""
    changed = 0
    videos = []
    for video in dataset.videos:
        segments = video.segments
        if video.duration_s is not None:
            # decimals in the file round differently from ours
            changed += sum(s.end_s > video.duration_s + 1e-6 for s in segments)
            segments = tuple(s._replace(end_s=min(s.end_s, video.duration_s)) for s in segments)
        videos.append(replace(video, segments=segments))
    if changed:
        dataset.notes += (f"{path}: {changed} segments end after their video and were cut there",)
    dataset.videos = tuple(videos)
    return dataset
