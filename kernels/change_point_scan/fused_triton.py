"""The change-point scan in Triton.

Beside the reference: 1 a program runs a few videos through all their snippets; 2 the precision of the belief is kept
instead of taken from its deviation again; 3 P d of the static prior is P d' of the step before; 4 the backward
computes gates, heads, filter and KLs of all snippets at once in torch, so that the reverse loop is linear; 5 weight
gradients are products over all snippets.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gaussian import Gaussian, add, fuse, fuse_backward, kl_backward, split, split_backward
from ..padding import longest_first, real_only, snippet_mask
from ..triton_blocks import (
    FORWARD,
    REVERSE,
    REVERSE_PRODUCTS,
    add_gate_gradients,
    add_head_gradients,
    clamp_log_std,
    cut,
    gate_gradients,
    gates,
    gru_step,
    gru_weight_gradients,
    head,
    kl_terms,
    packed,
    pad_segments,
    padded,
)
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights


@triton.jit
def stream(stream_ptr, column, z, mask, Z: tl.constexpr):
    """Means and log deviations, not clamped, of a stream (B, T, 2Z) at rows `column` (ROWS, 1)."""
    at = stream_ptr + column * (2 * Z) + z[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + Z, mask=mask, other=0.0)


@triton.jit
def draw(mean, log_std, column, z, mask, noise_ptr, latent_ptr, mean_ptr, log_std_ptr, Z: tl.constexpr,
         NOISE: tl.constexpr):  # fmt: skip
    """V ~ belief, and both into the outputs."""
    at = column * Z + z[None, :]
    v = mean
    if NOISE:
        v = mean + tl.exp(log_std) * tl.load(noise_ptr + at, mask=mask, other=0.0)
    tl.store(latent_ptr + at, v, mask=mask)
    tl.store(mean_ptr + at, mean, mask=mask)
    tl.store(log_std_ptr + at, log_std, mask=mask)


@triton.jit(do_not_specialize=["B", "T", "refractory"])
def forward_kernel(
    start_ptr, prior_ptr, posterior_ptr, noise_ptr, forced_ptr, length_ptr, order_ptr,
    input_ptr, state_weight_ptr, input_bias_ptr, state_bias_ptr, prior_state_ptr, prior_bias_ptr, posterior_state_ptr,
    initial_ptr, prior_of_start_ptr,
    change_ptr, kl_static_ptr, kl_change_ptr, kl_charged_ptr, latent_ptr, mean_ptr, log_std_ptr, state_ptr,
    B, T, belief_weight, evidence_weight, refractory, alpha, alpha_down, beta0, beta_low, beta_high,
    HELD: tl.constexpr, CHANGE_PRIOR: tl.constexpr, TRANSITION: tl.constexpr, RESET: tl.constexpr,
    NOISE: tl.constexpr, FORCED: tl.constexpr,
    H: tl.constexpr, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The scan of ROWS videos."""
    USES_STATE: tl.constexpr = (not HELD) or CHANGE_PRIOR != "constant" or TRANSITION
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    video = tl.load(order_ptr + row, mask=row < B, other=0)
    length = tl.load(length_ptr + video, mask=row < B, other=0)
    z = tl.arange(0, ZP)
    in_z = (z < Z)[None, :]

    # the first snippet
    at = (video * T)[:, None]
    real = (length > 0)[:, None]
    mean, log_std = stream(start_ptr, at, z, real & in_z, Z)
    log_std = clamp_log_std(log_std)
    precision = tl.exp(-2.0 * log_std)
    terms = kl_terms(mean, log_std, 0.0, 0.0, 1.0)
    tl.store(kl_charged_ptr + at, 0.5 * tl.sum(tl.where(in_z, terms, 0.0), 1)[:, None], mask=real)
    draw(mean, log_std, at, z, real & in_z, noise_ptr, latent_ptr, mean_ptr, log_std_ptr, Z, NOISE)
    for j in range(0, HP, COLUMNS):
        h = j + tl.arange(0, COLUMNS)
        d0 = tl.zeros([ROWS, COLUMNS], tl.float32) + tl.load(initial_ptr + h)[None, :]
        tl.store(state_ptr + at * H + h[None, :], d0, mask=real & (h < H)[None, :])
    zero = tl.zeros([ROWS, ZP], tl.float32)
    if not HELD:  # P d0, and from then on P d
        start_mean = zero + tl.load(prior_of_start_ptr + z)[None, :]
        start_log_std = zero + tl.load(prior_of_start_ptr + ZP + z)[None, :]
        d_mean, d_log_std = start_mean, start_log_std
    if CHANGE_PRIOR != "full":
        bias_mean = zero + tl.load(prior_bias_ptr + z)[None, :]
        bias_log_std = zero + tl.load(prior_bias_ptr + ZP + z)[None, :]
    beta = tl.zeros([ROWS, 1], tl.float32) + beta0
    waiting = tl.zeros([ROWS, 1], tl.int32)
    tl.debug_barrier()

    t = 1
    n = tl.max(length)
    while t < n:
        before, at = at, at + 1
        real = (t < length)[:, None]
        here = real & in_z
        d_next = state_ptr + at * H  # d' first, then d0 where there is a change-point
        if USES_STATE:
            gru_step(latent_ptr + before * Z, state_ptr + before * H, d_next, real, False, input_ptr, state_weight_ptr,
                     input_bias_ptr, state_bias_ptr, initial_ptr, H, Z, HP, ZP, ROWS, COLUMNS, DEPTH, HALF)  # fmt: skip
            tl.debug_barrier()
        fresh_mean, fresh_log_std = stream(start_ptr, at, z, here, Z)
        fresh_log_std = clamp_log_std(fresh_log_std)
        e_mean, e_log_std = fresh_mean, fresh_log_std
        if TRANSITION:
            q_mean, q_log_std = head(d_next, real, posterior_state_ptr, z, H, HP, ZP, ROWS, DEPTH, HALF)
            e_mean, e_log_std = stream(posterior_ptr, at, z, here, Z)
            e_mean, e_log_std = e_mean + q_mean, clamp_log_std(e_log_std + q_log_std)
        if (not HELD) or CHANGE_PRIOR != "constant":
            next_mean, next_log_std = head(d_next, real, prior_state_ptr, z, H, HP, ZP, ROWS, DEPTH, HALF)
        if (not HELD) or CHANGE_PRIOR == "full":
            prior_mean, prior_log_std = stream(prior_ptr, before, z, here, Z)
        if HELD:
            static_mean, static_log_std, static_precision = mean, log_std, precision
        else:  # eq. 4
            static_mean, static_log_std = prior_mean + d_mean, clamp_log_std(prior_log_std + d_log_std)
            static_precision = tl.exp(-2.0 * static_log_std)
        if CHANGE_PRIOR == "full":  # eq. 5
            change_mean, change_log_std = prior_mean + next_mean, prior_log_std + next_log_std
        elif CHANGE_PRIOR == "state":
            change_mean, change_log_std = bias_mean + next_mean, bias_log_std + next_log_std
        else:
            change_mean, change_log_std = bias_mean, bias_log_std
        change_log_std = clamp_log_std(change_log_std)
        change_precision = tl.exp(-2.0 * change_log_std)

        # eq. 6
        from_belief = belief_weight * precision
        from_evidence = evidence_weight * tl.exp(-2.0 * e_log_std)
        precision = from_belief + from_evidence
        mean = (from_belief * mean + from_evidence * e_mean) / precision
        log_std = -0.5 * tl.log(precision)
        terms = kl_terms(mean, log_std, static_mean, static_log_std, static_precision)
        kl_static = 0.5 * tl.sum(tl.where(in_z, terms, 0.0), 1)[:, None]
        terms = kl_terms(mean, log_std, change_mean, change_log_std, change_precision)
        kl_change = 0.5 * tl.sum(tl.where(in_z, terms, 0.0), 1)[:, None]

        tested = waiting == 0
        changed = tested & (kl_static > beta * kl_change)  # eq. 7
        moved = tl.minimum(tl.maximum(beta + tl.where(changed, alpha, -alpha_down), beta_low), beta_high)
        beta = tl.where(tested, moved, beta)  # eq. 8
        if FORCED:
            changed = tl.load(forced_ptr + at, mask=real, other=0) != 0
        waiting = tl.where(changed, refractory, tl.maximum(waiting - 1, 0))

        if not RESET:
            fresh_mean, fresh_log_std = e_mean, e_log_std
        fresh_precision = tl.exp(-2.0 * fresh_log_std)
        terms = kl_terms(fresh_mean, fresh_log_std, change_mean, change_log_std, change_precision)
        charged = 0.5 * tl.sum(tl.where(in_z, terms, 0.0), 1)[:, None]
        tl.store(change_ptr + at, changed.to(tl.int8), mask=real)
        tl.store(kl_static_ptr + at, kl_static, mask=real)
        tl.store(kl_change_ptr + at, kl_change, mask=real)
        tl.store(kl_charged_ptr + at, tl.where(changed, charged, kl_static), mask=real)
        mean = tl.where(changed, fresh_mean, mean)
        log_std = tl.where(changed, fresh_log_std, log_std)
        precision = tl.where(changed, fresh_precision, precision)
        draw(mean, log_std, at, z, here, noise_ptr, latent_ptr, mean_ptr, log_std_ptr, Z, NOISE)
        if not HELD:
            d_mean, d_log_std = next_mean, next_log_std
            if RESET:
                d_mean, d_log_std = tl.where(changed, start_mean, d_mean), tl.where(changed, start_log_std, d_log_std)
        if RESET or not USES_STATE:
            tl.debug_barrier()
            restarts = real & changed if USES_STATE else real
            for j in range(0, HP, COLUMNS):
                h = j + tl.arange(0, COLUMNS)
                d0 = tl.zeros([ROWS, COLUMNS], tl.float32) + tl.load(initial_ptr + h)[None, :]
                tl.store(d_next + h[None, :], d0, mask=restarts & (h < H)[None, :])
        tl.debug_barrier()
        t += 1


