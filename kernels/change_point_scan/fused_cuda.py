"""The change-point scan on Hopper GPUs; see `kernels/cuda.py`."""

from __future__ import annotations

from torch import Tensor

from .. import cuda
from ..cuda import solver as solver
from ..padding import longest_first
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights, empty_output

_Scan = cuda.structure(
    "AhlmCudaScan",
    "start prior posterior gru_input gru_state gru_input_bias gru_state_bias prior_state prior_bias posterior_state "
    "initial_state noise lengths order forced_changes change_points kl_static kl_change kl_charged latent belief_mean "
    "belief_log_std state",
    "batch snippets latent_size state_size few held change_prior transition uses_state reset refractory",
    "belief_weight evidence_weight alpha alpha_down beta0 beta_low beta_high",
)


def forward(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
    precision: cuda.Precision = "fp32",
    library: cuda.Library | None = None,
) -> ScanOutput:
    """`scan_reference` as one kernel; arguments and result are the same, tensors float32 and contiguous.

    Under `fp16` weights, d and v are rounded for the matrix products, whose sums, like all else, stay in float32. The
    kernels are those of the installation by default.

    Raises:
        ValueError: a tensor of another device or dtype or not contiguous; names it.
        RuntimeError: the kernels are not installed, have no variant of this size, or CUDA failed.
    """
    library = cuda.chosen(library)
    start = streams.start
    batch, n_snippets, z2 = start.shape
    # past a video's end the kernel writes nothing
    output = ScanOutput._make(tensor.zero_() for tensor in empty_output(start, weights.initial_state))
    tensors = {**streams._asdict(), **weights._asdict(), "noise": noise, "lengths": lengths}
    tensors |= {"order": longest_first(lengths), "forced_changes": forced_changes, **output._asdict()}
    arguments = _Scan(
        **cuda.pointers(library, tensors),
        batch=batch,
        snippets=n_snippets,
        latent_size=z2 // 2,
        state_size=weights.initial_state.shape[0],
        few=precision == "fp32" and batch <= cuda.FEW_VIDEOS,
        held=rules.static_belief == "held",
        change_prior=("state", "constant", "full").index(rules.change_prior),
        transition=rules.evidence == "transition",
        uses_state=rules.uses_state,
        reset=rules.reset,
        refractory=rules.refractory,
        belief_weight=rules.belief_weight,
        evidence_weight=rules.evidence_weight,
        alpha=rules.alpha,
        alpha_down=rules.down,
        beta0=rules.beta0,
        beta_low=rules.beta_range[0],
        beta_high=rules.beta_range[1],
    )
    library.run("ahlm_cuda_change_point_scan", arguments, start.device, precision)
    return output
