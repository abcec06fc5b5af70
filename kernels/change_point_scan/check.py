"""Whether a kernel agrees with the reference on small seeded inputs of a given size."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ..padding import OptionalTensor
from ..self_check import TOLERANCE, difference
from .linear_backward import scan_linear_backward
from .reference import scan_reference
from .reference_backward import scan_reference_backward
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights

N_SNIPPETS, LENGTHS = 12, (12, 12, 7, 2, 1)
COPIES = (1, 7)  # of these videos: CUDA's kernels for up to `cuda.FEW_VIDEOS`, and those for more


def seeded_inputs(
    rules: ScanRules, latent: int, state: int, copies: int
) -> tuple[ScanStreams, ScanWeights, Tensor, Tensor]:
    """Streams, weights, noise and lengths (float64, on the CPU) that the rules ask for."""
    generator, lengths = torch.Generator().manual_seed(0), torch.tensor(LENGTHS * copies)
    batch = len(lengths)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    small = state**-0.5
    streams = ScanStreams(
        draw(batch, N_SNIPPETS, 2 * latent),
        draw(batch, N_SNIPPETS, 2 * latent) if rules.uses_prior else None,
        draw(batch, N_SNIPPETS, 2 * latent) if rules.uses_posterior else None,
    )
    weights = ScanWeights(
        draw(3 * state, latent, scale=small),
        draw(3 * state, state, scale=small),
        draw(3 * state, scale=0.1),
        draw(3 * state, scale=0.1),
        draw(2 * latent, state, scale=small) if rules.uses_prior_state else None,
        draw(2 * latent) if rules.change_prior != "full" else None,
        draw(2 * latent, state, scale=small) if rules.uses_posterior else None,
        draw(state),
    )
    return streams, weights, draw(batch, N_SNIPPETS, latent), lengths


def mismatch(
    kernel: Any,
    rules: ScanRules,
    latent: int,
    state: int,
    precision: str,
    device: torch.device,
    forced: bool = False,
) -> str | None:
    """How a kernel differs from the float64 reference, forward or backward; none: it does not.

    The reference is given the kernel's change-points, and its own KLs then say which of them eqs. 7-8 allow: a
    difference of the last bits cannot turn into a different path.

    Args:
        kernel: has `forward` and `solver`, as `fused_triton`.
        rules: the reading.
        latent: Z.
        state: H.
        precision: of the kernel's products.
        device: where it runs.
        forced: with change-points that are given to it.
    """

    def moved(tensor: OptionalTensor) -> OptionalTensor:
        """In the kernel's type, on its device."""
        return None if tensor is None else tensor.to(device, torch.float32 if tensor.is_floating_point() else None)

    for copies, is_noisy in itertools.product(COPIES, (True, False)):
        streams, weights, drawn, lengths = seeded_inputs(rules, latent, state, copies)
        noise = drawn if is_noisy else None
        on_device = (ScanStreams._make(map(moved, streams)), ScanWeights._make(map(moved, weights)))
        arguments = (*on_device, rules, moved(noise), moved(lengths))
        thirds = (torch.arange(N_SNIPPETS) % 3 == 2).repeat(len(lengths), 1)
        output = kernel.forward(*arguments, moved(thirds) if forced else None, precision)
        change_points = output.change_points.cpu()
        expected = scan_reference(streams, weights, rules, noise, lengths, thirds if forced else change_points)
        if not torch.equal(change_points, expected.change_points):
            return "change-points at the first snippet or past a video's end, or not those given"
        if not forced and (wrong := wrong_decisions(expected, rules, lengths, TOLERANCE[precision])):
            return f"{wrong} change-points contradict eq. 7"
        if wrong_result := difference(output._fields, output, expected, precision):
            return wrong_result
        generator = torch.Generator().manual_seed(1)
        floats = (torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in expected[1:])
        gradients = ScanOutput(change_points, *floats)
        given = (ScanOutput._make(map(moved, gradients)), output, *arguments)
        found = scan_linear_backward(kernel.solver(precision), *given)
        by_reference = scan_reference_backward(gradients, expected, streams, weights, rules, noise, lengths)
        names = (f"the gradient of {name}" for name in (*streams._fields, *weights._fields))
        if wrong_result := difference(names, (*found[0], *found[1]), (*by_reference[0], *by_reference[1]), precision):
            return wrong_result
    return None


def wrong_decisions(output: ScanOutput, rules: ScanRules, lengths: Tensor, tolerance: float) -> int:
    """Decisions of a scan that its KLs contradict by more than `tolerance` of either side of eq. 7."""
    batch, n_snippets = output.change_points.shape
    beta, waiting, wrong = output.kl_static.new_full((batch,), rules.beta0), torch.zeros(batch, dtype=torch.int64), 0
    for t in range(1, n_snippets):
        changed, threshold = output.change_points[:, t], beta * output.kl_change[:, t]
        excess = output.kl_static[:, t] - threshold
        unclear = excess.abs() <= tolerance * (output.kl_static[:, t] + threshold)
        tested = waiting == 0
        decided = torch.where(tested & unclear, changed, tested & (excess > 0))
        wrong += int(((decided != changed) & (t < lengths)).sum())
        beta = torch.where(
            tested, (beta + torch.where(changed, rules.alpha, -rules.down)).clamp(*rules.beta_range), beta
        )
        waiting = torch.where(changed, rules.refractory, (waiting - 1).clamp(min=0))
    return wrong
