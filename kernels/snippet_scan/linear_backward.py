"""The snippet scan's backward as the GPU kernels run it: see `kernels/recursion.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaussian import Gaussian, kl_backward, split, split_backward
from ..gru import add_gru_gradients, gru_steps, outer
from ..padding import real_only, snippet_mask
from ..recursion import Recursion, Solve
from .types import SnippetOutput, SnippetWeights


def snippet_linear_backward(
    solve: Solve,
    gradients: SnippetOutput,
    output: SnippetOutput,
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, SnippetWeights]:
    """`snippet_scan_reference_backward` with all but what `solve` runs done for all steps at once."""
    real = snippet_mask(lengths, prior_stream.shape[1])
    g_kl, g_latent, g_state, prior_stream, posterior_stream, noise = (
        real_only(tensor, real) for tensor in (*gradients, prior_stream, posterior_stream, noise)
    )
    d = output.state
    pre_prior = prior_stream + d @ weights.prior_state.T
    pre_posterior = posterior_stream + d @ weights.posterior_state.T
    posterior = split(pre_posterior)
    from_kl, to_prior = kl_backward(posterior, split(pre_prior), g_kl)
    to_pre_prior = split_backward(pre_prior, to_prior)
    noise_std = posterior.log_std.exp() * noise
    steps = gru_steps(output.latent[:, :-1], d[:, :-1], weights[:4])
    zeros, ones = torch.zeros_like(noise_std), torch.ones_like(noise_std)
    inside = split_backward(pre_posterior, Gaussian(zeros, ones)).chunk(2, dim=-1)[1]
    # a posterior owes nothing to the one before, and all of its gradient passes through head Q1
    restarts = change_points[:, :-1] & real[:, 1:]
    gb, gd = solve(
        Recursion(
            *weights[:2],
            steps,
            weights.posterior_state,
            lengths,
            restarts,
            into_state=g_state + to_pre_prior @ weights.prior_state,
            through_state=torch.zeros_like(d[:, :-1]),
            columns=[from_kl.mean + g_latent, from_kl.log_std + g_latent * noise_std, noise_std],
            links=[term[:, 1:] for term in (zeros, zeros, zeros, zeros, ones, inside)],
            after_restart=True,
        )
    )
    to_pre_posterior = split_backward(pre_posterior, Gaussian(*gb.chunk(2, dim=-1)))
    gd = gd + to_pre_posterior @ weights.posterior_state
    to_next = torch.where(restarts[..., None], 0.0, gd[:, 1:])
    found = SnippetWeights(*(torch.zeros_like(tensor) for tensor in weights))
    found.initial_state.copy_(gd.sum((0, 1)) - to_next.sum((0, 1)))
    found.prior_state.copy_(outer(to_pre_prior, d))
    found.posterior_state.copy_(outer(to_pre_posterior, d))
    add_gru_gradients(steps, to_next, output.latent[:, :-1], d[:, :-1], found[:4])
    return to_pre_prior, to_pre_posterior, found
