"""The snippet scan on Hopper GPUs; see `kernels/cuda.py`."""

from __future__ import annotations

from torch import Tensor

from .. import cuda
from ..cuda import solver as solver
from ..gaussian import kl, split
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

    Arguments are the same, tensors float32 and contiguous; precision and library as for the change-point scan.

    Raises:
        ValueError: a tensor of another device or dtype or not contiguous; names it.
        RuntimeError: the kernels are not installed, have no variant of this size, or CUDA failed.
    """
    library = cuda.chosen(library)
    batch, n_snippets, z2 = prior_stream.shape
    h = weights.initial_state.shape[0]
    latent, state = (prior_stream.new_zeros(batch, n_snippets, width) for width in (z2 // 2, h))
    tensors = {"posterior": posterior_stream, **weights._asdict(), "noise": noise, "change_points": change_points}
    tensors |= {"lengths": lengths, "order": longest_first(lengths), "latent": latent, "state": state}
    del tensors["prior_state"]
    arguments = _Snippets(
        **cuda.pointers(library, tensors),
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
