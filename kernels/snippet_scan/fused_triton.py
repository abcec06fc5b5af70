"""The snippet scan in Triton.

Beside the reference, a program runs a few videos through all their snippets.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..padding import longest_first
from ..triton_blocks import FORWARD, clamp_log_std, cut, gru_step, head, kl_terms, packed, pad_segments, padded
from ..triton_reverse import solver as solver
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
        packed(weights.gru_input, 3, hp, zp).to(dtype),
        packed(weights.gru_state, 3, hp, hp).to(dtype),
        pad_segments(weights.gru_input_bias, 3, hp),
        pad_segments(weights.gru_state_bias, 3, hp),
        packed(weights.prior_state, 2, zp, hp).to(dtype),
        packed(weights.posterior_state, 2, zp, hp).to(dtype),
        pad_segments(weights.initial_state, 1, hp),
        *output,
        batch,
        n,
        HALF=precision == "fp16",
        **cut(launch, h, z),
    )
    return output
