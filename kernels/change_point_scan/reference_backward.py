"""The change-point scan differentiated by hand: the specification of every fast backward.

Nothing but the outputs of the forward scan is kept; gates and KLs are computed anew. The decisions are constants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gaussian import Gaussian, add, fuse, fuse_backward, kl_backward, split, split_backward
from ..gru import gru_cell, gru_cell_backward
from ..padding import real_only, snippet_mask
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights


def scan_reference_backward(
    gradients: ScanOutput,
    output: ScanOutput,
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
) -> tuple[ScanStreams, ScanWeights]:
    """Gradients of streams and weights, given those of a scan's result, of which `change_points` is not read.

    `output` is what the forward scan returned, and the rest what it was given.

    Returns:
        Zeros where a stream was padded or a weight was not used, none where a tensor was none.
    """
    batch, n_snippets, _ = streams.start.shape
    real = snippet_mask(lengths, n_snippets)
    g = ScanOutput(gradients.change_points, *(real_only(tensor, real) for tensor in gradients[1:]))
    start = real_only(streams.start, real)
    prior, posterior = real_only(streams.prior, real), real_only(streams.posterior, real)
    noise = torch.zeros_like(output.latent) if noise is None else real_only(noise, real)
    zeros: list[Any] = [None if tensor is None else torch.zeros_like(tensor) for tensor in (*streams, *weights)]
    g_streams, g_weights = ScanStreams(*zeros[:3]), ScanWeights(*zeros[3:])
    transition = weights[:4]

    def into_belief(t: int, belief: Gaussian, gv: Tensor) -> Gaussian:
        """v_t = mean + exp(log_std) noise, and the belief itself is an output."""
        gv = gv + g.latent[:, t]
        return Gaussian(g.belief_mean[:, t] + gv, g.belief_log_std[:, t] + gv * belief.log_std.exp() * noise[:, t])

    def into_head(
        pre: Tensor, state: Tensor, weight: Tensor | None, g_weight: Tensor | None, gradient: Gaussian
    ) -> tuple[Tensor, Tensor]:
        """A head on `state`: gradient of its pre-activation and of the state; that of its weight is added up."""
        assert weight is not None
        assert g_weight is not None
        to_pre = split_backward(pre, gradient)
        g_weight += to_pre.T @ state
        return to_pre, to_pre @ weight

    zero_z, zero_h = torch.zeros_like(output.latent[:, 0]), torch.zeros_like(output.state[:, 0])
    gv, gd, carried = zero_z, zero_h, Gaussian(zero_z, zero_z)
    for t in reversed(range(n_snippets - 1)):
        # the forward step once more
        changed = output.change_points[:, t + 1]
        v, d = output.latent[:, t], output.state[:, t]
        belief = Gaussian(output.belief_mean[:, t], output.belief_log_std[:, t])
        after = Gaussian(output.belief_mean[:, t + 1], output.belief_log_std[:, t + 1])
        d_next = gru_cell(v, d, transition) if rules.uses_state else d
        pre_e = start[:, t + 1]
        if posterior is not None and weights.posterior_state is not None:
            pre_e = posterior[:, t + 1] + d_next @ weights.posterior_state.T
        r, e = split(start[:, t + 1]), split(pre_e)
        q = fuse(belief, e, rules.belief_weight, rules.evidence_weight)

        # the belief at t + 1 is q, or after a change r (or e)
        gb = add(carried, into_belief(t + 1, after, gv))
        g_static, g_change, g_charged = (column[:, t + 1] for column in (g.kl_static, g.kl_change, g.kl_charged))
        mask = changed[:, None]
        new = r if rules.reset else e

        # kl_static, or what is charged without a change
        if rules.static_belief == "held":
            pre_static, p_static = None, belief
        else:
            assert prior is not None
            assert weights.prior_state is not None
            pre_static = prior[:, t] + d @ weights.prior_state.T
            p_static = split(pre_static)
        q_from_static, to_static = kl_backward(q, p_static, g_static + torch.where(changed, 0.0, g_charged))

        # kl_change, and what is charged at a change
        if rules.change_prior == "constant":
            assert weights.prior_bias is not None
            pre_change = weights.prior_bias.expand(batch, -1)
        else:
            assert weights.prior_state is not None
            offset = prior[:, t] if rules.change_prior == "full" and prior is not None else weights.prior_bias
            assert offset is not None
            pre_change = offset + d_next @ weights.prior_state.T
        p_change = split(pre_change)
        q_from_change, to_change = kl_backward(q, p_change, g_change)
        new_from_charge, to_charge = kl_backward(new, p_change, torch.where(changed, g_charged, 0.0))

        gq = add(q_from_static, q_from_change, Gaussian(*(torch.where(mask, 0.0, part) for part in gb)))
        g_new = add(new_from_charge, Gaussian(*(torch.where(mask, part, 0.0) for part in gb)))
        gp = add(to_change, to_charge)
        carried, ge = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, gq)
        gr = g_new
        if not rules.reset:
            ge, gr = add(ge, g_new), Gaussian(zero_z, zero_z)

        # d at t + 1 is d', or d0 after a reset
        gd = gd + g.state[:, t + 1]
        if rules.reset:
            g_weights.initial_state.add_(torch.where(mask, gd, 0.0).sum(0))
            gd = torch.where(mask, 0.0, gd)
        g_start = split_backward(start[:, t + 1], gr)
        if g_streams.posterior is None:
            g_start = g_start + split_backward(pre_e, ge)
        else:
            to_pre, to_state = into_head(pre_e, d_next, weights.posterior_state, g_weights.posterior_state, ge)
            g_streams.posterior[:, t + 1] = to_pre
            gd = gd + to_state
        g_streams.start[:, t + 1] = g_start
        if rules.change_prior == "constant":
            g_weights.prior_bias.add_(split_backward(pre_change, gp).sum(0))  # type: ignore[union-attr]
        else:
            to_pre, to_state = into_head(pre_change, d_next, weights.prior_state, g_weights.prior_state, gp)
            gd = gd + to_state
            if rules.change_prior == "full":
                g_streams.prior[:, t].add_(to_pre)  # type: ignore[index]
            else:
                g_weights.prior_bias.add_(to_pre.sum(0))  # type: ignore[union-attr]
        if rules.uses_state:
            gv, gd, to_input, to_hidden = gru_cell_backward(v, d, transition, gd)
            g_weights.gru_input.add_(to_input.T @ v)
            g_weights.gru_state.add_(to_hidden.T @ d)
            g_weights.gru_input_bias.add_(to_input.sum(0))
            g_weights.gru_state_bias.add_(to_hidden.sum(0))
        else:
            gv = zero_z
        if pre_static is None:
            carried = add(carried, to_static)
        else:
            to_pre, to_state = into_head(pre_static, d, weights.prior_state, g_weights.prior_state, to_static)
            g_streams.prior[:, t].add_(to_pre)  # type: ignore[index]
            gd = gd + to_state

    # the first snippet charges KL(belief || N(0, I))
    belief = split(start[:, 0])
    standard = Gaussian(zero_z, zero_z)
    from_charge, _ = kl_backward(belief, standard, g.kl_charged[:, 0])
    parts = (into_belief(0, belief, gv), carried, from_charge)
    g_streams.start[:, 0] = split_backward(start[:, 0], add(*parts))
    g_weights.initial_state.add_((gd + g.state[:, 0]).sum(0))
    return g_streams, g_weights
