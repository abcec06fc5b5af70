"""The change-point scan's backward as the GPU kernels run it: see `kernels/recursion.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..gaussian import Gaussian, add, fuse, fuse_backward, kl_backward, split, split_backward
from ..gru import add_gru_gradients, gru_steps, outer
from ..padding import real_only, snippet_mask
from ..recursion import Recursion, Solve
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights


def scan_linear_backward(
    solve: Solve,
    gradients: ScanOutput,
    output: ScanOutput,
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
) -> tuple[ScanStreams, ScanWeights]:
    """`scan_reference_backward` with all that needs no order of steps done for all steps at once.

    What is left to `solve` is linear: the gradient of the belief passes through the filter dimension by dimension, that
    of the state through the GRU (and, under `evidence: transition`, from the belief to the state through head Q).
    """
    batch, n_snippets, z2 = streams.start.shape
    z = z2 // 2
    real = snippet_mask(lengths, n_snippets)
    g = ScanOutput(gradients.change_points, *(real_only(tensor, real) for tensor in gradients[1:]))
    start = real_only(streams.start, real)
    prior, posterior = real_only(streams.prior, real), real_only(streams.posterior, real)
    prior = None if prior is None else prior[:, :-1]
    posterior = None if posterior is None else posterior[:, 1:]
    noise = torch.zeros_like(output.latent) if noise is None else real_only(noise, real)
    changed = output.change_points[:, 1:, None]

    # the forward steps once more, from columns t = 0 .. T - 2 to the next
    v, d = output.latent[:, :-1], output.state[:, :-1]
    belief = Gaussian(output.belief_mean[:, :-1], output.belief_log_std[:, :-1])
    steps = gru_steps(v, d, weights[:4]) if rules.uses_state else None
    d_next = d if steps is None else steps.d_next

    def head(weight: Tensor | None, offset: Tensor | None, state: Tensor) -> Tensor:
        assert weight is not None
        assert offset is not None
        return offset + state @ weight.T

    pre_r = pre_e = start[:, 1:]
    if posterior is not None:
        pre_e = head(weights.posterior_state, posterior, d_next)
    r, e = split(pre_r), split(pre_e)
    q = fuse(belief, e, rules.belief_weight, rules.evidence_weight)
    new = r if rules.reset else e
    pre_static = None if rules.static_belief == "held" else head(weights.prior_state, prior, d)
    if rules.change_prior == "constant":
        assert weights.prior_bias is not None
        pre_change = weights.prior_bias.expand(batch, n_snippets - 1, -1)
    else:
        pre_change = head(weights.prior_state, prior if rules.change_prior == "full" else weights.prior_bias, d_next)

    # the KLs, given their gradients: of q, of the Gaussian after a change, of the priors
    g_static, g_change, g_charged = (column[:, 1:] for column in (g.kl_static, g.kl_change, g.kl_charged))
    at_change = torch.where(changed[..., 0], g_charged, 0.0)
    p_change = split(pre_change)
    q_from_static, to_static = kl_backward(
        q, belief if pre_static is None else split(pre_static), g_static + g_charged - at_change
    )
    q_from_change, to_change = kl_backward(q, p_change, g_change)
    new_from_charge, to_charge = kl_backward(new, p_change, at_change)
    gq = add(q_from_static, q_from_change)
    to_pre_change = split_backward(pre_change, add(to_change, to_charge))
    through_belief, through_e = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, gq)
    through_state, into_state = torch.zeros_like(d), g.state
    if pre_static is None:
        through_belief = add(through_belief, to_static)
    else:
        assert weights.prior_state is not None
        to_pre_static = split_backward(pre_static, to_static)
        into_state = into_state + pad(to_pre_static @ weights.prior_state, (0, 0, 0, 1))
    if rules.change_prior != "constant":
        assert weights.prior_state is not None
        through_state = to_pre_change @ weights.prior_state
    if posterior is not None:
        assert weights.posterior_state is not None
        known = through_e if rules.reset else add(through_e, new_from_charge)
        from_known = split_backward(pre_e, known) @ weights.posterior_state
        through_state = through_state + from_known

    # what is left, step by step
    noise_std = output.belief_log_std.exp() * noise
    share, pull = _through_filter(belief, e, rules, changed)
    rest = torch.where(changed, 0.0 if rules.reset else 1.0, 1.0 - share)
    share = torch.where(changed, 0.0, share)
    inside = split_backward(pre_e, Gaussian(torch.zeros_like(share), torch.ones_like(share)))[..., z:]
    links = [share, pull, *through_belief, rest, inside]
    columns = [g.belief_mean + g.latent, g.belief_log_std + g.latent * noise_std, noise_std]
    restarts = changed[..., 0] & rules.reset if rules.uses_state else torch.ones_like(changed[..., 0])
    left = (lengths, restarts, into_state, through_state)
    gb, gd = solve(Recursion(*weights[:2], steps, weights.posterior_state, *left, columns, links))

    # streams and weights, from the gradients of all beliefs and states
    g_belief = Gaussian(*(part[:, 1:] for part in gb.chunk(2, dim=-1)))
    gq = add(gq, Gaussian(*(torch.where(changed, 0.0, part) for part in g_belief)))
    g_new = add(new_from_charge, Gaussian(*(torch.where(changed, part, 0.0) for part in g_belief)))
    _, ge = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, gq)
    if not rules.reset:
        ge, g_new = add(ge, g_new), Gaussian(torch.zeros_like(g_new.mean), torch.zeros_like(g_new.mean))
    to_pre_e = split_backward(pre_e, ge)
    g_start = split_backward(pre_r, g_new)
    if posterior is None:
        g_start = g_start + to_pre_e
    standard = Gaussian(torch.zeros_like(gb[:, 0, :z]), torch.zeros_like(gb[:, 0, :z]))
    from_charge, _ = kl_backward(split(start[:, 0]), standard, g.kl_charged[:, 0])
    first = split_backward(start[:, 0], add(Gaussian(*gb[:, 0].chunk(2, dim=-1)), from_charge))
    zeros: list[Any] = [None if tensor is None else torch.zeros_like(tensor) for tensor in (*streams, *weights)]
    g_streams, g_weights = ScanStreams(*zeros[:3]), ScanWeights(*zeros[3:])
    g_streams.start.copy_(torch.cat([first[:, None], g_start], dim=1))
    g_d = torch.where(restarts[..., None], 0.0, gd[:, 1:])
    g_weights.initial_state.copy_(gd[:, 0].sum(0) + (gd[:, 1:] - g_d).sum((0, 1)))
    if g_streams.posterior is not None:
        assert weights.posterior_state is not None
        g_streams.posterior[:, 1:] = to_pre_e
        g_weights.posterior_state.copy_(outer(to_pre_e, d_next))  # type: ignore[union-attr]
        g_d = g_d + to_pre_e @ weights.posterior_state - from_known
    if rules.change_prior != "full":
        g_weights.prior_bias.copy_(to_pre_change.sum((0, 1)))  # type: ignore[union-attr]
    if rules.change_prior != "constant":
        g_weights.prior_state.add_(outer(to_pre_change, d_next))  # type: ignore[union-attr]
    if rules.change_prior == "full":
        g_streams.prior[:, :-1].add_(to_pre_change)  # type: ignore[index]
    if pre_static is not None:
        g_weights.prior_state.add_(outer(to_pre_static, d))  # type: ignore[union-attr]
        g_streams.prior[:, :-1].add_(to_pre_static)  # type: ignore[index]
    if steps is not None:
        add_gru_gradients(steps, g_d + through_state, v, d, g_weights[:4])
    return g_streams, g_weights


def _through_filter(belief: Gaussian, e: Gaussian, rules: ScanRules, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6 as a linear map of gradients: the belief's share, and what its mean pulls out of its log deviation."""
    zeros = torch.zeros_like(e.mean)
    unit = Gaussian(torch.ones_like(zeros), zeros)
    to_belief, _ = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, unit)
    return to_belief.mean, torch.where(changed, 0.0, -to_belief.log_std)
