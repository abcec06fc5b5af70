"""The snippet scan of level 1, one loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaussian import kl, split
from ..gru import gru_cell
from ..padding import real_only, snippet_mask
from .types import SnippetOutput, SnippetWeights


def snippet_scan_reference(
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
) -> SnippetOutput:
    """Level 1 for a padded batch; see `snippet_scan` for the arguments."""
    batch, n_snippets, _ = prior_stream.shape
    real = snippet_mask(lengths, n_snippets)
    prior_stream, posterior_stream, noise = (
        real_only(tensor, real) for tensor in (prior_stream, posterior_stream, noise)
    )
    start = weights.initial_state.expand(batch, -1)
    d, columns = start, []
    for t in range(n_snippets):
        prior = split(prior_stream[:, t] + d @ weights.prior_state.T)
        posterior = split(posterior_stream[:, t] + d @ weights.posterior_state.T)
        v = posterior.mean + posterior.log_std.exp() * noise[:, t]
        columns.append((kl(posterior, prior), v, d))
        d = torch.where(change_points[:, t, None], start, gru_cell(v, d, weights[:4]))
    outputs = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    return SnippetOutput(*(real_only(value, real) for value in outputs))
