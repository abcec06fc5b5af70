"""The change-point scan (section 3.2, eqs. 4-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import scan_reference
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights

__all__ = ["ScanOutput", "ScanRules", "ScanStreams", "ScanWeights", "change_point_scan", "default_backend"]


def default_backend(device: str) -> str:
    """The implementation that `backend="auto"` takes on a device."""
    return "reference"


def change_point_scan(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules = ScanRules(),  # noqa: B008 (immutable)
    *,
    noise: Tensor | None = None,
    lengths: Tensor | None = None,
    forced_changes: Tensor | None = None,
    backend: str = "auto",
) -> ScanOutput:
    """Detect change-points along each sequence and return the latent path (eqs. 4-8)."""
    batch, n_snippets, _ = streams.start.shape
    if lengths is None:
        lengths = torch.full((batch,), n_snippets, device=streams.start.device)
    return scan_reference(streams, weights, rules, noise, lengths, forced_changes)
