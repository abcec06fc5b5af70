"""Snippet features of one video: one array file, or one a stream, checked before they are used."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ahlm.errors import DataError

# a file [n, F], or one [n, F_stream] a stream, joined along F in this order (RGB, then flow)
Source: TypeAlias = Path | tuple[Path, ...]

SUFFIXES = (".npy", ".npz")
LARGEST = 1e15  # sums of squares of larger values leave float32
NPZ_KEY = "feats"  # ActionFormer's and OpenTAD's name of the array in a .npz


def load_features(source: str | Source, feature_dim: int | None = None) -> NDArray[np.float32]:
    """Features of one video [n, F] as float32, every value finite; streams are joined along F.

    Streams may differ by one snippet, as optical flow lacks the last frame; the shorter counts.

    Args:
        source: a .npy file, a .npz that holds `feats`, or one such file a stream.
        feature_dim: the F that the other videos have.

    Raises:
        DataError: no such file, not an array, truncated, not [n >= 1, F], another F, not finite, or streams that
            differ by more than one snippet.
    """
    n, _ = features_shape(source, feature_dim)
    streams = [check_features(_map_array(path), path, None) for path in _paths(source)]
    return streams[0] if len(streams) == 1 else np.concatenate([stream[:n] for stream in streams], axis=1)


def map_features(source: str | Source) -> NDArray[np.float32]:
    """Features that `load_features` found good once: a float32 .npy is read only where it is touched."""
    paths = _paths(source)
    arrays = [np.asarray(_map_array(path), np.float32) for path in paths]
    n = min(map(len, arrays))
    return arrays[0] if len(arrays) == 1 else np.concatenate([array[:n] for array in arrays], axis=1)


def features_shape(source: str | Source, feature_dim: int | None = None) -> tuple[int, int]:
    """(n, F) from the files' headers alone; raises `DataError` as `load_features` does for what headers tell."""
    paths = _paths(source)
    shapes = []
    for path in paths:
        shape, dtype = _read_header(path)
        _check_header(shape, dtype, path, feature_dim if len(paths) == 1 else None)
        shapes.append(shape)
    lengths, total = [shape[0] for shape in shapes], sum(shape[1] for shape in shapes)
    if max(lengths) - min(lengths) > 1:
        raise DataError(paths[1], "snippets", f"{lengths[0]} as in {paths[0]}, give or take one", lengths[1])
    if feature_dim is not None and total != feature_dim:
        raise DataError(paths[0], "shape", f"{feature_dim} dimensions in {len(paths)} streams together", total)
    return min(lengths), total


def streams_differ(source: Source) -> bool:
    """Whether the streams of a video differ in length, so that one of them is cut."""
    return len({_read_header(path)[0][0] for path in _paths(source)}) > 1


def check_features(array: object, path: str | Path, feature_dim: int | None) -> NDArray[np.float32]:
    """The array as float32 [n, F], or a `DataError` that says what is wrong with it."""
    if not isinstance(array, np.ndarray):
        raise DataError(path, "dtype", "numbers", type(array).__name__)
    _check_header(array.shape, array.dtype, path, feature_dim)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as such below
        features = np.array(array, np.float32) if isinstance(array, np.memmap) else np.asarray(array, np.float32)
    if not (features.min() > -LARGEST and features.max() < LARGEST):  # nor for NaN
        snippet, dimension = np.argwhere(~(np.abs(features) < LARGEST))[0]
        value = array[snippet, dimension]
        expected = f"a number of a feature's size, below {LARGEST:g}" if np.isfinite(value) else "a finite number"
        raise DataError(path, f"value [{snippet}, {dimension}]", expected, value)
    return features


def _check_header(shape: Sequence[int], dtype: np.dtype[Any], path: str | Path, feature_dim: int | None) -> None:
    if dtype.kind not in "fiu":
        hint = "pickled objects are not loaded" if dtype.hasobject else ""
        raise DataError(path, "dtype", "numbers", dtype, hint)
    if len(shape) != 2 or 0 in shape or (feature_dim is not None and shape[1] != feature_dim):
        transposed = len(shape) == 2 and feature_dim is not None and shape[0] == feature_dim
        hint = "looks transposed: features are snippets x dimensions" if transposed else ""
        raise DataError(path, "shape", f"[n >= 1, {feature_dim or 'F'}]", list(shape), hint)


def _paths(source: str | Source) -> tuple[Path, ...]:
    return source if isinstance(source, tuple) else (Path(source),)


@contextmanager
def _open_array(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The .npy data of a file, and how many bytes of it there are."""
    try:
        if path.suffix.lower() != ".npz":
            with path.open("rb") as file:
                yield file, path.stat().st_size
            return
        with zipfile.ZipFile(path) as archive:
            if f"{NPZ_KEY}.npy" not in archive.namelist():
                stored = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
                raise DataError(path, NPZ_KEY, "an array of this name", stored or "an empty archive")
            with archive.open(f"{NPZ_KEY}.npy") as member:
                yield member, archive.getinfo(f"{NPZ_KEY}.npy").file_size
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(path, "file", "snippet features [n, F]", "no such file") from None
    except Exception as error:  # damaged archives and headers raise many kinds
        raise DataError(path, "file", "a complete .npy or .npz array of numbers", error) from None


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with _open_array(path) as (file, size):
        version = np.lib.format.read_magic(file)
        # later versions exist for field names alone, which numbers do not have
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        # an object array is pickled, its size says nothing; it is refused for its dtype
        missing = 0 if dtype.hasobject else file.tell() + math.prod(shape) * dtype.itemsize - size
    if missing > 0:
        raise DataError(path, "file", f"a complete array {list(shape)} of {dtype}", f"{missing} bytes too few")
    return shape, dtype


def _map_array(path: Path) -> NDArray[Any]:
    with _open_array(path) as (file, _):
        if path.suffix.lower() == ".npz":
            return np.lib.format.read_array(file, allow_pickle=False)
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
