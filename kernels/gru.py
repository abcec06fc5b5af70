"""The GRU cell of both scans."""

from __future__ import annotations

import torch
from torch import Tensor


def gru_cell(
    v: Tensor, d: Tensor, input_weight: Tensor, state_weight: Tensor, input_bias: Tensor, state_bias: Tensor
) -> Tensor:
    """The transition `d_{t+1} = f_tran(v_t, d_t)`, computed as `torch.nn.GRUCell` does.

    Args:
        v: latent (B, Z).
        d: state (B, H).
        input_weight: (3H, Z): reset gate, update gate, candidate.
        state_weight: (3H, H).
        input_bias: (3H,).
        state_bias: (3H,).
    """
    input_reset, input_update, input_new = (v @ input_weight.T + input_bias).chunk(3, dim=-1)
    state_reset, state_update, state_new = (d @ state_weight.T + state_bias).chunk(3, dim=-1)
    reset = torch.sigmoid(input_reset + state_reset)
    update = torch.sigmoid(input_update + state_update)
    candidate = torch.tanh(input_new + reset * state_new)
    return (1 - update) * candidate + update * d


def gru_cell_backward(
    v: Tensor,
    d: Tensor,
    input_weight: Tensor,
    state_weight: Tensor,
    input_bias: Tensor,
    state_bias: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gru_cell`, given that of its result (B, H).

    Returns:
        Gradients of v (B, Z), of d (B, H), and of the pre-activations `v W_i + b_i` and `d W_h + b_h` (B, 3H) each,
        from which those of the weights are one product over all steps.
    """
    input_reset, input_update, input_new = (v @ input_weight.T + input_bias).chunk(3, dim=-1)
    state_reset, state_update, state_new = (d @ state_weight.T + state_bias).chunk(3, dim=-1)
    reset = torch.sigmoid(input_reset + state_reset)
    update = torch.sigmoid(input_update + state_update)
    candidate = torch.tanh(input_new + reset * state_new)
    to_new = gradient * (1 - update) * (1 - candidate.square())
    to_reset = to_new * state_new * reset * (1 - reset)
    to_update = gradient * (d - candidate) * update * (1 - update)
    to_input = torch.cat([to_reset, to_update, to_new], dim=-1)
    to_state = torch.cat([to_reset, to_update, to_new * reset], dim=-1)
    return to_input @ input_weight, gradient * update + to_state @ state_weight, to_input, to_state