def reading(rules: ScanRules) -> dict[str, bool | str]:
    """What a reading settles when a kernel is compiled."""
    return {
        "HELD": rules.static_belief == "held",
        "CHANGE_PRIOR": rules.change_prior,
        "TRANSITION": rules.evidence == "transition",
        "RESET": rules.reset,
    }


def forward(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
    precision: str,
) -> ScanOutput:
    """`change_point_scan` of contiguous float32 tensors; see there."""
    start, initial = streams.start, weights.initial_state
    batch, n, z2 = start.shape
    z, h = z2 // 2, initial.shape[0]
    hp, zp = padded(h), padded(z)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    kls = (start.new_zeros(batch, n) for _ in range(3))
    latents = (start.new_zeros(batch, n, z) for _ in range(3))
    changes = torch.zeros(batch, n, dtype=torch.bool, device=start.device)
    output = ScanOutput._make((changes, *kls, *latents, start.new_zeros(batch, n, h)))

    def or_any(tensor: Tensor | None) -> Tensor:
        """Something to point at in place of what the reading does not read."""
        return start if tensor is None else tensor

    def head_weight(weight: Tensor | None) -> Tensor:
        return or_any(None if weight is None else packed(weight, 2, zp, hp).T.to(dtype).contiguous())

    bias = weights.prior_bias
    of_start = None if weights.prior_state is None else pad_segments(weights.prior_state @ initial, 2, zp)
    launch = FORWARD[precision]
    forward_kernel[(triton.cdiv(batch, launch.rows),)](
        *map(or_any, streams),
        or_any(noise),
        or_any(None if forced_changes is None else forced_changes.view(torch.int8)),
        lengths,
        longest_first(lengths),
        packed(weights.gru_input, 3, hp, zp).T.to(dtype).contiguous(),
        packed(weights.gru_state, 3, hp, hp).T.to(dtype).contiguous(),
        pad_segments(weights.gru_input_bias, 3, hp),
        pad_segments(weights.gru_state_bias, 3, hp),
        head_weight(weights.prior_state),
        or_any(None if bias is None else pad_segments(bias, 2, zp)),
        head_weight(weights.posterior_state),
        pad_segments(initial, 1, hp),
        or_any(of_start),
        changes.view(torch.int8),
        *output[1:],
        batch,
        n,
        rules.belief_weight,
        rules.evidence_weight,
        rules.refractory,
        rules.alpha,
        rules.alpha if rules.alpha_down is None else rules.alpha_down,
        rules.beta0,
        *rules.beta_range,
        **reading(rules),
        NOISE=noise is not None,
        FORCED=forced_changes is not None,
        HALF=precision == "fp16",
        **cut(launch, h, z),
    )
    return output


