"""The recursion of both scans' backward in Triton: a program runs a few videos from their last snippet to the first."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .padding import longest_first
from .recursion import Recursion, Solve
from .triton_blocks import Launch, cut, packed, padded

# as in `triton_blocks`: tensor cores want 16 rows
LAUNCH = {"fp32": Launch(4, 64, 16, 8, 2048), "fp16": Launch(16, 64, 32, 8, 2048)}
# fp16's smallest numbers are too large for gradients; tf32 keeps as many digits, cut off, and fp32's range
PRODUCTS = {"fp32": "ieee", "fp16": "tf32"}

# rows of `Recursion.terms`
INTO, SPREAD, SHARE, PULL, KNOWN, REST, INSIDE = (tl.constexpr(i) for i in (0, 2, 3, 4, 5, 7, 8))
TERMS = tl.constexpr(9)


@triton.jit
def term(terms_ptr, at, z, mask, WHICH: tl.constexpr, Z: tl.constexpr):
    """One row of `terms` at the columns `at`."""
    return tl.load(terms_ptr + (at * TERMS + WHICH) * Z + z[None, :], mask=mask, other=0.0)


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


@triton.jit(do_not_specialize=["B", "T"])
def reverse_kernel(
    length_ptr, order_ptr, terms_ptr, restart_ptr, reset_ptr, update_ptr, to_candidate_ptr, to_reset_ptr, to_update_ptr,
    through_ptr, input_ptr, state_weight_ptr, posterior_state_ptr, gates_ptr, evidence_ptr, to_belief_ptr, to_state_ptr,
    B, T,
    HAS_STATE: tl.constexpr, TRANSITION: tl.constexpr, AFTER_RESTART: tl.constexpr,
    H: tl.constexpr, Z: tl.constexpr, HP: tl.constexpr, ZP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The recursion of ROWS videos; names are those of `Recursion`.

    `to_state` holds `into_state` and in the end D; G is written to `to_belief`. `gates` (B, 4, H) and `evidence`
    (B, 2Z) hold what the products of one step read.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    video = tl.load(order_ptr + row, mask=row < B, other=0)
    length = tl.load(length_ptr + video, mask=row < B, other=0)
    z = tl.arange(0, ZP)
    in_z = (z < Z)[None, :]
    gate, to_e = gates_ptr + (video * 4 * H)[:, None], evidence_ptr + (video * 2 * Z)[:, None]
    first = (video * T)[:, None]
    gv = tl.zeros([ROWS, ZP], tl.float32)
    mean, log_std = gv, gv  # what is carried to the belief
    t = tl.max(length) - 1
    while t >= 0:
        at = (video * T + t)[:, None]
        real = (t < length)[:, None]
        here = real & in_z
        to_mean = mean + gv + term(terms_ptr, at, z, here, INTO, Z)
        to_log_std = log_std + gv * term(terms_ptr, at, z, here, SPREAD, Z) + term(terms_ptr, at, z, here, INTO + 1, Z)
        belief = to_belief_ptr + at * (2 * Z) + z[None, :]
        tl.store(belief, to_mean, mask=here)
        tl.store(belief + Z, to_log_std, mask=here)
        share, pull = term(terms_ptr, at, z, here, SHARE, Z), term(terms_ptr, at, z, here, PULL, Z)
        mean = term(terms_ptr, at, z, here, KNOWN, Z) + share * to_mean
        log_std = term(terms_ptr, at, z, here, KNOWN + 1, Z) + share * to_log_std - pull * to_mean
        # the step from t - 1 to t
        going = real & (at > first)
        step = (video * (T - 1) + t - 1)[:, None]
        if TRANSITION:
            rest = term(terms_ptr, at, z, here, REST, Z)
            tl.store(to_e + z[None, :], rest * to_mean, mask=going & in_z)
            e_log_std = term(terms_ptr, at, z, here, INSIDE, Z) * (rest * to_log_std + pull * to_mean)
            tl.store(to_e + Z + z[None, :], e_log_std, mask=going & in_z)
            tl.debug_barrier()
        if HAS_STATE:
            kept = going & (tl.load(restart_ptr + step, mask=going, other=1) == 0)
            to_d = to_state_ptr + at * H
            for j in range(0, HP, COLUMNS):
                h = j + tl.arange(0, COLUMNS)
                here_h, steps = going & (h < H)[None, :], step * H + h[None, :]
                g = tl.load(to_d + h[None, :], mask=kept & (h < H)[None, :], other=0.0)
                if TRANSITION:
                    from_e = tl.zeros([ROWS, COLUMNS], tl.float32)
                    from_e = add_head_gradients(
                        from_e, to_e, going, posterior_state_ptr, h, Z, HP, ZP, DEPTH, PRECISION
                    )
                    g += tl.where(kept, from_e, 0.0) if AFTER_RESTART else from_e
                g += tl.load(through_ptr + steps, mask=here_h, other=0.0)
                to_candidate = g * tl.load(to_candidate_ptr + steps, mask=here_h, other=0.0)
                to_reset = to_candidate * tl.load(to_reset_ptr + steps, mask=here_h, other=0.0)
                to_update = g * tl.load(to_update_ptr + steps, mask=here_h, other=0.0)
                to_hidden = to_candidate * tl.load(reset_ptr + steps, mask=here_h, other=0.0)
                tl.store(gate + h[None, :], to_reset, mask=here_h)
                tl.store(gate + H + h[None, :], to_update, mask=here_h)
                tl.store(gate + 2 * H + h[None, :], to_candidate, mask=here_h)
                tl.store(gate + 3 * H + h[None, :], to_hidden, mask=here_h)
                before = to_d - H + h[None, :]
                own = g * tl.load(update_ptr + steps, mask=here_h, other=0.0)
                tl.store(before, tl.load(before, mask=here_h, other=0.0) + own, mask=here_h)
            tl.debug_barrier()
            gv = tl.zeros([ROWS, ZP], tl.float32)
            gv = add_gate_gradients(gv, gate, going, input_ptr, z, 2, ZP, H, HP, DEPTH, PRECISION)
            for j in range(0, HP, COLUMNS):
                h = j + tl.arange(0, COLUMNS)
                here_h = going & (h < H)[None, :]
                total = tl.load(to_d - H + h[None, :], mask=here_h, other=0.0)
                total = add_gate_gradients(total, gate, going, state_weight_ptr, h, 3, HP, H, HP, DEPTH, PRECISION)
                tl.store(to_d - H + h[None, :], total, mask=here_h)
            tl.debug_barrier()
        t -= 1


def reverse(recursion: Recursion, precision: str) -> tuple[Tensor, Tensor]:
    """Run a recursion; see `Recursion` and `Solve`."""
    steps, lengths = recursion.steps, recursion.lengths
    terms, to_state = recursion.terms(), recursion.into_state.clone()
    (batch, n, h), z = to_state.shape, terms.shape[-1]
    hp, zp = padded(h), padded(z)
    to_belief = terms.new_zeros(batch, n, 2 * z)
    of_steps = [terms] * 5  # something to point at
    if steps is not None:
        of_steps = [term.contiguous() for term in steps[1:]]
    posterior_state = recursion.posterior_state
    launch = LAUNCH[precision]
    reverse_kernel[(triton.cdiv(batch, launch.rows),)](
        lengths,
        longest_first(lengths),
        terms,
        recursion.restarts.contiguous().view(torch.int8),
        *of_steps,
        recursion.through_state.contiguous(),
        packed(recursion.gru_input, 3, hp, zp).T.contiguous(),
        packed(recursion.gru_state, 3, hp, hp).T.contiguous(),
        terms if posterior_state is None else packed(posterior_state, 2, zp, hp).T.contiguous(),
        terms.new_empty(batch, 4, h),
        terms.new_empty(batch, 2 * z),
        to_belief,
        to_state,
        batch,
        n,
        HAS_STATE=steps is not None,
        TRANSITION=posterior_state is not None,
        AFTER_RESTART=recursion.after_restart,
        PRECISION=PRODUCTS[precision],
        **cut(launch, h, z),
    )
    return to_belief, to_state


def solver(precision: str) -> Solve:
    """The recursion in a precision, for both scans."""
    return partial(reverse, precision=precision)
