"""The map between snippets and seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureSpec:
    """How snippets were cut from the video (section 4.2 of the paper: 25 fps, 16 frames).

    Snippet i covers the seconds `[i * stride / fps, (i * stride + window) / fps)`.

    Attributes:
        fps: frames a second at which the features were extracted.
        stride: frames between the starts of neighbouring snippets.
        window: frames a snippet covers.
    """

    fps: float = 25.0
    stride: float = 16
    window: float = 16

    def __post_init__(self) -> None:
        for name in ("fps", "stride", "window"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")

    def __str__(self) -> str:
        return f"{self.fps:g} fps, stride {self.stride:g}, window {self.window:g}: {self.snippet_s:.4g} s a snippet"

    @property
    def snippet_s(self) -> float:
        """Seconds from one snippet to the next."""
        return self.stride / self.fps

    def edges_s(self, n_snippets: int) -> NDArray[np.float64]:
        """Seconds of the `n_snippets + 1` edges between snippets.

        Edge e lies midway between the centres of snippets e - 1 and e, which for `window == stride` is the end of
        one and the start of the other.
        """
        edges = np.arange(n_snippets + 1, dtype=np.float64)
        return (edges * self.stride + (self.window - self.stride) / 2) / self.fps

    def edge_position(self, seconds: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Position in snippets (fractional) of a time; the inverse of `edges_s`."""
        return np.asarray((np.asarray(seconds) * self.fps - (self.window - self.stride) / 2) / self.stride)

    def duration_s(self, n_snippets: int) -> float:
        """Seconds that `n_snippets` snippets cover."""
        return ((n_snippets - 1) * self.stride + self.window) / self.fps if n_snippets else 0.0
