"""Data sets written to disk, in each layout that `ahlm.data.layouts` reads."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahlm.data.dataset import FeatureDataset
from ahlm.data.layouts import STREAMS, detect_layout
from ahlm.errors import DataError
from ahlm.files import replacing, write_json, write_text
from ahlm.timeline import FeatureSpec

LAYOUTS = ("acmnet", "basnet", "actionformer", "video_features")
ANNOTATIONS = ("gt.json", "annotations/annotations.json")  # written last: a folder with one of them is complete
# ActionFormer and OpenTAD have no split lists; the subset in the annotations is the split
SUBSET = {"train": "training", "test": "validation"}


def begin(root: Path, layout: str = "acmnet") -> None:
    """Make what is in a folder incomplete before some of it is replaced; its features must be of the same layout.

    Raises:
        DataError: they are of another, and would be found first.
    """
    found = layout
    with contextlib.suppress(DataError):  # nothing is there
        found = detect_layout(root).name
    if found != layout:
        raise DataError(root, "layout", f"{layout}, or an empty folder", found)
    for name in ANNOTATIONS:
        (root / name).unlink(missing_ok=True)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_spec(root: Path, spec: FeatureSpec, feature_dim: int, features: str) -> None:
    """Write `features.json`: the timeline, F, and in words what the features are."""
    write_json(root / "features.json", {"features": features, **vars(spec), "feature_dim": feature_dim})


def write_dataset(
    root: str | Path, splits: Mapping[str, FeatureDataset], layout: str = "acmnet", *, features: str
) -> None:
    """Write the splits of a data set, features as float16.

    Layouts of two streams take the first half of the dimensions for RGB and the second for optical flow. In
    `video_features` the timeline is written as the extractor writes it, and rounded as its milliseconds are; the others
    have a `features.json`.

    Args:
        root: folder to write to; files there are replaced.
        splits: `train` and `test`.
        layout: one of `LAYOUTS`.
        features: in words what the features are.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    root = Path(root)
    begin(root, layout)
    database: dict[str, Any] = {}
    for split, dataset in splits.items():
        database |= dataset.ground_truth(SUBSET[split] if layout == "actionformer" else split)["database"]
        for i, video in enumerate(dataset.videos):
            for path, array in _files(root, split, video.id, dataset.features(i).astype(np.float16), layout):
                write_array(path, array)
            if layout == "video_features":
                _write_timestamps(root / "i3d", video.id, dataset.spec, dataset.n_snippets(i))
        if layout != "actionformer":
            write_text(root / f"split_{split}.txt", "".join(f"{video.id}\n" for video in dataset.videos))
    first = next(iter(splits.values()))
    if layout != "video_features":
        write_spec(root, first.spec, first.feature_dim, features)
    write_json(
        root / ANNOTATIONS[layout == "actionformer"],
        {"version": features, "taxonomy": list(first.classes), "database": database},
    )


def _files(
    root: Path, split: str, name: str, features: NDArray[np.float16], layout: str
) -> list[tuple[Path, NDArray[np.float16]]]:
    if layout == "acmnet":
        return [(root / split / f"{name}.npy", features)]
    if layout == "actionformer":
        return [(root / "features" / f"v_{name}.npy", features)]
    streams = zip(STREAMS, np.array_split(features, len(STREAMS), axis=1), strict=True)
    if layout == "basnet":
        return [(root / "features" / split / stream / f"{name}.npy", half) for stream, half in streams]
    return [(root / "i3d" / f"{name}_{stream}.npy", half) for stream, half in streams]


def _write_timestamps(folder: Path, name: str, spec: FeatureSpec, n_snippets: int) -> None:
    # the last frame of a snippet begins where the snippet ends, one flow field being made of two frames
    ends = np.arange(n_snippets) * spec.stride + spec.window
    write_array(folder / f"{name}_fps.npy", np.array(spec.fps))
    write_array(folder / f"{name}_timestamps_ms.npy", 1000 * ends / spec.fps)
