"""The change-point scan as the paper states it: one line an equation, one loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaussian import Gaussian, fuse, kl, split
from ..gru import gru_cell
from ..padding import real_only, snippet_mask
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights


def scan_reference(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
) -> ScanOutput:
    """Eqs. 4-8 for a padded batch; see `change_point_scan` for the arguments.

    As the paper writes them, with d_{t+1} = f_tran(v_t, d_t) and Q(f_{t+1}, d0, u_{t+1}) after a reset:

        p_static = P(f_t, d_t, u_t)                                                   (4)
        p_change = P(f_t, d_{t+1}, u_t)                                               (5)
        q        = Q(f_{t+1}, d_{t+1}, u_t)                                           (6)
        change   = KL(q || p_static) > beta KL(q || p_change)                         (7)
        beta     = clip(beta + (alpha if change else -alpha), beta_low, beta_high)    (8)

    The fields of `ScanRules` say how each is read: the filtered reading holds the belief for p_static, leaves f and u
    out of p_change, and makes q of belief and evidence by `fuse`.
    """
    batch, n_snippets, _ = streams.start.shape
    real = snippet_mask(lengths, n_snippets)
    start = real_only(streams.start, real)
    prior, posterior = real_only(streams.prior, real), real_only(streams.posterior, real)
    noise = real_only(noise, real)
    d0 = weights.initial_state.expand(batch, -1)

    def draw(belief: Gaussian, t: int) -> Tensor:
        return belief.mean if noise is None else belief.mean + belief.log_std.exp() * noise[:, t]

    def head_p(t: int, state: Tensor) -> Gaussian:
        return split(prior[:, t] + state @ weights.prior_state.T)  # type: ignore[index,union-attr]

    d, belief = d0, split(start[:, 0])
    v = draw(belief, 0)
    beta = start.new_full((batch,), rules.beta0, dtype=torch.float32)
    waiting = lengths.new_zeros(batch)  # steps left without a test
    standard = Gaussian(torch.zeros_like(belief.mean), torch.zeros_like(belief.log_std))
    zero = start.new_zeros(batch)
    never = torch.zeros(batch, dtype=torch.bool, device=start.device)
    columns = [(never, zero, zero, kl(belief, standard), v, belief.mean, belief.log_std, d)]
    for t in range(n_snippets - 1):
        d_next = gru_cell(v, d, weights[:4]) if rules.uses_state else d
        r = split(start[:, t + 1])
        if rules.evidence == "start":
            e = r
        else:
            e = split(posterior[:, t + 1] + d_next @ weights.posterior_state.T)  # type: ignore[index,union-attr]
        p_static = belief if rules.static_belief == "held" else head_p(t, d)  # eq. 4
        if rules.change_prior == "full":
            p_change = head_p(t, d_next)  # eq. 5
        elif rules.change_prior == "state":
            p_change = split(weights.prior_bias + d_next @ weights.prior_state.T)  # type: ignore[union-attr,operator]
        else:
            p_change = split(weights.prior_bias.expand(batch, -1))  # type: ignore[union-attr]
        q = fuse(belief, e, rules.belief_weight, rules.evidence_weight)  # eq. 6
        kl_static, kl_change = kl(q, p_static), kl(q, p_change)
        tested = real[:, t + 1] & (waiting == 0)
        is_change = tested & (kl_static > beta * kl_change)  # eq. 7
        step = torch.where(is_change, rules.alpha, -rules.down)
        beta = torch.where(tested, (beta + step).clamp(*rules.beta_range), beta)  # eq. 8
        if forced_changes is not None:
            is_change = forced_changes[:, t + 1] & real[:, t + 1]
        waiting = torch.where(is_change, rules.refractory, (waiting - 1).clamp(min=0))
        changed, new = is_change[:, None], (r if rules.reset else e)
        kl_charged = torch.where(is_change, kl(new, p_change), kl_static)
        belief = Gaussian(torch.where(changed, new.mean, q.mean), torch.where(changed, new.log_std, q.log_std))
        d = torch.where(changed, d0, d_next) if rules.reset else d_next
        v = draw(belief, t + 1)
        columns.append((is_change, kl_static, kl_change, kl_charged, v, belief.mean, belief.log_std, d))
    outputs = [torch.stack(column, dim=1) for column in zip(*columns, strict=True)]
    change_points = outputs[0]
    floats = [real_only(value, real) for value in outputs[1:]]
    return ScanOutput(change_points, *floats)
