"""Whether a kernel agrees with the reference on small seeded inputs of a given size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..change_point_scan.check import COPIES, LENGTHS, N_SNIPPETS
from ..self_check import difference
from .linear_backward import snippet_linear_backward
from .reference import snippet_scan_reference
from .reference_backward import snippet_scan_reference_backward
from .types import SnippetOutput, SnippetWeights


def mismatch(kernel: Any, latent: int, state: int, precision: str, device: torch.device) -> str | None:
    """How a kernel differs from the float64 reference, forward or backward; see `change_point_scan.check`."""
    found = (_mismatch(kernel, latent, state, precision, device, copies) for copies in COPIES)
    return next(filter(None, found), None)


def _mismatch(kernel: Any, latent: int, state: int, precision: str, device: torch.device, copies: int) -> str | None:
    generator, lengths = torch.Generator().manual_seed(0), torch.tensor(LENGTHS * copies)
    shape = (len(lengths), N_SNIPPETS)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*size, generator=generator, dtype=torch.float64)

    small = state**-0.5
    sizes = ((3 * state, latent), (3 * state, state), (3 * state,), (3 * state,), *[(2 * latent, state)] * 2, (state,))
    weights = SnippetWeights(*(draw(*size, scale=small) for size in sizes))
    prior, posterior, noise = draw(*shape, 2 * latent), draw(*shape, 2 * latent), draw(*shape, latent)
    change_points = torch.rand(shape, generator=generator) < 0.2
    gradients = SnippetOutput(*(draw(*shape, *size) for size in ((), (latent,), (state,))))

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.float32)

    on_device = (
        moved(prior),
        moved(posterior),
        SnippetWeights(*map(moved, weights)),
        moved(noise),
        change_points.to(device),
        lengths.to(device),
    )
    arguments = (prior, posterior, weights, noise, change_points, lengths)
    output, expected = kernel.forward(*on_device, precision), snippet_scan_reference(*arguments)
    found = snippet_linear_backward(kernel.solver(precision), SnippetOutput(*map(moved, gradients)), output, *on_device)
    by_reference = snippet_scan_reference_backward(gradients, expected, *arguments)
    streams = ("prior_stream", "posterior_stream")
    names = (*output._fields, *(f"the gradient of {name}" for name in (*streams, *weights._fields)))
    return difference(
        names, (*output, *found[:2], *found[2]), (*expected, *by_reference[:2], *by_reference[2]), precision
    )
