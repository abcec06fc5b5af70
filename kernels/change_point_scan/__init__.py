"""The change-point scan (section 3.2, eqs. 4-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiled import check_lengths, check_tensors, choose_backend, promoted
from .op import scan_op
from .reference import scan_reference
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights

__all__ = ["ScanOutput", "ScanRules", "ScanStreams", "ScanWeights", "change_point_scan"]


def change_point_scan(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules = ScanRules(),  # noqa: B008 (immutable)
    *,
    noise: Tensor | None = None,
    lengths: Tensor | None = None,
    forced_changes: Tensor | None = None,
    backend: str = "auto",
    precision: str = "fp32",
) -> ScanOutput:
    """Detect change-points along each sequence and return the latent path (eqs. 4-8).

    At each snippet the posterior q (eq. 6) is compared with the static prior (eq. 4) and with the change prior
    (eq. 5) that the GRU's next state gives; the snippet starts a new segment when KL(q || p_static) exceeds
    beta KL(q || p_change) (eq. 7), and beta moves by alpha either way within its range (eq. 8).

    Args:
        streams: what the heads owe to the features, (B, T, 2Z) each.
        weights: of the GRU and of the state's part of the heads.
        rules: the reading of the equations.
        noise: standard normal (B, T, Z), so that the scan is deterministic; none: latents are the beliefs' means.
        lengths: real snippets of each sequence (B,), at least 1; none: all T. Nothing past them is read.
        forced_changes: (B, T) bool; they decide instead of eq. 7 and of `refractory`. Column 0 is ignored.
        backend: `reference` is the loop that states the equations, differentiated by autograd; `cpu` the compiled
            scan (float32, on as many threads as `torch.get_num_threads()`); `triton` and `cuda` run float32 on an
            NVIDIA GPU; `auto` the one that fits, on a GPU only after it agreed with the reference on that card.
        precision: `fp32`, or `fp16` to let a GPU kernel multiply in half precision, which moves some change-points;
            states, KLs and the test stay in float32, and what runs on the CPU does anyway.

    Returns:
        Change-points, KLs in nats, latents, beliefs and states; see `ScanOutput`. Gradients flow through both sides
        of the KLs and none through the decisions.

    Raises:
        ValueError: a tensor that the rules need is absent, one they do not need is there, or a shape does not fit;
            names the argument, expected and got. Also a dtype or device that differs, a length outside [1, T], and
            `cpu` where it cannot run.

    Example:
        >>> import torch
        >>> start = torch.zeros(1, 4, 2)
        >>> start[0, 2:, 0] = 9.0  # one latent dimension jumps at the third snippet
        >>> zeros = [torch.zeros(shape) for shape in ((3, 1), (3, 1), (3,), (3,))]
        >>> weights = ScanWeights(*zeros, None, torch.tensor([0.0, 1.0]), None, torch.zeros(1))
        >>> change_point_scan(ScanStreams(start), weights, ScanRules(change_prior="constant")).change_points
        tensor([[False, False,  True, False]])
    """
    streams = ScanStreams(*map(promoted, streams))  # type: ignore[arg-type]
    weights = ScanWeights(*map(promoted, weights))  # type: ignore[arg-type]
    noise = promoted(noise)
    if streams.start.ndim != 3 or streams.start.shape[2] % 2 or 0 in streams.start.shape:
        raise ValueError(f"streams.start must be (B, T >= 1, 2Z), got {tuple(streams.start.shape)}")
    batch, n_snippets, _ = streams.start.shape
    if lengths is None:
        lengths = torch.full((batch,), n_snippets, device=streams.start.device)
    _check(streams, weights, rules, noise, lengths, forced_changes)
    request = choose_backend(backend, precision, streams.start)
    # autocast would multiply in 16 bits within the loop, and the test of eq. 7 would flip
    with torch.autocast(streams.start.device.type, enabled=False):
        if request != "reference":
            return scan_op(streams, weights, rules, noise, lengths, forced_changes, request, precision)
        check_lengths(lengths, n_snippets)
        return scan_reference(streams, weights, rules, noise, lengths, forced_changes)


def _check(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
) -> None:
    """Every tensor is there exactly where the rules need it, and has the shape they ask for."""
    batch, n_snippets, z2 = streams.start.shape
    h = weights.initial_state.shape[-1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...] | None]] = {
        "streams.prior": (streams.prior, (batch, n_snippets, z2) if rules.uses_prior else None),
        "streams.posterior": (streams.posterior, (batch, n_snippets, z2) if rules.uses_posterior else None),
        "weights.gru_input": (weights.gru_input, (3 * h, z2 // 2)),
        "weights.gru_state": (weights.gru_state, (3 * h, h)),
        "weights.gru_input_bias": (weights.gru_input_bias, (3 * h,)),
        "weights.gru_state_bias": (weights.gru_state_bias, (3 * h,)),
        "weights.prior_state": (weights.prior_state, (z2, h) if rules.uses_prior_state else None),
        "weights.prior_bias": (weights.prior_bias, None if rules.change_prior == "full" else (z2,)),
        "weights.posterior_state": (weights.posterior_state, (z2, h) if rules.uses_posterior else None),
        "weights.initial_state": (weights.initial_state, (h,)),
        "lengths": (lengths, (batch,)),
    }
    if noise is not None:
        expected["noise"] = (noise, (batch, n_snippets, z2 // 2))
    if forced_changes is not None:
        expected["forced_changes"] = (forced_changes, (batch, n_snippets))
    check_tensors(expected, streams.start, " under these rules")
