"""What goes into a change-point scan and what comes out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class ScanRules(NamedTuple):
    """The reading of eqs. 4-8, field by field (see `docs/method.md`); the defaults are the filtered reading."""

    static_belief: Literal["held", "prior"] = "held"
    change_prior: Literal["state", "constant", "full"] = "state"
    evidence: Literal["start", "transition"] = "start"
    belief_weight: float = 0.7
    evidence_weight: float = 0.3
    refractory: int = 0
    reset: bool = True
    alpha: float = 0.15
    alpha_down: float | None = None
    beta0: float = 0.5
    beta_range: tuple[float, float] = (0.15, 0.9)

    @property
    def down(self) -> float:
        """What eq. 8 takes from beta where nothing changes."""
        return self.alpha if self.alpha_down is None else self.alpha_down

    @property
    def uses_prior(self) -> bool:
        """Whether head P reads the features, so that `streams.prior` is there."""
        return self.static_belief == "prior" or self.change_prior == "full"

    @property
    def uses_prior_state(self) -> bool:
        """Whether head P reads the state, so that `weights.prior_state` is there."""
        return self.uses_prior or self.change_prior == "state"

    @property
    def uses_posterior(self) -> bool:
        """Whether head Q reads the state, so that `streams.posterior` and `weights.posterior_state` are there."""
        return self.evidence == "transition"

    @property
    def uses_state(self) -> bool:
        """Whether anything reads the state; else it stays d0."""
        return self.uses_prior_state or self.uses_posterior


class ScanStreams(NamedTuple):
    """Pre-activations of the heads made outside the scan, (B, T, 2Z): means, then log standard deviations.

    Attributes:
        start: column t is Q(f_t, d0, u_t), complete: the belief at the first snippet, r after a reset, and the
            evidence e of the filtered reading.
        prior: column t is head P on f_t and u_t with its bias, without the state's part; for `static_belief: prior`
            and `change_prior: full`, else none.
        posterior: column t is head Q on f_t and u_{t-1} with its bias, without the state's part; for
            `evidence: transition`, else none. Column 0 is not used.
    """

    start: Tensor
    prior: Tensor | None = None
    posterior: Tensor | None = None


class ScanWeights(NamedTuple):
    """Weights used inside the scan; H units of state, Z latent dimensions.

    Attributes:
        gru_input, gru_state, gru_input_bias, gru_state_bias: of `torch.nn.GRUCell`: (3H, Z), (3H, H), (3H,), (3H,).
        prior_state: what head P owes to the state (2Z, H).
        prior_bias: bias of P under `change_prior: state`, the learned Gaussian under `constant` (2Z,).
        posterior_state: what head Q owes to the state (2Z, H), for `evidence: transition`.
        initial_state: d0 (H,).
    """

    gru_input: Tensor
    gru_state: Tensor
    gru_input_bias: Tensor
    gru_state_bias: Tensor
    prior_state: Tensor | None
    prior_bias: Tensor | None
    posterior_state: Tensor | None
    initial_state: Tensor


class ScanOutput(NamedTuple):
    """Result of a scan; zeros (False) at padded snippets.

    Attributes:
        change_points: (B, T) bool; column 0 is False.
        kl_static: D_static of eq. 7 in nats (B, T), 0 in column 0.
        kl_change: D_change of eq. 7 likewise.
        kl_charged: the KL that the loss pays (B, T); column 0 is KL(belief || N(0, I)).
        latent: v (B, T, Z).
        belief_mean, belief_log_std: the Gaussian that v was drawn from (B, T, Z).
        state: d as it stands at each snippet (B, T, H), with `reset` d0 right after a change-point; d0
            throughout where the rules need no state.
    """

    change_points: Tensor
    kl_static: Tensor
    kl_change: Tensor
    kl_charged: Tensor
    latent: Tensor
    belief_mean: Tensor
    belief_log_std: Tensor
    state: Tensor


def empty_output(start: Tensor, initial_state: Tensor) -> ScanOutput:
    """A result to be filled, for streams like `start`."""
    batch, n_snippets, z2 = start.shape
    sizes = (*[()] * 3, *[(z2 // 2,)] * 3, initial_state.shape)
    floats = (start.new_empty(batch, n_snippets, *size) for size in sizes)
    return ScanOutput(start.new_empty(batch, n_snippets, dtype=torch.bool), *floats)