# rows of `terms` in the reverse kernel: what reaches a belief from the outputs; d log_std / d v; what the next belief's
# step gives it at once; how much of the next belief's gradient it gets; and of the last two what `transition` adds
OWN, SPREAD, LOCAL, SHARE, PULL = (tl.constexpr(i) for i in (0, 2, 3, 5, 6))
EVIDENCE, REST, REST_LOG_STD, PULL_EVIDENCE = (tl.constexpr(i) for i in (7, 9, 10, 11))


@triton.jit
def term(terms_ptr, column, z, mask, WHICH: tl.constexpr, TERMS: tl.constexpr, Z: tl.constexpr):
    """One row of `terms` (B, T, TERMS, Z) at rows `column`."""
    return tl.load(terms_ptr + (column * TERMS + WHICH) * Z + z[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["B", "T"])
def reverse_kernel(
    change_ptr, length_ptr, order_ptr, terms_ptr, to_belief_ptr, to_posterior_ptr, gates_ptr, state_ptr, to_next_ptr,
    to_state_ptr, input_ptr, state_weight_ptr, posterior_state_ptr, B, T,
    HELD: tl.constexpr, CHANGE_PRIOR: tl.constexpr, TRANSITION: tl.constexpr, RESET: tl.constexpr,
    H: tl.constexpr, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The reverse scan of ROWS videos: column t holds what the step from t - 1 to t needs.

    `to_next` is what reaches d' besides through the next step; `to_state` what reaches d from the outputs and the
    static prior, and in the end its whole gradient; `gates` become their gradients; `to_belief` (B, T, 2, Z) is
    written, as is `to_posterior`, the gradient of the pre-activation of e.
    """
    TERMS: tl.constexpr = 12 if TRANSITION else 7
    USES_STATE: tl.constexpr = (not HELD) or CHANGE_PRIOR != "constant" or TRANSITION
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    video = tl.load(order_ptr + row, mask=row < B, other=0)
    length = tl.load(length_ptr + video, mask=row < B, other=0)
    z = tl.arange(0, ZP)
    in_z = (z < Z)[None, :]
    first = (video * T)[:, None]
    gv = tl.zeros([ROWS, ZP], tl.float32)
    mean, log_std = gv, gv  # the belief's gradient from later steps
    t = tl.max(length) - 1
    while t >= 0:
        at = (video * T + t)[:, None]
        real = (t < length)[:, None]
        here = real & in_z
        to_mean = mean + gv + term(terms_ptr, at, z, here, OWN, TERMS, Z)
        to_log_std = gv * term(terms_ptr, at, z, here, SPREAD, TERMS, Z)
        to_log_std += log_std + term(terms_ptr, at, z, here, OWN + 1, TERMS, Z)
        belief = to_belief_ptr + at * (2 * Z) + z[None, :]
        tl.store(belief, to_mean, mask=here)
        tl.store(belief + Z, to_log_std, mask=here)
        share = term(terms_ptr, at, z, here, SHARE, TERMS, Z)
        pull = term(terms_ptr, at, z, here, PULL, TERMS, Z)
        mean = term(terms_ptr, at, z, here, LOCAL, TERMS, Z) + share * to_mean
        log_std = term(terms_ptr, at, z, here, LOCAL + 1, TERMS, Z) + share * to_log_std - pull * to_mean
        step = real & (at > first)
        to_e = to_posterior_ptr + at * (2 * Z)
        if TRANSITION:
            e_mean = term(terms_ptr, at, z, here, EVIDENCE, TERMS, Z)
            e_mean += term(terms_ptr, at, z, here, REST, TERMS, Z) * to_mean
            e_log_std = term(terms_ptr, at, z, here, EVIDENCE + 1, TERMS, Z)
            e_log_std += term(terms_ptr, at, z, here, REST_LOG_STD, TERMS, Z) * to_log_std
            e_log_std += term(terms_ptr, at, z, here, PULL_EVIDENCE, TERMS, Z) * to_mean
            tl.store(to_e + z[None, :], e_mean, mask=step & in_z)
            tl.store(to_e + Z + z[None, :], e_log_std, mask=step & in_z)
            tl.debug_barrier()
        if USES_STATE:
            kept = step
            if RESET:
                kept = step & (tl.load(change_ptr + at, mask=real, other=0) == 0)
            gate = gates_ptr + at * (4 * H)
            before, to_d = state_ptr + (at - 1) * H, to_state_ptr + at * H
            for j in range(0, HP, COLUMNS):
                h = j + tl.arange(0, COLUMNS)
                here_h = step & (h < H)[None, :]
                g = tl.load(to_d + h[None, :], mask=kept & (h < H)[None, :], other=0.0)
                if CHANGE_PRIOR != "constant":
                    g += tl.load(to_next_ptr + at * H + h[None, :], mask=here_h, other=0.0)
                if TRANSITION:
                    g = add_head_gradients(g, to_e, step, posterior_state_ptr, h, Z, HP, ZP, DEPTH, PRECISION)
                gate_gradients(g, gate, before, to_d - H, h, here_h, H)
            tl.debug_barrier()
            gv = tl.zeros([ROWS, ZP], tl.float32)
            gv = add_gate_gradients(gv, gate, step, input_ptr, z, 2, ZP, H, HP, DEPTH, PRECISION)
            for j in range(0, HP, COLUMNS):
                h = j + tl.arange(0, COLUMNS)
                here_h = step & (h < H)[None, :]
                total = tl.load(to_d - H + h[None, :], mask=here_h, other=0.0)
                total = add_gate_gradients(total, gate, step, state_weight_ptr, h, 3, HP, H, HP, DEPTH, PRECISION)
                tl.store(to_d - H + h[None, :], total, mask=here_h)
            tl.debug_barrier()
        t -= 1


def backward(
    gradients: ScanOutput,
    output: ScanOutput,
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    precision: str,
) -> tuple[ScanStreams, ScanWeights]:
    """`scan_reference_backward` of contiguous float32 tensors."""
    batch, n, z2 = streams.start.shape
    z, h = z2 // 2, weights.initial_state.shape[0]
    hp, zp = padded(h), padded(z)
    real = snippet_mask(lengths, n)

    def where(mask: Tensor, one: Gaussian, other: Gaussian) -> Gaussian:
        return Gaussian(*(torch.where(mask, a, b) for a, b in zip(one, other, strict=True)))

    def at_later(tensor: Tensor) -> Tensor:
        """A value of each step, at the column it leads to."""
        return torch.nn.functional.pad(tensor, (0, 0, 1, 0))

    # every step but its recursion, all at once: from t (`v`, `d`, `belief`) to t + 1
    g = ScanOutput(gradients.change_points, *(real_only(tensor, real) for tensor in gradients[1:]))
    start = real_only(streams.start, real)
    prior, posterior = real_only(streams.prior, real), real_only(streams.posterior, real)
    following, changed = real[:, 1:, None], output.change_points[:, 1:, None]
    v, d = output.latent[:, :-1], output.state[:, :-1]
    belief = Gaussian(output.belief_mean[:, :-1], output.belief_log_std[:, :-1])
    to_gates = gates(v, d, weights) if rules.uses_state else d.new_zeros(batch, n - 1, 4, h)
    _, update, candidate, _ = to_gates.unbind(-2)
    d_next = candidate + update * (d - candidate)
    fresh = split(start[:, 1:])
    pre_e = start[:, 1:]
    if posterior is not None and weights.posterior_state is not None:
        pre_e = posterior[:, 1:] + d_next @ weights.posterior_state.T
    e = split(pre_e)
    q = fuse(belief, e, rules.belief_weight, rules.evidence_weight)
    new = fresh if rules.reset else e
    prior = None if prior is None else prior[:, :-1]
    g_static, g_change, g_charged = (kl[:, 1:] for kl in (g.kl_static, g.kl_change, g.kl_charged))
    g_static = g_static + torch.where(changed[..., 0], 0.0, g_charged)

    to_state, to_next = g.state.clone(), torch.zeros_like(g.state)
    g_prior_state = None if weights.prior_state is None else torch.zeros_like(weights.prior_state)
    g_prior = None if streams.prior is None else torch.zeros_like(start)
    if rules.static_belief == "held":
        q_from_static, to_static = kl_backward(q, belief, g_static)
    else:
        assert prior is not None
        assert g_prior is not None
        assert weights.prior_state is not None
        assert g_prior_state is not None
        pre_static = prior + d @ weights.prior_state.T
        q_from_static, gradient = kl_backward(q, split(pre_static), g_static)
        to_pre = split_backward(pre_static, gradient)
        to_state[:, :-1] += to_pre @ weights.prior_state
        g_prior_state += to_pre.flatten(0, 1).T @ d.flatten(0, 1)
        g_prior[:, :-1] += to_pre
        to_static = Gaussian(torch.zeros_like(v), torch.zeros_like(v))
    if rules.change_prior == "constant":
        assert weights.prior_bias is not None
        pre_change = weights.prior_bias.expand(batch, n - 1, -1)
    else:
        offset = prior if rules.change_prior == "full" else weights.prior_bias
        assert offset is not None
        assert weights.prior_state is not None
        pre_change = offset + d_next @ weights.prior_state.T
    p_change = split(pre_change)
    q_from_change, to_change = kl_backward(q, p_change, g_change)
    new_from_charge, to_charge = kl_backward(new, p_change, torch.where(changed[..., 0], g_charged, 0.0))
    to_pre_change = split_backward(pre_change, add(to_change, to_charge))
    if rules.change_prior != "constant":
        assert weights.prior_state is not None
        assert g_prior_state is not None
        to_next[:, 1:] = to_pre_change @ weights.prior_state
        g_prior_state += to_pre_change.flatten(0, 1).T @ d_next.flatten(0, 1)
        if rules.change_prior == "full":
            assert g_prior is not None
            g_prior[:, :-1] += to_pre_change
    q_local = add(q_from_static, q_from_change)
    belief_local, e_local = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, q_local)
    belief_local = add(belief_local, to_static)
    ones, zeros = torch.ones_like(v), torch.zeros_like(v)
    nothing = Gaussian(zeros, zeros)
    # a belief passes on what q gets of it; the recursion is linear, so a unit tells how much
    unit = where(changed, nothing, Gaussian(ones, zeros))
    unit_mean = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, unit)
    spread = torch.zeros_like(output.latent) if noise is None else output.belief_log_std.exp() * real_only(noise, real)
    own = Gaussian(g.belief_mean + g.latent, g.belief_log_std + g.latent * spread)
    share, pull = unit_mean[0].mean, -unit_mean[0].log_std
    terms = [*own, spread, *map(at_later, (*belief_local, share, pull))]
    if rules.evidence == "transition":
        if not rules.reset:
            e_local = add(e_local, new_from_charge)
        rest = unit_mean[1].mean if rules.reset else torch.where(changed, 1.0, unit_mean[1].mean)
        inside = split_backward(pre_e, Gaussian(zeros, ones))[..., z:]
        pre_local = split_backward(pre_e, e_local)
        terms += map(at_later, (*pre_local.chunk(2, dim=-1), rest, rest * inside, pull * inside))

    to_belief = start.new_zeros(batch, n, 2, z)
    to_posterior = torch.zeros_like(start)
    to_gates = torch.nn.functional.pad(to_gates * following[..., None], (0, 0, 0, 0, 1, 0))
    launch = REVERSE[precision]
    posterior_state = start if weights.posterior_state is None else packed(weights.posterior_state, 2, zp, hp)
    reverse_kernel[(triton.cdiv(batch, launch.rows),)](
        output.change_points.view(torch.int8),
        lengths,
        longest_first(lengths),
        torch.stack(terms, dim=2),
        to_belief,
        to_posterior,
        to_gates,
        output.state,
        to_next,
        to_state,
        packed(weights.gru_input, 3, hp, zp),
        packed(weights.gru_state, 3, hp, hp),
        posterior_state,
        batch,
        n,
        **reading(rules),
        PRECISION=REVERSE_PRODUCTS[precision],
        **cut(launch, h, z),
    )

    # what the recursion gave each belief goes on to its streams
    carried = Gaussian(*to_belief[:, 1:].unbind(2))
    g_new = add(new_from_charge, where(changed, carried, nothing))
    gq = add(q_local, where(changed, nothing, carried))
    _, ge = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, gq)
    if not rules.reset:
        ge, g_new = add(ge, g_new), nothing
    first, standard = split(start[:, 0]), Gaussian(torch.zeros_like(spread[:, 0]), torch.zeros_like(spread[:, 0]))
    from_charge, _ = kl_backward(first, standard, g.kl_charged[:, 0])
    g_start = torch.empty_like(start)
    g_start[:, 0] = split_backward(start[:, 0], add(from_charge, Gaussian(*to_belief[:, 0].unbind(1))))
    g_start[:, 1:] = split_backward(start[:, 1:], g_new)
    if streams.posterior is None:
        g_start[:, 1:] += split_backward(pre_e, ge)

    to_initial = to_state[:, 0].sum(0)
    if not rules.uses_state:  # the state is d0 throughout
        to_initial = to_state.sum((0, 1))
    elif rules.reset:
        to_initial = to_initial + torch.where(changed, to_state[:, 1:], 0.0).sum((0, 1))
    g_weights = ScanWeights(
        *gru_weight_gradients(to_gates[:, 1:], v, d),
        g_prior_state,
        None if weights.prior_bias is None else to_pre_change.sum((0, 1)),
        None if weights.posterior_state is None else to_posterior[:, 1:].flatten(0, 1).T @ d_next.flatten(0, 1),
        to_initial,
    )
    return ScanStreams(g_start, g_prior, None if streams.posterior is None else to_posterior), g_weights
