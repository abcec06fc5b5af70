"""Padded batches: which snippets are real, and the order in which kernels take the videos."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)


def snippet_mask(lengths: Tensor, n_snippets: int) -> Tensor:
    """True at real snippets, (B, T)."""
    return torch.arange(n_snippets, device=lengths.device) < lengths[:, None]


def real_only(tensor: OptionalTensor, real: Tensor) -> OptionalTensor:
    """(B, T) or (B, T, N) with 0 at padded snippets: NaN there reaches neither results nor gradients."""
    if tensor is None:
        return None
    return torch.where(real if tensor.ndim == 2 else real[..., None], tensor, 0.0)


def longest_first(lengths: Tensor) -> Tensor:
    """Videos (B,) in order of falling length, so that those run side by side end together."""
    return lengths.argsort(descending=True, stable=True)
