"""Snippet features on disk: where each layout keeps them, and arrays that are checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahlm.errors import DataError


def load_features(path: str | Path, feature_dim: int | None = None) -> NDArray[np.float32]:
    """Features of one video [n, F] as float32.

    Args:
        path: a .npy file.
        feature_dim: the F that the other videos have.

    Raises:
        DataError: no such file, not an array, truncated, not [n >= 1, F], another F, or not finite.
    """
    path = Path(path)
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(path, "file", "snippet features [n, F]", "no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, "file", "a complete .npy array of numbers", error) from None
    return check_features(array, path, feature_dim)


def check_features(array: object, path: str | Path, feature_dim: int | None) -> NDArray[np.float32]:
    """The array as float32 [n, F], or a `DataError` that says what is wrong with it."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(path, "dtype", "numbers", getattr(array, "dtype", type(array).__name__))
    expected = f"[n >= 1, {feature_dim or 'F'}]"
    if array.ndim != 2 or 0 in array.shape or (feature_dim is not None and array.shape[1] != feature_dim):
        transposed = array.ndim == 2 and feature_dim is not None and array.shape[0] == feature_dim
        hint = "looks transposed: features are snippets x dimensions" if transposed else ""
        raise DataError(path, "shape", expected, list(array.shape), hint)
    features = array.astype(np.float32)
    if not np.isfinite(features).all():
        snippet, dimension = np.argwhere(~np.isfinite(features))[0]
        raise DataError(path, f"value [{snippet}, {dimension}]", "a finite number", array[snippet, dimension])
    return features
