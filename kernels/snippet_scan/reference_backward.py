"""The snippet scan differentiated by hand: the specification of every fast backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaussian import Gaussian, kl_backward, split, split_backward
from ..gru import gru_cell_backward
from ..padding import real_only, snippet_mask
from .types import SnippetOutput, SnippetWeights


def snippet_scan_reference_backward(
    gradients: SnippetOutput,
    output: SnippetOutput,
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, SnippetWeights]:
    """Gradients of both streams and of the weights, given those of a scan's result; zeros at padded snippets."""
    n_snippets = prior_stream.shape[1]
    real = snippet_mask(lengths, n_snippets)
    g_kl, g_latent, g_state, prior_stream, posterior_stream, noise = (
        real_only(tensor, real) for tensor in (*gradients, prior_stream, posterior_stream, noise)
    )
    g_prior, g_posterior = torch.zeros_like(prior_stream), torch.zeros_like(posterior_stream)
    g_weights = SnippetWeights(*(torch.zeros_like(tensor) for tensor in weights))
    gd = torch.zeros_like(output.state[:, 0])
    for t in reversed(range(n_snippets)):
        v, d = output.latent[:, t], output.state[:, t]
        # d at t + 1 is the learned start after a change-point, else what the GRU makes of v and d
        changed = change_points[:, t, None]
        g_weights.initial_state.add_(torch.where(changed, gd, 0.0).sum(0))
        gv, gd, to_input, to_state = gru_cell_backward(v, d, weights[:4], torch.where(changed, 0.0, gd))
        g_weights.gru_input.add_(to_input.T @ v)
        g_weights.gru_state.add_(to_state.T @ d)
        g_weights.gru_input_bias.add_(to_input.sum(0))
        g_weights.gru_state_bias.add_(to_state.sum(0))

        pre_prior = prior_stream[:, t] + d @ weights.prior_state.T
        pre_posterior = posterior_stream[:, t] + d @ weights.posterior_state.T
        posterior = split(pre_posterior)
        gv = gv + g_latent[:, t]
        from_kl, to_prior = kl_backward(posterior, split(pre_prior), g_kl[:, t])
        drawn = Gaussian(from_kl.mean + gv, from_kl.log_std + gv * posterior.log_std.exp() * noise[:, t])
        # past a video's end gd is still zero, and so is everything that comes of it
        g_prior[:, t] = split_backward(pre_prior, to_prior)
        g_posterior[:, t] = split_backward(pre_posterior, drawn)
        g_weights.prior_state.add_(g_prior[:, t].T @ d)
        g_weights.posterior_state.add_(g_posterior[:, t].T @ d)
        gd = gd + g_prior[:, t] @ weights.prior_state + g_posterior[:, t] @ weights.posterior_state + g_state[:, t]
    g_weights.initial_state.add_(gd.sum(0))
    return g_prior, g_posterior, g_weights
