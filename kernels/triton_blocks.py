"""What the Triton kernels of both scans share: how they are cut, tiles of a matrix product, the GRU cell.

A program runs a few videos from the first snippet to the last. States and latents are read back from the outputs, so
that a product of any size goes through in tiles; the weights come from the L2 cache at every step.
"""

from typing import Any, NamedTuple

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
        most: numbers in a tile of the heads, several of which must fit the shared memory (Z = 128: that of sm_86).
    """

    rows: int
    columns: int
    depth: int
    warps: int
    most: int


# tensor cores want 16 rows; in fp32 every row costs. Chosen by registers and spills, untimed: see bench/resources.py
FORWARD = {"fp32": Launch(4, 64, 16, 8, 4096), "fp16": Launch(16, 64, 64, 8, 4096)}


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
        "DEPTH": max(16, min(launch.depth, hp, zp, launch.most // zp)),  # a wide head has flat tiles
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
    """A weight (segments * n, m) with each segment padded to `rows`, its inputs to `columns`; and the inputs first."""
    return pad_segments(pad_segments(weight, segments, rows).T, 1, columns)


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
def between(x, low, high):
    """Clamped; NaN stays NaN, which the card's plain minimum and maximum would lose."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp_log_std(x):
    """The clamp of `gaussian.split`."""
    return between(x, LOWEST_LOG_STD, HIGHEST_LOG_STD)


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
        x = between(x, -LARGEST_HALF, LARGEST_HALF).to(tl.float16)
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
