"""The GRU cell of both scans, step by step and for all steps at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# weights of the input (3H, Z) and of the state (3H, H), reset gate, update gate, candidate; their biases (3H,)
Gru = tuple[Tensor, Tensor, Tensor, Tensor]


def _gates(v: Tensor, d: Tensor, gru: Gru) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reset gate, update gate, candidate, and what the candidate owes to the state before its gate."""
    input_weight, state_weight, input_bias, state_bias = gru
    input_reset, input_update, input_new = (v @ input_weight.T + input_bias).chunk(3, dim=-1)
    state_reset, state_update, state_new = (d @ state_weight.T + state_bias).chunk(3, dim=-1)
    reset = torch.sigmoid(input_reset + state_reset)
    update = torch.sigmoid(input_update + state_update)
    return reset, update, torch.tanh(input_new + reset * state_new), state_new


def gru_cell(v: Tensor, d: Tensor, gru: Gru) -> Tensor:
    """The transition `d_{t+1} = f_tran(v_t, d_t)` of (B, Z) and (B, H), computed as `torch.nn.GRUCell` does."""
    _, update, candidate, _ = _gates(v, d, gru)
    return (1 - update) * candidate + update * d


def gru_cell_backward(v: Tensor, d: Tensor, gru: Gru, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gru_cell`, given that of its result (B, H).

    Returns:
        Gradients of v (B, Z), of d (B, H), and of the pre-activations `v W_i + b_i` and `d W_h + b_h` (B, 3H) each,
        from which those of the weights are one product over all steps.
    """
    reset, update, candidate, state_new = _gates(v, d, gru)
    to_new = gradient * (1 - update) * (1 - candidate.square())
    to_reset = to_new * state_new * reset * (1 - reset)
    to_update = gradient * (d - candidate) * update * (1 - update)
    to_input = torch.cat([to_reset, to_update, to_new], dim=-1)
    to_state = torch.cat([to_reset, to_update, to_new * reset], dim=-1)
    return to_input @ gru[0], gradient * update + to_state @ gru[1], to_input, to_state


def outer(gradient: Tensor, value: Tensor) -> Tensor:
    """Gradient of a weight, summed over videos and steps."""
    return gradient.flatten(0, 1).T @ value.flatten(0, 1)


class GruSteps(NamedTuple):
    """All GRU steps of a scan, t = 0 .. T - 2, as far as their gradients need them; (B, T - 1, H) each."""

    d_next: Tensor
    reset: Tensor
    update: Tensor
    to_candidate: Tensor
    to_reset: Tensor
    to_update: Tensor


def gru_steps(v: Tensor, d: Tensor, gru: Gru) -> GruSteps:
    """The steps once more, from latents (B, T - 1, Z) and states (B, T - 1, H)."""
    h = d.shape[-1]
    input_weight, state_weight, input_bias, state_bias = gru
    from_input = v @ input_weight.T + input_bias
    from_state = d @ state_weight.T + state_bias
    reset, update = (from_input[..., : 2 * h] + from_state[..., : 2 * h]).sigmoid().chunk(2, dim=-1)
    candidate = torch.tanh(from_input[..., 2 * h :] + reset * from_state[..., 2 * h :])
    return GruSteps(
        candidate + update * (d - candidate),
        reset,
        update,
        to_candidate=(1 - update) * (1 - candidate.square()),
        to_reset=from_state[..., 2 * h :] * reset * (1 - reset),
        to_update=(d - candidate) * update * (1 - update),
    )


def add_gru_gradients(steps: GruSteps, to_next: Tensor, v: Tensor, d: Tensor, found: Gru) -> None:
    """Add to the gradients of the GRU's weights, given that of every step's result (B, T - 1, H)."""
    to_new = to_next * steps.to_candidate
    to_gates = [to_new * steps.to_reset, to_next * steps.to_update]
    to_input = torch.cat([*to_gates, to_new], dim=-1)
    to_hidden = torch.cat([*to_gates, to_new * steps.reset], dim=-1)
    sums = (outer(to_input, v), outer(to_hidden, d), to_input.sum((0, 1)), to_hidden.sum((0, 1)))
    for total, gradient in zip(found, sums, strict=True):
        total.add_(gradient)
