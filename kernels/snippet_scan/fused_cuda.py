"""The snippet scan on Hopper GPUs; see `kernels/cuda.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cuda
from ..gaussian import Gaussian, kl, kl_backward, split, split_backward
from ..padding import longest_first, real_only, snippet_mask
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
    """`snippet_scan_reference_backward` with all that needs no order of steps done for all steps at once.

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
    real = snippet_mask(lengths, prior_stream.shape[1])
    g_kl, g_latent, g_state, prior_stream, posterior_stream, noise = (
        real_only(tensor, real) for tensor in (*gradients, prior_stream, posterior_stream, noise)
    )
    d = output.state
    pre_prior = prior_stream + d @ weights.prior_state.T
    pre_posterior = posterior_stream + d @ weights.posterior_state.T
    posterior = split(pre_posterior)
    from_kl, to_prior = kl_backward(posterior, split(pre_prior), g_kl)
    to_pre_prior = split_backward(pre_prior, to_prior)
    noise_std = posterior.log_std.exp() * noise
    steps = cuda.gru_steps(output.latent[:, :-1], d[:, :-1], weights)
    zeros, ones = torch.zeros_like(noise_std), torch.ones_like(noise_std)
    inside = split_backward(pre_posterior, Gaussian(zeros, ones)).chunk(2, dim=-1)[1]
    # a posterior owes nothing to the one before, and all of its gradient passes through head Q1
    restarts = change_points[:, :-1] & real[:, 1:]
    gb, gd = cuda.reverse(
        library,
        weights,
        steps,
        weights.posterior_state,
        lengths,
        restarts,
        g_state + to_pre_prior @ weights.prior_state,
        torch.zeros_like(d[:, :-1]),
        [from_kl.mean + g_latent, from_kl.log_std + g_latent * noise_std, noise_std],
        [term[:, 1:] for term in (zeros, zeros, zeros, zeros, ones, inside)],
        after_restart=True,
    )
    to_pre_posterior = split_backward(pre_posterior, Gaussian(*gb.chunk(2, dim=-1)))
    gd = gd + to_pre_posterior @ weights.posterior_state
    to_next = torch.where(restarts[..., None], 0.0, gd[:, 1:])
    found = SnippetWeights(*(torch.zeros_like(tensor) for tensor in weights))
    found.initial_state.copy_(gd.sum((0, 1)) - to_next.sum((0, 1)))
    found.prior_state.copy_(cuda.outer(to_pre_prior, d))
    found.posterior_state.copy_(cuda.outer(to_pre_posterior, d))
    cuda.add_gru_gradients(steps, to_next, output.latent[:, :-1], d[:, :-1], found)
    return to_pre_prior, to_pre_posterior, found
