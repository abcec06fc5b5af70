"""What the Triton kernels of both scans share: tiles of a matrix product, the GRU cell forward and in reverse.

A program runs a few videos from the first snippet to the last. States and latents are read back from the outputs, so
that a product of any size goes through in tiles; the weights come from the L2 cache at every step.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gaussian import LOG_STD_RANGE

LOWEST_LOG_STD, HIGHEST_LOG_STD = (tl.constexpr(bound) for bound in LOG_STD_RANGE)
LARGEST_HALF = tl.constexpr(65504.0)


class Launch(NamedTuple):
    """How a kernel is cut.

    Attributes:
        rows: videos of a program.
        columns: units of the state made at once.
        depth: length of the tiles of an inner product.
        warps: of 32 threads.
    """

    rows: int
    columns: int
    depth: int
    warps: int


# tensor cores want 16 rows; in fp32 every row costs. Chosen by registers and spills, untimed: see bench/resources.py
FORWARD = {"fp32": Launch(4, 64, 16, 8), "fp16": Launch(16, 64, 64, 8)}
REVERSE = {"fp32": Launch(4, 64, 16, 8), "fp16": Launch(16, 64, 32, 8)}

# fp16's smallest numbers are too large for gradients; tf32 rounds as much and keeps fp32's range
REVERSE_PRODUCTS = {"fp32": "ieee", "fp16": "tf32"}


def padded(size: int) -> int:
    """The power of two, at least 16, that tiles of `size` units fill."""
    return max(16, 1 << (size - 1).bit_length())


def cut(launch: Launch, state: int, latent: int) -> dict[str, Any]:
    """Compile-time sizes and launch options for H and Z units."""
    hp, zp = padded(state), padded(latent)
    return {
        "H": state,
        "Z": latent,
        "HP": hp,
        "ZP": zp,
        "ROWS": launch.rows,
        "COLUMNS": min(launch.columns, hp),
        # a wide head has flat tiles, which must fit the shared memory of sm_80
        "DEPTH": max(16, min(launch.depth, hp, zp, 4096 // zp)),
        "num_warps": launch.warps,
        # not Triton's default, which changes between versions, and with it the last bits
        "enable_fp_fusion": True,
    }


def pad_segments(weight: Tensor, segments: int, size: int) -> Tensor:
    """Pad each of `segments` equal parts of the first axis with zeros to `size`."""
    parts = weight.reshape(segments, -1, *weight.shape[1:])
    room = parts.new_zeros(segments, size, *weight.shape[1:])
    room[:, : parts.shape[1]] = parts
    return room.flatten(0, 1)


def packed(weight: Tensor, segments: int, rows: int, columns: int) -> Tensor:
    """A weight (segments * n, m) as the kernels take it: each segment padded to `rows`, its inputs to `columns`."""
    return pad_segments(pad_segments(weight, segments, rows).T, 1, columns).T.contiguous()


@triton.jit
def exp_excess(x):
    """exp(x) - 1 - x, which cancels where x is small: there by its series."""
    tail = 1.0 / 120 + x * (1.0 / 720 + x * (1.0 / 5040 + x * (1.0 / 40320)))
    near = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * tail)))
    return tl.where(tl.abs(x) < 0.5, near, tl.exp(x) - 1.0 - x)


@triton.jit
def sigmoid(x):
    """Without overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def clamp_log_std(x):
    """The clamp of `gaussian.split`."""
    return tl.minimum(tl.maximum(x, LOWEST_LOG_STD), HIGHEST_LOG_STD)


@triton.jit
def kl_terms(q_mean, q_log_std, p_mean, p_log_std, p_precision):
    """Twice the KL of each dimension; see `gaussian.kl`."""
    distance = q_mean - p_mean
    return exp_excess(2.0 * (q_log_std - p_log_std)) + distance * distance * p_precision


@triton.jit
def operand(pointers, mask, HALF: tl.constexpr):
    """A tile of a product's left side, in its precision."""
    x = tl.load(pointers, mask=mask, other=0.0)
    if HALF:
        x = tl.minimum(tl.maximum(x, -LARGEST_HALF), LARGEST_HALF).to(tl.float16)
    return x


