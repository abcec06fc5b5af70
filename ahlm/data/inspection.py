"""Every problem of a data set at once, where opening it stops at the first."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ahlm.config import DataConfig
from ahlm.data.annotations import Annotation
from ahlm.data.dataset import DURATION_TOLERANCE, FAR, Tree, ends_beyond, open_tree, snippets_off, unusual_scale
from ahlm.data.feature_store import SUFFIXES, Source, features_shape, load_features
from ahlm.data.layouts import SIDE_FILES, SPLIT_FOLDERS, skipped_videos, split_videos
from ahlm.errors import DataError
from ahlm.timeline import FeatureSpec

WRONG_TIMELINE = 0.1  # share of durations beyond tolerance that means a wrong timeline instead of odd videos
IMBALANCE = 10  # a class with this many times fewer training videos than the largest is said


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        level: an `error` would stop or spoil a run; a `warning` may be meant.
        kind: a few words for all problems of this sort.
        text: the problem in one line.
    """

    level: Literal["error", "warning"]
    kind: str
    text: str


@dataclass
class Split:
    """Figures of one split; lengths in snippets, `hours` of features."""

    listed: int = 0
    with_features: int = 0
    missing: int = 0
    snippets: int = 0
    shortest: int = 0
    median: float = 0.0
    longest: int = 0
    hours: float = 0.0
    segments: int = 0


