"""What goes into a snippet scan and what comes out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SnippetWeights(NamedTuple):
    """Weights used inside the scan; H units of state, Z latent dimensions.

    Attributes:
        gru_input, gru_state, gru_input_bias, gru_state_bias: of `torch.nn.GRUCell`: (3H, Z), (3H, H), (3H,), (3H,).
        prior_state: what P1 owes to the state (2Z, H).
        posterior_state: what Q1 owes to the state (2Z, H).
        initial_state: the learned start (H,).
    """

    gru_input: Tensor
    gru_state: Tensor
    gru_input_bias: Tensor
    gru_state_bias: Tensor
    prior_state: Tensor
    posterior_state: Tensor
    initial_state: Tensor


class SnippetOutput(NamedTuple):
    """KL(Q1 || P1) in nats (B, T), latent v1 (B, T, Z), state d1 (B, T, H); zeros at padded snippets."""

    kl: Tensor
    latent: Tensor
    state: Tensor
