"""The change-point scan in Triton.

Beside the reference: 1 a program runs a few videos through all their snippets; 2 the precision of the belief is kept
instead of taken from its deviation again; 3 P d of the static prior is P d' of the step before.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..padding import longest_first
from ..triton_blocks import FORWARD, clamp_log_std, cut, gru_step, head, kl_terms, packed, pad_segments, padded
from ..triton_reverse import solver as solver
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights, empty_output


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
    output = ScanOutput._make(tensor.zero_() for tensor in empty_output(start, initial))

    def or_any(tensor: Tensor | None) -> Tensor:
        """Something to point at in place of what the reading does not read."""
        return start if tensor is None else tensor

    def head_weight(weight: Tensor | None) -> Tensor:
        return or_any(None if weight is None else packed(weight, 2, zp, hp).to(dtype))

    bias = weights.prior_bias
    of_start = None if weights.prior_state is None else pad_segments(weights.prior_state @ initial, 2, zp)
    launch = FORWARD[precision]
    forward_kernel[(triton.cdiv(batch, launch.rows),)](
        *map(or_any, streams),
        or_any(noise),
        or_any(None if forced_changes is None else forced_changes.view(torch.int8)),
        lengths,
        longest_first(lengths),
        packed(weights.gru_input, 3, hp, zp).to(dtype),
        packed(weights.gru_state, 3, hp, hp).to(dtype),
        pad_segments(weights.gru_input_bias, 3, hp),
        pad_segments(weights.gru_state_bias, 3, hp),
        head_weight(weights.prior_state),
        or_any(None if bias is None else pad_segments(bias, 2, zp)),
        head_weight(weights.posterior_state),
        pad_segments(initial, 1, hp),
        or_any(of_start),
        output.change_points.view(torch.int8),
        *output[1:],
        batch,
        n,
        rules.belief_weight,
        rules.evidence_weight,
        rules.refractory,
        rules.alpha,
        rules.down,
        rules.beta0,
        *rules.beta_range,
        **reading(rules),
        NOISE=noise is not None,
        FORCED=forced_changes is not None,
        HALF=precision == "fp16",
        **cut(launch, h, z),
    )
    return output
