"""The snippet scan of level 1 (section 3.2), for training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiled import check_lengths, check_tensors, choose_backend, promoted
from .op import snippet_scan_op
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
    backend: str = "auto",
    precision: str = "fp32",
) -> SnippetOutput:
    """Latent path of level 1: a GRU that runs every snippet and starts afresh right after each change-point.

    Args:
        prior_stream: pre-activations of P1 without the state's part (B, T, 2Z): means, then log standard deviations.
        posterior_stream: of Q1, likewise.
        weights: GRU, the state's part of both heads, learned start.
        noise: standard normal (B, T, Z).
        change_points: (B, T) bool.
        lengths: real snippets of each sequence (B,), at least 1; none: all. Nothing past them is read.
        backend: as for `change_point_scan`.
        precision: likewise.

    Returns:
        KL(Q1 || P1) in nats (B, T), latent (B, T, Z), state (B, T, H); zeros at padded snippets.

    Raises:
        ValueError: a shape, dtype or device that does not fit; names the argument, expected and got.
    """
    prior_stream, posterior_stream, noise = promoted(prior_stream), promoted(posterior_stream), promoted(noise)
    weights = SnippetWeights(*map(promoted, weights))
    if prior_stream.ndim != 3 or prior_stream.shape[2] % 2 or 0 in prior_stream.shape:
        raise ValueError(f"prior_stream must be (B, T >= 1, 2Z), got {tuple(prior_stream.shape)}")
    batch, n_snippets, z2 = prior_stream.shape
    if lengths is None:
        lengths = torch.full((batch,), n_snippets, device=prior_stream.device)
    h = weights.initial_state.shape[-1]
    shapes = ((3 * h, z2 // 2), (3 * h, h), (3 * h,), (3 * h,), (z2, h), (z2, h), (h,))
    expected = {
        f"weights.{name}": (getattr(weights, name), shape) for name, shape in zip(weights._fields, shapes, strict=True)
    }
    expected |= {
        "posterior_stream": (posterior_stream, (batch, n_snippets, z2)),
        "noise": (noise, (batch, n_snippets, z2 // 2)),
        "change_points": (change_points, (batch, n_snippets)),
        "lengths": (lengths, (batch,)),
    }
    check_tensors(expected, prior_stream)
    request = choose_backend(backend, precision, prior_stream)
    arguments = (prior_stream, posterior_stream, weights, noise, change_points, lengths)
    with torch.autocast(prior_stream.device.type, enabled=False):
        if request != "reference":
            return snippet_scan_op(*arguments, request, precision)
        check_lengths(lengths, n_snippets)
        return snippet_scan_reference(*arguments)
