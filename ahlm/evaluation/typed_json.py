"""Detections straight from JSON bytes into columns, by msgspec; needs the file and the columns in memory, no more."""

from __future__ import annotations

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


class Columns(NamedTuple):
    """Detections of one video: labels, and start, end, score as [N] float64."""

    label: list[str]
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


def columns(video: Any) -> Columns | None:
    """Detections of one video; none where they are not what they should be, which the general reader explains."""
    try:
        items = _decode_video(video)
    except (ValueError, RecursionError):
        return None
    numbers = np.array([(*item.segment, item.score) for item in items], np.float64).reshape(-1, 3)
    if not np.isfinite(numbers).all():
        return None
    return Columns([item.label for item in items], *numbers.T)


def plain(video: Any) -> bytes:
    """The JSON text of a video's detections."""
    return bytes(video)
