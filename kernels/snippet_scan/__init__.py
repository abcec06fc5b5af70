"""The snippet scan of level 1 (section 3.2), for training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..change_point_scan.reference import gru_cell
from ..gaussian import kl, split


class SnippetWeights(NamedTuple):
    gru_input: Tensor
    gru_state: Tensor
    gru_input_bias: Tensor
    gru_state_bias: Tensor
    prior_state: Tensor
    posterior_state: Tensor
    initial_state: Tensor


class SnippetOutput(NamedTuple):
    kl: Tensor
    latent: Tensor
    state: Tensor


def snippet_scan(prior_stream, posterior_stream, weights, *, noise, change_points, lengths, backend="auto"):
    batch, n, _ = prior_stream.shape
    real = torch.arange(n, device=prior_stream.device) < lengths[:, None]
    prior_stream = torch.where(real[..., None], prior_stream, 0.0)
    posterior_stream = torch.where(real[..., None], posterior_stream, 0.0)
    d0 = weights.initial_state.expand(batch, -1)
    d, kls, latents, states = d0, [], [], []
    for t in range(n):
        prior = split(prior_stream[:, t] + d @ weights.prior_state.T)
        posterior = split(posterior_stream[:, t] + d @ weights.posterior_state.T)
        v = posterior.mean + posterior.log_std.exp() * noise[:, t]
        kls.append(kl(posterior, prior)); latents.append(v); states.append(d)
        d = torch.where(change_points[:, t, None], d0, gru_cell(v, d, weights))
    m = real[..., None]
    return SnippetOutput(torch.where(real, torch.stack(kls, 1), 0.0), torch.where(m, torch.stack(latents, 1), 0.0), torch.where(m, torch.stack(states, 1), 0.0))
