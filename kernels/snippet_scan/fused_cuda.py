"""The snippet scan on Hopper GPUs; see `kernels/cuda.py`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import cuda
from ..gaussian import kl, split
from ..padding import longest_first, real_only, snippet_mask
from .linear_backward import snippet_linear_backward
from .types import SnippetOutput, SnippetWeights

_Snippets = cuda.structure(
    "AhlmCudaSnippets",
    "posterior gru_input gru_state gru_input_bias gru_state_bias posterior_state initial_state noise change_points "
    "lengths order latent state",
    "batch snippets latent_size state_size few",
)


def forward(
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
    precision: cuda.Precision = "fp32",
    library: cuda.Library | None = None,
) -> SnippetOutput:
    """`snippet_scan_reference`: latents and states by the kernel, then priors and KLs of all snippets at once.

    Args:
        prior_stream: see `snippet_scan_reference`, like the rest; float32 and contiguous.
        posterior_stream: see there.
        weights: see there.
        noise: see there.
        change_points: see there.
        lengths: see there.
        precision: as for the change-point scan.
        library: the kernels; those of the installation by default.

    Raises:
        ValueError: a tensor of another device or dtype or not contiguous; names it.
        RuntimeError: the kernels are not installed, have no variant of this size, or CUDA failed.
    """
    library = cuda.chosen(library)
    tensors = {"posterior": posterior_stream, **weights._asdict(), "noise": noise}
    cuda.check(library, tensors, torch.float32)
    cuda.check(library, {"lengths": lengths}, torch.int64)
    cuda.check(library, {"change_points": change_points}, torch.bool)
    batch, n_snippets, z2 = prior_stream.shape
    h = weights.initial_state.shape[0]
    latent, state = (prior_stream.new_zeros(batch, n_snippets, width) for width in (z2 // 2, h))
    tensors |= {"change_points": change_points, "lengths": lengths, "order": longest_first(lengths)}
    tensors |= {"latent": latent, "state": state}
    wanted = {name for name, *_ in _Snippets._fields_}
    arguments = _Snippets(
        **cuda.pointers({name: tensor for name, tensor in tensors.items() if name in wanted}),
        batch=batch,
        snippets=n_snippets,
        latent_size=z2 // 2,
        state_size=h,
        few=precision == "fp32" and batch <= cuda.FEW_VIDEOS,
    )
    library.run("ahlm_cuda_snippet_scan", arguments, prior_stream.device, precision)
    real = snippet_mask(lengths, n_snippets)
    prior = real_only(prior_stream + state @ weights.prior_state.T, real)
    posterior = real_only(posterior_stream + state @ weights.posterior_state.T, real)
    return SnippetOutput(kl(split(posterior), split(prior)), latent, state)


def backward(
    gradients: SnippetOutput,
    output: SnippetOutput,
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
    precision: cuda.Precision = "fp32",
    library: cuda.Library | None = None,
) -> tuple[Tensor, Tensor, SnippetWeights]:
    """`snippet_linear_backward` by CUDA.

    Args:
        gradients: see `snippet_scan_reference_backward`, like the rest; float32 and contiguous.
        output: see there.
        prior_stream: see there.
        posterior_stream: see there.
        weights: see there.
        noise: see there.
        change_points: see there.
        lengths: see there.
        precision: that of the forward; the reverse is float32 whatever it was.
        library: the kernels; those of the installation by default.

    Raises:
        ValueError: a tensor of another device or dtype or not contiguous; names it.
        RuntimeError: the kernels are not installed, have no variant of this size, or CUDA failed.
    """
    library = cuda.chosen(library)
    given = {f"gradients.{name}": tensor for name, tensor in gradients._asdict().items()}
    cuda.check(library, {**given, **weights._asdict(), "noise": noise}, torch.float32)
    cuda.check(library, {"lengths": lengths}, torch.int64)
    solve = partial(cuda.reverse, library)
    return snippet_linear_backward(
        solve, gradients, output, prior_stream, posterior_stream, weights, noise, change_points, lengths
    )
