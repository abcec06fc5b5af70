"""The snippet scan in Triton.

Beside the reference: 1 a program runs a few videos through all their snippets; 2 the backward computes gates, heads
and KLs of all snippets at once in torch, so that the reverse loop is linear; 3 weight gradients are products over all
snippets.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gaussian import Gaussian, kl_backward, split, split_backward
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
from .types import SnippetOutput, SnippetWeights


@triton.jit(do_not_specialize=["B", "T"])
def forward_kernel(
    prior_ptr, posterior_ptr, noise_ptr, change_ptr, length_ptr, order_ptr,
    input_ptr, state_weight_ptr, input_bias_ptr, state_bias_ptr, prior_state_ptr, posterior_state_ptr, initial_ptr,
    kl_ptr, latent_ptr, state_ptr, B, T,
    H: tl.constexpr, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The scan of ROWS videos."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    video = tl.load(order_ptr + row, mask=row < B, other=0)
    length = tl.load(length_ptr + video, mask=row < B, other=0)
    z = tl.arange(0, ZP)
    n = tl.max(length)
    for j in range(0, HP, COLUMNS):
        h = j + tl.arange(0, COLUMNS)
        first = tl.zeros([ROWS, COLUMNS], tl.float32) + tl.load(initial_ptr + h)[None, :]
        here = (length > 0)[:, None] & (h < H)[None, :]
        tl.store(state_ptr + (video * T * H)[:, None] + h[None, :], first, mask=here)
    tl.debug_barrier()
    t = 0
    while t < n:
        real = (t < length)[:, None]
        at = (video * T + t)[:, None]
        d = state_ptr + at * H
        prior_mean, prior_log_std = head(d, real, prior_state_ptr, z, H, HP, ZP, ROWS, DEPTH, HALF)
        mean, log_std = head(d, real, posterior_state_ptr, z, H, HP, ZP, ROWS, DEPTH, HALF)
        here = real & (z < Z)[None, :]
        stream = at * (2 * Z) + z[None, :]
        prior_mean += tl.load(prior_ptr + stream, mask=here, other=0.0)
        prior_log_std = clamp_log_std(prior_log_std + tl.load(prior_ptr + stream + Z, mask=here, other=0.0))
        mean += tl.load(posterior_ptr + stream, mask=here, other=0.0)
        log_std = clamp_log_std(log_std + tl.load(posterior_ptr + stream + Z, mask=here, other=0.0))
        terms = kl_terms(mean, log_std, prior_mean, prior_log_std, tl.exp(-2.0 * prior_log_std))
        kl = 0.5 * tl.sum(tl.where(here, terms, 0.0), 1)
        tl.store(kl_ptr + at, kl[:, None], mask=real)
        noise = tl.load(noise_ptr + at * Z + z[None, :], mask=here, other=0.0)
        v = latent_ptr + at * Z
        tl.store(v + z[None, :], mean + tl.exp(log_std) * noise, mask=here)
        tl.debug_barrier()
        going_on = (t + 1 < length)[:, None]
        changed = tl.load(change_ptr + at, mask=going_on, other=0) != 0
        gru_step(v, d, d + H, going_on, changed, input_ptr, state_weight_ptr, input_bias_ptr, state_bias_ptr,
                 initial_ptr, H, Z, HP, ZP, ROWS, COLUMNS, DEPTH, HALF)  # fmt: skip
        tl.debug_barrier()
        t += 1


def forward(
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
    precision: str,
) -> SnippetOutput:
    """`snippet_scan` of contiguous float32 tensors; see there."""
    batch, n, z2 = prior_stream.shape
    z, h = z2 // 2, weights.initial_state.shape[0]
    hp, zp = padded(h), padded(z)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    output = SnippetOutput(*(prior_stream.new_zeros(batch, n, *size) for size in ((), (z,), (h,))))
    launch = FORWARD[precision]
    forward_kernel[(triton.cdiv(batch, launch.rows),)](
        prior_stream,
        posterior_stream,
        noise,
        change_points.view(torch.int8),
        lengths,
        longest_first(lengths),
        packed(weights.gru_input, 3, hp, zp).T.to(dtype).contiguous(),
        packed(weights.gru_state, 3, hp, hp).T.to(dtype).contiguous(),
        pad_segments(weights.gru_input_bias, 3, hp),
        pad_segments(weights.gru_state_bias, 3, hp),
        packed(weights.prior_state, 2, zp, hp).T.to(dtype).contiguous(),
        packed(weights.posterior_state, 2, zp, hp).T.to(dtype).contiguous(),
        pad_segments(weights.initial_state, 1, hp),
        *output,
        batch,
        n,
        HALF=precision == "fp16",
        **cut(launch, h, z),
    )
    return output


@triton.jit(do_not_specialize=["B", "T"])
def reverse_kernel(
    change_ptr, length_ptr, order_ptr, spread_ptr, to_posterior_ptr, gates_ptr, state_ptr, to_state_ptr,
    input_ptr, state_weight_ptr, posterior_state_ptr, B, T,
    H: tl.constexpr, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The reverse scan of ROWS videos.

    `to_posterior` and `to_state` hold what reaches the posterior's pre-activation and the state at each snippet from
    the outputs, and in the end the whole gradients; `gates` become their gradients; `spread` is d log_std / d v.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    video = tl.load(order_ptr + row, mask=row < B, other=0)
    length = tl.load(length_ptr + video, mask=row < B, other=0)
    z = tl.arange(0, ZP)
    t = tl.max(length) - 1
    while t >= 0:
        at = (video * T + t)[:, None]
        real, going_on = (t < length)[:, None], (t + 1 < length)[:, None]
        kept = going_on & (tl.load(change_ptr + at, mask=real, other=0) == 0)
        gate, d, to_d = gates_ptr + at * (4 * H), state_ptr + at * H, to_state_ptr + at * H
        for j in range(0, HP, COLUMNS):
            h = j + tl.arange(0, COLUMNS)
            in_h = (h < H)[None, :]
            g = tl.load(to_d + H + h[None, :], mask=kept & in_h, other=0.0)
            gate_gradients(g, gate, d, to_d, h, real & in_h, H)
        tl.debug_barrier()
        gv = tl.zeros([ROWS, ZP], tl.float32)
        gv = add_gate_gradients(gv, gate, real, input_ptr, z, 2, ZP, H, HP, DEPTH, PRECISION)
        here = real & (z < Z)[None, :]
        to_mean = to_posterior_ptr + at * (2 * Z) + z[None, :]
        spread = tl.load(spread_ptr + at * Z + z[None, :], mask=here, other=0.0)
        tl.store(to_mean, tl.load(to_mean, mask=here, other=0.0) + gv, mask=here)
        tl.store(to_mean + Z, tl.load(to_mean + Z, mask=here, other=0.0) + gv * spread, mask=here)
        tl.debug_barrier()
        for j in range(0, HP, COLUMNS):
            h = j + tl.arange(0, COLUMNS)
            here_h = real & (h < H)[None, :]
            total = tl.load(to_d + h[None, :], mask=here_h, other=0.0)
            total = add_gate_gradients(total, gate, real, state_weight_ptr, h, 3, HP, H, HP, DEPTH, PRECISION)
            total = add_head_gradients(
                total, to_posterior_ptr + at * (2 * Z), real, posterior_state_ptr, h, Z, HP, ZP, DEPTH, PRECISION
            )
            tl.store(to_d + h[None, :], total, mask=here_h)
        tl.debug_barrier()
        t -= 1


def backward(
    gradients: SnippetOutput,
    output: SnippetOutput,
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor, SnippetWeights]:
    """`snippet_scan_reference_backward` of contiguous float32 tensors."""
    batch, n, z2 = prior_stream.shape
    z, h = z2 // 2, weights.initial_state.shape[0]
    hp, zp = padded(h), padded(z)
    real = snippet_mask(lengths, n)
    g_kl, g_latent, to_state, noise = (real_only(tensor, real) for tensor in (*gradients, noise))
    v, d = output.latent, output.state
    pre_prior = real_only(prior_stream, real) + d @ weights.prior_state.T
    pre_posterior = real_only(posterior_stream, real) + d @ weights.posterior_state.T
    posterior = split(pre_posterior)
    from_kl, to_prior = kl_backward(posterior, split(pre_prior), g_kl)
    g_prior = split_backward(pre_prior, to_prior)
    to_state += g_prior @ weights.prior_state
    spread = posterior.log_std.exp() * noise
    drawn = Gaussian(from_kl.mean + g_latent, from_kl.log_std + g_latent * spread)
    g_posterior = split_backward(pre_posterior, drawn)
    zeros = torch.zeros_like(spread)
    spread = split_backward(pre_posterior, Gaussian(zeros, spread))[..., z:].contiguous()
    to_gates = gates(v, d, weights) * real[..., None, None]

    launch = REVERSE[precision]
    reverse_kernel[(triton.cdiv(batch, launch.rows),)](
        change_points.view(torch.int8),
        lengths,
        longest_first(lengths),
        spread,
        g_posterior,
        to_gates,
        d,
        to_state,
        packed(weights.gru_input, 3, hp, zp),
        packed(weights.gru_state, 3, hp, hp),
        packed(weights.posterior_state, 2, zp, hp),
        batch,
        n,
        PRECISION=REVERSE_PRODUCTS[precision],
        **cut(launch, h, z),
    )
    starts = torch.zeros_like(change_points)
    starts[:, 0] = True
    starts[:, 1:] = change_points[:, :-1]
    to_start = torch.where(starts[..., None], to_state, 0.0).sum((0, 1))
    flat_d = d.flatten(0, 1)
    g_weights = SnippetWeights(
        *gru_weight_gradients(to_gates, v, d),
        g_prior.flatten(0, 1).T @ flat_d,
        g_posterior.flatten(0, 1).T @ flat_d,
        to_start,
    )
    return g_prior, g_posterior, g_weights