@triton.jit
def add_gates(a, b, c, x_ptr, mask, size, w_ptr, columns, SIZE: tl.constexpr, HP: tl.constexpr, DEPTH: tl.constexpr,
              HALF: tl.constexpr):  # fmt: skip
    """Add x W to three gates; `x_ptr` (rows, 1) points at rows of `size` values, W is (SIZE, 3 HP)."""
    for k in range(0, SIZE, DEPTH):
        inner = k + tl.arange(0, DEPTH)
        x = operand(x_ptr + inner[None, :], mask & (inner < size)[None, :], HALF)
        w = w_ptr + inner[:, None] * (3 * HP) + columns[None, :]
        a = tl.dot(x, tl.load(w), a, input_precision="ieee")
        b = tl.dot(x, tl.load(w + HP), b, input_precision="ieee")
        c = tl.dot(x, tl.load(w + 2 * HP), c, input_precision="ieee")
    return a, b, c


@triton.jit
def head(x_ptr, mask, w_ptr, z, H: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr,
         DEPTH: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """What a head owes to the state: two products of rows at `x_ptr` with W (HP, 2 ZP)."""
    mean = tl.zeros([ROWS, ZP], tl.float32)
    log_std = tl.zeros([ROWS, ZP], tl.float32)
    for k in range(0, HP, DEPTH):
        inner = k + tl.arange(0, DEPTH)
        x = operand(x_ptr + inner[None, :], mask & (inner < H)[None, :], HALF)
        w = w_ptr + inner[:, None] * (2 * ZP) + z[None, :]
        mean = tl.dot(x, tl.load(w), mean, input_precision="ieee")
        log_std = tl.dot(x, tl.load(w + ZP), log_std, input_precision="ieee")
    return mean, log_std


@triton.jit
def gru_step(v_ptr, d_ptr, next_ptr, mask, restart, input_ptr, state_ptr, input_bias_ptr, state_bias_ptr, initial_ptr,
             H: tl.constexpr, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """The next state of rows at `v_ptr` and `d_ptr`, written to `next_ptr` (ROWS, 1); the start where `restart`."""
    for j in range(0, HP, COLUMNS):
        h = j + tl.arange(0, COLUMNS)
        zero = tl.zeros([ROWS, COLUMNS], tl.float32)
        reset = zero + (tl.load(input_bias_ptr + h) + tl.load(state_bias_ptr + h))[None, :]
        update = zero + (tl.load(input_bias_ptr + HP + h) + tl.load(state_bias_ptr + HP + h))[None, :]
        from_input = zero + tl.load(input_bias_ptr + 2 * HP + h)[None, :]
        from_state = zero + tl.load(state_bias_ptr + 2 * HP + h)[None, :]
        reset, update, from_input = add_gates(
            reset, update, from_input, v_ptr, mask, Z, input_ptr, h, ZP, HP, DEPTH, HALF
        )
        reset, update, from_state = add_gates(
            reset, update, from_state, d_ptr, mask, H, state_ptr, h, HP, HP, DEPTH, HALF
        )
        candidate = 2.0 * sigmoid(2.0 * (from_input + sigmoid(reset) * from_state)) - 1.0
        here = mask & (h < H)[None, :]
        d = tl.load(d_ptr + h[None, :], mask=here, other=0.0)
        following = candidate + sigmoid(update) * (d - candidate)
        following = tl.where(restart, tl.load(initial_ptr + h)[None, :], following)
        tl.store(next_ptr + h[None, :], following, mask=here)


@triton.jit
def add_gate_gradients(total, gates_ptr, mask, w_ptr, columns, THIRD: tl.constexpr, WIDTH: tl.constexpr,
                       H: tl.constexpr, HP: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Add to `total` what the gates' gradients give through W (3, HP, WIDTH); `THIRD`: which of them meets W[2]."""
    for k in range(0, HP, DEPTH):
        inner = k + tl.arange(0, DEPTH)
        x = gates_ptr + inner[None, :]
        here = mask & (inner < H)[None, :]
        w = w_ptr + inner[:, None] * WIDTH + columns[None, :]
        total = tl.dot(tl.load(x, mask=here, other=0.0), tl.load(w), total, input_precision=PRECISION)
        w += HP * WIDTH
        total = tl.dot(tl.load(x + H, mask=here, other=0.0), tl.load(w), total, input_precision=PRECISION)
        w += HP * WIDTH
        total = tl.dot(tl.load(x + THIRD * H, mask=here, other=0.0), tl.load(w), total, input_precision=PRECISION)
    return total


@triton.jit
def add_head_gradients(total, g_ptr, mask, w_ptr, columns, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr,
                       DEPTH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Add to `total` what the gradient (rows, 2Z) of a head's pre-activation gives through W (2, ZP, HP)."""
    for k in range(0, ZP, DEPTH):
        inner = k + tl.arange(0, DEPTH)
        x = g_ptr + inner[None, :]
        here = mask & (inner < Z)[None, :]
        w = w_ptr + inner[:, None] * HP + columns[None, :]
        total = tl.dot(tl.load(x, mask=here, other=0.0), tl.load(w), total, input_precision=PRECISION)
        total = tl.dot(tl.load(x + Z, mask=here, other=0.0), tl.load(w + ZP * HP), total, input_precision=PRECISION)
    return total


@triton.jit
def gate_gradients(g, gates_ptr, d_ptr, g_d_ptr, h, mask, H: tl.constexpr):
    """From the gradient of the next state: those of the gates in their place, and d's own share added at `g_d_ptr`.

    The gates (4, H) are reset, update, candidate and W d + b of the candidate; their gradients are of the three
    pre-activations, and last of W d + b.
    """
    at = gates_ptr + h[None, :]
    reset, update = tl.load(at, mask=mask, other=0.0), tl.load(at + H, mask=mask, other=0.0)
    candidate, from_state = tl.load(at + 2 * H, mask=mask, other=0.0), tl.load(at + 3 * H, mask=mask, other=0.0)
    d = tl.load(d_ptr + h[None, :], mask=mask, other=0.0)
    to_candidate = g * (1.0 - update) * (1.0 - candidate * candidate)
    tl.debug_barrier()  # in place: every thread has read before one writes
    tl.store(at, to_candidate * from_state * reset * (1.0 - reset), mask=mask)
    tl.store(at + H, g * (d - candidate) * update * (1.0 - update), mask=mask)
    tl.store(at + 2 * H, to_candidate, mask=mask)
    tl.store(at + 3 * H, to_candidate * reset, mask=mask)
    own = g_d_ptr + h[None, :]
    tl.store(own, tl.load(own, mask=mask, other=0.0) + g * update, mask=mask)


def gates(v: Tensor, d: Tensor, weights: Any) -> Tensor:
    """Gates of all steps at once (..., 4, H), as `gate_gradients` wants them."""
    from_input = v @ weights.gru_input.T + weights.gru_input_bias
    from_state = d @ weights.gru_state.T + weights.gru_state_bias
    input_reset, input_update, input_new = from_input.chunk(3, dim=-1)
    state_reset, state_update, state_new = from_state.chunk(3, dim=-1)
    reset, update = torch.sigmoid(input_reset + state_reset), torch.sigmoid(input_update + state_update)
    return torch.stack([reset, update, torch.tanh(input_new + reset * state_new), state_new], dim=-2)


def gru_weight_gradients(to_gates: Tensor, v: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the GRU's weights and biases from those of the gates (..., 4, H): one product over all steps."""
    to_input = to_gates[..., :3, :].flatten(-2).flatten(0, -2)
    to_state = to_gates[..., [0, 1, 3], :].flatten(-2).flatten(0, -2)
    return (
        to_input.T @ v.reshape(-1, v.shape[-1]),
        to_state.T @ d.reshape(-1, d.shape[-1]),
        to_input.sum(0),
        to_state.sum(0),
    )
