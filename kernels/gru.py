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
