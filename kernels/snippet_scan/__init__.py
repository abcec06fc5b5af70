"""The snippet scan of level 1 (section 3.2), for training."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import snippet_scan_reference
from .types import SnippetOutput, SnippetWeights

__all__ = ["SnippetOutput", "SnippetWeights", "snippet_scan"]


def snippet_scan(
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    *,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor | None = None,
) -> SnippetOutput:
    """Latent path of level 1: a GRU that runs every snippet and starts afresh right after each change-point.

    Args:
        prior_stream: pre-activations of P1 without the state's part (B, T, 2Z): means, then log standard deviations.
        posterior_stream: of Q1, likewise.
        weights: GRU, the state's part of both heads, learned start.
        noise: standard normal (B, T, Z).
        change_points: (B, T) bool.
        lengths: real snippets of each sequence (B,); none: all. Nothing past them is read.

    Returns:
        KL(Q1 || P1) in nats (B, T), latent (B, T, Z), state (B, T, H); zeros at padded snippets.

    Raises:
        ValueError: a shape that does not fit; names the argument, expected and got.
    """
    batch, n_snippets, z2 = prior_stream.shape
    expected = {
        "posterior_stream": (posterior_stream, (batch, n_snippets, z2)),
        "noise": (noise, (batch, n_snippets, z2 // 2)),
        "change_points": (change_points, (batch, n_snippets)),
    }
    if lengths is None:
        lengths = torch.full((batch,), n_snippets, device=prior_stream.device)
    expected["lengths"] = (lengths, (batch,))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
    return snippet_scan_reference(prior_stream, posterior_stream, weights, noise, change_points, lengths)
