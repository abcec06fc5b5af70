"""Detections straight from JSON bytes into columns, by msgspec; needs the file and the columns in memory, no more."""

from __future__ import annotations

from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class _Detection(msgspec.Struct, gc=False):
    label: str
    score: float
    segment: tuple[float, float]


class _File(msgspec.Struct, gc=False):
    results: dict[str, msgspec.Raw]
    ahlm: Any = None


# not strict: some projects write numbers as strings
_decode_file = msgspec.json.Decoder(_File).decode
_decode_video = msgspec.json.Decoder(list[_Detection], strict=False).decode
Raw = msgspec.Raw


_label, _score, _segment = attrgetter("label"), attrgetter("score"), attrgetter("segment")


class Columns(NamedTuple):
    """Detections of one video: class indices [N] int64, -1 of unknown labels; start, end, score [N] float64."""

    class_index: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    score: NDArray[np.float64]


def read_file(path: str | Path) -> tuple[dict[str, Any], Any] | None:
    """Undecoded detections of each video, and the `ahlm` part; none where the general reader has to look."""
    try:
        content = _decode_file(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content.results, content.ahlm


def columns(video: Any, class_index: dict[str, int]) -> Columns | None:
    """Detections of one video; none where they are not what they should be, which the general reader explains."""
    try:
        items = _decode_video(video)
    except (ValueError, RecursionError):
        return None
    # iterators from end to end: no Python code runs for a detection
    score = np.fromiter(map(_score, items), np.float64, len(items))
    segment = np.fromiter(chain.from_iterable(map(_segment, items)), np.float64, 2 * len(items))
    if not (np.isfinite(score).all() and np.isfinite(segment).all()):
        return None
    index = np.fromiter(map(class_index.get, map(_label, items), repeat(-1)), np.int64, len(items))
    return Columns(index, segment[::2], segment[1::2], score)
