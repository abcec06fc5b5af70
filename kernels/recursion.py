"""What is left of a scan's backward once all that needs no order of steps has been done for all steps at once.

Gates, heads and the KLs' gradients follow from the forward's result, and the weights' gradients are products over all
steps. Between the two stands a linear recursion from the last snippet to the first, the same for both scans; the GPU
kernels run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .gru import GruSteps


class Recursion(NamedTuple):
    """The gradients that are handed from step to step, backwards.

    With G the gradient of the belief at t + 1 and s its standard deviation times the noise, V that of v, D of d:

        G = carried + into + (V, V s);  carried' = known + (share G.mean, share G.log_std - pull G.mean)
        e = (rest G.mean, inside (rest G.log_std + pull G.mean)), of head Q's pre-activation
        N = D where there is no restart + through + Q^T e;  V', D' from N through the GRU;  D' += into

    Attributes:
        gru_input: weight of the GRU (3H, Z).
        gru_state: likewise (3H, H).
        steps: of the GRU; none: nothing reads the state, and every step restarts.
        posterior_state: head Q on the state (2Z, H), where e passes through it.
        lengths: (B,).
        restarts: whether the state after a step is d0 (B, T - 1).
        into_state: added to D at each column (B, T, H).
        through_state: added to N at each step (B, T - 1, H).
        columns: into.mean, into.log_std, s; (B, T, Z).
        links: share, pull, known.mean, known.log_std, rest, inside; (B, T - 1, Z).
        after_restart: head Q sees the state after a restart, so that Q^T e belongs to D.
    """

    gru_input: Tensor
    gru_state: Tensor
    steps: GruSteps | None
    posterior_state: Tensor | None
    lengths: Tensor
    restarts: Tensor
    into_state: Tensor
    through_state: Tensor
    columns: list[Tensor]
    links: list[Tensor]
    after_restart: bool = False

    def terms(self) -> Tensor:
        """Columns, and the links that lead to each, side by side (B, T, 9, Z)."""
        links = pad(torch.stack(self.links, dim=2), (0, 0, 0, 0, 1, 0))
        return torch.cat([torch.stack(self.columns, dim=2), links], dim=2)


# G (B, T, 2Z) and D (B, T, H, without Q^T e) at every column; zeros at padded snippets
Solve = Callable[[Recursion], tuple[Tensor, Tensor]]