@dataclass
class Inspection:
    """What a data set holds, and all that is wrong with it.

    Attributes:
        root: its folder.
        layout: name of its layout; empty when none was recognised.
        annotations: its annotation file.
        feature_dim: F of most videos.
        timeline: fps, stride and window; none when no layout was recognised.
        timeline_source: `features.json`, `timestamps` or `settings`.
        splits: figures by split.
        classes: training and test videos, training and test segments of each class.
        problems: errors and warnings, in the order found.
    """

    root: str
    layout: str = ""
    annotations: str = ""
    feature_dim: int = 0
    timeline: FeatureSpec | None = None
    timeline_source: str = ""
    splits: dict[str, Split] = field(default_factory=dict)
    classes: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """Problems that would stop or spoil a run."""
        return [problem for problem in self.problems if problem.level == "error"]

    def error(self, kind: str, text: object) -> None:
        """Note a problem that would stop or spoil a run."""
        self.problems.append(Problem("error", kind, str(text)))

    def warn(self, kind: str, text: object) -> None:
        """Note a problem that may be meant."""
        self.problems.append(Problem("warning", kind, str(text)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        columns = ("train_videos", "test_videos", "train_segments", "test_segments")
        classes = {label: dict(zip(columns, counts, strict=True)) for label, counts in self.classes.items()}
        n_errors = len(self.errors)
        counts = {"errors": n_errors, "warnings": len(self.problems) - n_errors}
        return counts | asdict(self) | {"classes": classes}


@dataclass
class _Listed:
    """A split as far as it could be read: listed names, those with features, annotations by listed name."""

    names: list[str]
    sources: dict[str, Source]
    annotations: dict[str, Annotation]


def inspect(config: DataConfig, progress: bool = False) -> Inspection:
    """Read the whole data set in `config.root`, every value of every feature file; raises nothing about the data."""
    found = Inspection(str(config.root))
    malformed: list[DataError] = []
    try:
        tree = open_tree(config, malformed)
    except DataError as error:
        found.error("unreadable data set", error)
        return found
    for problem in malformed:
        found.error("malformed annotation", problem)
    found.layout, found.annotations = tree.layout.name, str(tree.annotations_path)
    found.timeline, found.timeline_source = tree.spec, tree.spec_source
    skipped: set[str] = set()
    try:
        skipped = skipped_videos(tree.root, tree.layout)
    except DataError as error:
        found.error("unreadable list", error)
    listed = {split: _read_listing(tree, split, skipped, found) for split in SPLIT_FOLDERS}
    both = sorted(set(listed["train"].annotations) & set(listed["test"].annotations))
    if both:
        found.error("video in both splits", f"{tree.root}: {len(both)} videos train and test: {_some(both)}")
    _check_labels(tree, listed, skipped, found)
    for listing in listed.values():
        for name in listing.names:
            if name in listing.annotations:
                _check_segments(tree, name, listing.annotations[name], found)
    _check_files(tree, listed, found)
    lengths = _check_features(tree, listed, found, progress)
    _check_durations(tree, listed, lengths, found)
    for split, listing in listed.items():
        own = [n for (other, _), n in lengths.items() if other == split]
        found.splits[split] = _figures(tree, listing, own)
    return found


def _bare(label: str) -> str:
    return " ".join(label.split()).casefold()


def _some(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def _read_listing(tree: Tree, split: str, skipped: set[str], found: Inspection) -> _Listed:
    path = tree.root / f"split_{split}.txt"
    try:
        names = split_videos(tree.root, tree.layout, tree.annotations, split)
    except DataError as error:
        # a table of tags is enough to train on
        (found.error if split == "train" else found.warn)(f"no {split} split", error)
        return _Listed([], {}, {})
    if path.exists():
        lines = filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines()))
        repeated = sorted(name for name, count in Counter(lines).items() if count > 1)
        if repeated:
            found.warn("repeated in a list", f"{path}: {len(repeated)} videos more than once: {_some(repeated)}")
    if not names:
        found.error("empty split", f"{path}: no video")
    names = [name for name in names if name not in skipped and tree.resolve(name) not in skipped]
    annotations = {}
    for name in names:
        resolved = tree.resolve(name)
        if resolved is None:
            found.error("video without annotation", f"{path}: {name} is not in {tree.annotations_path.name}")
        else:
            annotations[name] = tree.annotations[resolved]
    sources, _ = tree.sources(split, names)
    for name in names:
        if name not in sources:
            found.error("missing features", f"{tree.layout.split_folder(split)}: no features of {name}")
    return _Listed(names, sources, annotations)


def _check_labels(tree: Tree, listed: dict[str, _Listed], skipped: set[str], found: Inspection) -> None:
    training, testing = listed["train"].annotations, listed["test"].annotations
    where = tree.annotations_path
    for name, annotation in training.items():
        if not annotation.labels:
            found.error("training video without label", f"{where}: {name}")
    used = {tree.resolve(name) for names in (skipped, *(own.names for own in listed.values())) for name in names}
    if unused := [name for name, own in tree.annotations.items() if own.labels and name not in used]:
        subsets = sorted({tree.annotations[name].subset or "none" for name in unused})
        text = f"{len(unused)} labelled videos, subset {', '.join(subsets)}: {_some(unused)}"
        found.warn("video of neither split", f"{where}: {text}")
    known = {label for annotation in training.values() for label in annotation.labels}
    for name, annotation in testing.items():
        for label in sorted(set(annotation.labels) - known):
            found.error("label unknown to training", f"{where}: {name}: {label}")
    unsegmented = [name for name, annotation in testing.items() if not annotation.segments]
    if unsegmented:
        kind, text = "test video without segments", f"{len(unsegmented)} of {len(testing)}: {_some(unsegmented)}"
        means = "every detection there counts as false" if len(unsegmented) < len(testing) else "nothing can be scored"
        found.warn(kind, f"{where}: {text}; {means}")
    videos = [Counter(label for a in side.values() for label in a.labels) for side in (training, testing)]
    segments = [Counter(s.label for a in side.values() for s in a.segments) for side in (training, testing)]
    for label in sorted({*videos[0], *videos[1]}):
        found.classes[label] = (videos[0][label], videos[1][label], segments[0][label], segments[1][label])
        if testing and videos[0][label] and not videos[1][label]:
            found.warn("class without test video", f"{where}: {label}")
    for _, same in groupby(sorted(found.classes, key=_bare), _bare):
        if len(spellings := list(same)) > 1:
            found.warn("labels that differ in case or spaces alone", f"{where}: {', '.join(map(repr, spellings))}")
    if several := [label for label in found.classes if set(label) & set(",;|")]:
        found.warn("label that looks like several", f"{where}: {_some(several)}; a line, or an entry, for each label")
    if videos[0]:
        largest, most = videos[0].most_common(1)[0]
        for label, count in sorted(videos[0].items()):
            if count * IMBALANCE <= most:
                found.warn("class imbalance", f"{label} has {count} training videos, {largest} has {most}")


def _check_segments(tree: Tree, name: str, annotation: Annotation, found: Inspection) -> None:
    where = f"{tree.annotations_path}: {name}"
    for segment, count in Counter(annotation.segments).items():
        text = f"{where}: {segment.label} [{segment.start_s:g}, {segment.end_s:g}]"
        if count > 1:
            found.warn("repeated segment", f"{text} stands there {count} times")
        if segment.end_s <= segment.start_s:
            found.warn("segment without length", text)
        if segment.start_s < 0:
            found.warn("segment before the video", text)
        if annotation.duration_s is not None and segment.end_s > annotation.duration_s + 1e-6:
            found.warn("segment after the video's end", f"{text}, duration {annotation.duration_s:g} s")


def _check_files(tree: Tree, listed: dict[str, _Listed], found: Inspection) -> None:
    used: set[Path] = set()
    for listing in listed.values():
        for source in listing.sources.values():
            used.update(source if isinstance(source, tuple) else (source,))
    folders = sorted({tree.layout.split_folder(split) for split in SPLIT_FOLDERS})
    present = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    twins = {path for path in present if path.suffix == ".npz" and path.with_suffix(".npy") in used}
    for path in sorted(twins):
        found.warn("two files of one video", f"{path}: {path.with_suffix('.npy').name} is read instead")
    side_files = SIDE_FILES if tree.layout.name == "video_features" else ()
    extra = [str(p) for p in present if p not in used and p not in twins and not p.stem.endswith(side_files)]
    if extra:
        found.warn("file of no listed video", f"{len(extra)} files are not used: {_some(extra)}")


def _check_features(
    tree: Tree, listed: dict[str, _Listed], found: Inspection, progress: bool
) -> dict[tuple[str, str], int]:
    """Read all features; returns the snippets of every sound video by split and name."""
    sources = {(split, name): s for split, listing in listed.items() for name, s in listing.sources.items()}
    shapes = {}
    for key, source in sources.items():
        try:
            shapes[key] = features_shape(source)
        except DataError as error:
            found.error("unreadable features", error)
    feature_dim = tree.feature_dim
    if feature_dim is None and shapes:
        feature_dim = Counter(shape[1] for shape in shapes.values()).most_common(1)[0][0]
        if len({n for n, _ in shapes.values()}) == 1 and len({dim for _, dim in shapes.values()}) > 1:
            n = next(iter(shapes.values()))[0]
            text = f"all have {n} rows and differ in columns; features are snippets x dimensions"
            found.error("transposed features", f"{tree.layout.folder}: {text}")
            return {}
    found.feature_dim = feature_dim or 0
    lengths: dict[tuple[str, str], int] = {}
    squares = count = 0.0
    digests: dict[bytes, tuple[str, str]] = {}
    for key in tqdm(shapes, desc="read", unit="video", disable=None if progress else True):
        try:
            features = load_features(sources[key], feature_dim)
        except DataError as error:
            found.error("unusable features", error)
            continue
        lengths[key] = len(features)
        squares, count = squares + float(np.square(features, dtype=np.float64).sum()), count + features.size
        if len(features) > 1 and not np.ptp(features, axis=0).any():
            found.warn("constant features", f"{_path(sources[key])}: all {len(features)} snippets are the same")
        first = digests.setdefault(hashlib.blake2b(features.tobytes(), digest_size=16).digest(), key)
        if first != key:
            text = f"{_path(sources[key])}: the same values as {_path(sources[first])}"
            if first[0] == key[0]:
                found.warn("same features twice", text)
            else:
                found.error("test features in training", text)
    if count and (note := unusual_scale(math.sqrt(squares / count))):
        found.warn("unusual feature scale", f"{tree.layout.folder}: {note}")
    return lengths


def _path(source: Source) -> Path:
    return source[0] if isinstance(source, tuple) else source


def _check_durations(
    tree: Tree, listed: dict[str, _Listed], lengths: dict[tuple[str, str], int], found: Inspection
) -> None:
    known, off, seconds = 0, [], []
    ends, beyond = 0, 0
    for (split, name), n in lengths.items():
        annotation = listed[split].annotations.get(name)
        if annotation is None:
            continue
        end, lasts = max((segment.end_s for segment in annotation.segments), default=0.0), tree.spec.duration_s(n)
        ends += bool(annotation.segments)
        if ends_beyond(tree.spec, n, end) and end > FAR * (annotation.duration_s or 0):
            beyond += 1
            if annotation.duration_s is None:
                text = f"{name}: a segment ends at {end:g} s, {n} snippets last {lasts:g} s"
                found.warn("segment after the features' end", f"{tree.annotations_path}: {text}")
        if annotation.duration_s is None:
            continue
        known += 1
        seconds.append(annotation.duration_s / n)
        snippets = snippets_off(tree.spec, n, annotation.duration_s)
        if snippets > DURATION_TOLERANCE:
            off.append(f"{name}: {n} snippets and {annotation.duration_s:g} s are {snippets:.1f} snippets apart")
    if beyond > WRONG_TIMELINE * ends and (beyond > 1 or ends == 1):
        text = f"{beyond} of {ends} videos have segments after their features' end, {tree.spec}"
        found.error("wrong timeline", f"{text} ({tree.spec_source}); are segments in seconds?")
    for text in off:
        found.warn("duration and snippets disagree", f"{tree.annotations_path}: {text}")
    if len(off) > WRONG_TIMELINE * known:
        text = f"{len(off)} of {known} durations disagree with {tree.spec.snippet_s:.4g} s a snippet"
        found.error(
            "wrong timeline", f"{text} ({tree.spec_source}); durations suggest {float(np.median(seconds)):.4g} s"
        )


def _figures(tree: Tree, listing: _Listed, lengths: Sequence[int]) -> Split:
    figures = Split(
        listed=len(listing.names),
        with_features=len(listing.sources),
        missing=len(listing.names) - len(listing.sources),
        segments=sum(len(annotation.segments) for annotation in listing.annotations.values()),
    )
    if lengths:
        figures.snippets, figures.shortest, figures.longest = sum(lengths), min(lengths), max(lengths)
        figures.median = float(np.median(lengths))
        figures.hours = sum(map(tree.spec.duration_s, lengths)) / 3600
    return figures
