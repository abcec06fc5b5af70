"""The change-point scan on Hopper GPUs (sm_90): clusters of 8 blocks, weights that stay on the chip, one launch a scan.

The kernels are in `csrc/cuda/`, built where CMake finds nvcc (`AHLM_CUDA`). They take H = 256 and Z up to 64.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

import ahlm

from ..gaussian import Gaussian, fuse, fuse_backward, kl_backward, split, split_backward
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights

STATE_SIZE, MOST_LATENTS = 256, 64
# float32 batches that run in clusters of two videos: 132 multiprocessors hold about 15 clusters of 8 blocks at once
FEW_VIDEOS = 30
MOST_ROWS = 2**31 - 1  # of (B, T): the kernels count them in 32 bits
NAME = "libahlm_cuda.so"

Precision = Literal["fp32", "fp16"]


def _structure(name: str, pointers: str, integers: str, floats: str = "") -> type[ctypes.Structure]:
    """A struct of csrc/cuda/change_point_scan.hpp: pointers, then 32-bit integers, then floats."""
    kinds = ((pointers, ctypes.c_void_p), (integers, ctypes.c_int32), (floats, ctypes.c_float))
    fields = [(field, kind) for fields, kind in kinds for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Scan = _structure(
    "AhlmCudaScan",
    "start prior posterior gru_input gru_state gru_input_bias gru_state_bias prior_state prior_bias posterior_state "
    "initial_state noise lengths order forced_changes change_points kl_static kl_change kl_charged latent belief_mean "
    "belief_log_std state",
    "batch snippets latent_size state_size few held change_prior transition uses_state reset refractory",
    "belief_weight evidence_weight alpha alpha_down beta0 beta_low beta_high",
)
_Reverse = _structure(
    "AhlmCudaReverse",
    "gru_input gru_state posterior_state lengths order restarts to_candidate to_reset to_update reset update "
    "into_state through_state belief_terms belief_gradient state_gradient",
    "batch snippets latent_size state_size few transition",
)
_Resources = _structure("AhlmCudaResources", "", "registers local_bytes shared_bytes threads clusters")
KERNELS = tuple(
    name + reading
    for name in ("forward fp32", "forward fp32, few videos", "forward fp16", "reverse fp32", "reverse fp32, few videos")
    for reading in ("", ", transition")
)


class Library:
    """The kernels in a shared object; `device` is the kind of memory they work on (`cpu`: they are emulated)."""

    def __init__(self, path: Path, device: str = "cuda") -> None:
        self.device = device
        self.calls = ctypes.CDLL(str(path))
        self.calls.ahlm_cuda_error.restype = ctypes.c_char_p

    def device_fits(self, device: torch.device) -> bool:
        """Whether a device has what the kernels are compiled for."""
        with self._on(device):
            return bool(self.calls.ahlm_cuda_device_fits())

    def resources(self, device: torch.device) -> dict[str, dict[str, int]]:
        """What each kernel takes, and how many clusters run at once on a device; -1 is unknown without a device."""
        table = {}
        with self._on(device):
            for i, name in enumerate(KERNELS):
                found = _Resources()
                error = self.calls.ahlm_cuda_resources(i, ctypes.byref(found))
                if torch.cuda.is_available():
                    self._check(error)
                table[name] = {field: getattr(found, field) for field, *_ in found._fields_}
        return table

    def scan(self, arguments: ctypes.Structure, precision: Precision, device: torch.device) -> None:
        """Launch the forward scan."""
        with self._on(device):
            bits = int(precision.removeprefix("fp"))
            self._check(self.calls.ahlm_cuda_change_point_scan(ctypes.byref(arguments), bits, self._stream(device)))

    def reverse(self, arguments: ctypes.Structure, device: torch.device) -> None:
        """Launch the sequential part of the reverse scan."""
        with self._on(device):
            self._check(self.calls.ahlm_cuda_change_point_reverse(ctypes.byref(arguments), self._stream(device)))

    def _on(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    def _stream(self, device: torch.device) -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None)

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA change-point scan: {self.calls.ahlm_cuda_error(error).decode()}")


@functools.cache
def installed() -> Library | None:
    """The kernels of this installation, none where it was built without nvcc."""
    for folder in ahlm.__path__:
        path = Path(folder) / NAME
        if path.is_file():
            with contextlib.suppress(OSError):
                return Library(path)
    return None


def available(device: torch.device | None = None) -> bool:
    """Whether the kernels are installed and a device (the current one) can run them; never raises."""
    if not torch.cuda.is_available():
        return False
    library = installed()
    return library is not None and library.device_fits(device or torch.device("cuda"))


def supports(streams: ScanStreams, weights: ScanWeights) -> bool:
    """Whether the kernels take scans of this size."""
    batch, n_snippets, z2 = streams.start.shape
    fits = weights.initial_state.shape[0] == STATE_SIZE and z2 <= 2 * MOST_LATENTS
    return fits and batch * n_snippets <= MOST_ROWS


def forward(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
    precision: Precision = "fp32",
    library: Library | None = None,
) -> ScanOutput:
    """`scan_reference` as one kernel; arguments and result are the same, tensors float32 and contiguous.

    Args:
        streams: see `scan_reference`, like the rest.
        weights: see there.
        rules: see there.
        noise: see there.
        lengths: see there.
        forced_changes: see there.
        precision: `fp32`: every product and sum; `fp16`: weights, d and v are rounded for the matrix products, whose
            sums, like all else, stay in float32.
        library: the kernels; those of the installation by default.

    Raises:
        ValueError: a tensor of another device or dtype or not contiguous; names it.
        RuntimeError: the kernels are not installed, have no variant of this size, or CUDA failed.
    """
    library = _library(library)
    tensors = {**streams._asdict(), **weights._asdict(), "noise": noise}
    _check(library, tensors, torch.float32)
    _check(library, {"lengths": lengths}, torch.int64)
    _check(library, {"forced_changes": forced_changes}, torch.bool)
    start = streams.start
    batch, n_snippets, z2 = start.shape
    z, h = z2 // 2, weights.initial_state.shape[0]
    # past a video's end the kernel writes nothing
    shapes = [(batch, n_snippets), *[(batch, n_snippets)] * 3, *[(batch, n_snippets, z)] * 3, (batch, n_snippets, h)]
    output = ScanOutput._make(
        start.new_zeros(shape, dtype=torch.bool if i == 0 else torch.float32) for i, shape in enumerate(shapes)
    )
    order = _longest_first(lengths)
    pointers = _pointers(
        {**tensors, "lengths": lengths, "order": order, "forced_changes": forced_changes, **output._asdict()}
    )
    arguments = _Scan(
        **pointers,
        batch=batch,
        snippets=n_snippets,
        latent_size=z,
        state_size=h,
        few=precision == "fp32" and batch <= FEW_VIDEOS,
        held=rules.static_belief == "held",
        change_prior=("state", "constant", "full").index(rules.change_prior),
        transition=rules.evidence == "transition",
        uses_state=_uses_state(rules),
        reset=rules.reset,
        refractory=rules.refractory,
        belief_weight=rules.belief_weight,
        evidence_weight=rules.evidence_weight,
        alpha=rules.alpha,
        alpha_down=rules.alpha if rules.alpha_down is None else rules.alpha_down,
        beta0=rules.beta0,
        beta_low=rules.beta_range[0],
        beta_high=rules.beta_range[1],
    )
    library.scan(arguments, precision, start.device)
    return output


def backward(
    gradients: ScanOutput,
    output: ScanOutput,
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    precision: Precision = "fp32",
    library: Library | None = None,
) -> tuple[ScanStreams, ScanWeights]:
    """`scan_reference_backward` with all that needs no order of steps done for all steps at once.

    Gates, heads and the KLs' gradients follow from the forward's result. What is left to the kernel is linear: the
    gradient of the belief passes through the filter dimension by dimension, that of the state through the GRU (and,
    under `evidence: transition`, from the belief to the state through head Q). The weights' gradients are matrix
    products over all steps.

    Args:
        gradients: see `scan_reference_backward`, like the rest; float32 and contiguous.
        output: see there.
        streams: see there.
        weights: see there.
        rules: see there.
        noise: see there.
        lengths: see there.
        precision: that of the forward; the reverse is float32 whatever it was.
        library: the kernels; those of the installation by default.

    Raises:
        ValueError: a tensor of another device or dtype or not contiguous; names it.
        RuntimeError: the kernels are not installed, have no variant of this size, or CUDA failed.
    """
    library = _library(library)
    named = {f"gradients.{name}": tensor for name, tensor in gradients._asdict().items() if name != "change_points"}
    _check(library, {**named, **streams._asdict(), **weights._asdict(), "noise": noise}, torch.float32)
    _check(library, {"lengths": lengths}, torch.int64)
    batch, n_snippets, z2 = streams.start.shape
    z, h = z2 // 2, weights.initial_state.shape[0]
    real = torch.arange(n_snippets, device=lengths.device) < lengths[:, None]
    following = real[:, 1:]

    def real_only(tensor: Tensor) -> Tensor:
        return torch.where(real if tensor.ndim == 2 else real[..., None], tensor, 0.0)

    g = ScanOutput(gradients.change_points, *(real_only(tensor) for tensor in gradients[1:]))
    start = real_only(streams.start)
    prior = None if streams.prior is None else real_only(streams.prior)[:, :-1]
    posterior = None if streams.posterior is None else real_only(streams.posterior)[:, 1:]
    noise = torch.zeros_like(output.latent) if noise is None else real_only(noise)
    changed = (output.change_points[:, 1:] & following)[..., None]
    has_state = _uses_state(rules)

    # the forward steps once more, from columns t = 0 .. T - 2 to the next
    v, d = output.latent[:, :-1], output.state[:, :-1]
    belief = Gaussian(output.belief_mean[:, :-1], output.belief_log_std[:, :-1])
    if has_state:
        from_input = v @ weights.gru_input.T + weights.gru_input_bias
        from_state = d @ weights.gru_state.T + weights.gru_state_bias
        reset, update = (from_input[..., : 2 * h] + from_state[..., : 2 * h]).sigmoid().chunk(2, dim=-1)
        candidate = torch.tanh(from_input[..., 2 * h :] + reset * from_state[..., 2 * h :])
        d_next = candidate + update * (d - candidate)
        to_candidate = (1 - update) * (1 - candidate.square())
        to_reset = from_state[..., 2 * h :] * reset * (1 - reset)
        to_update = (d - candidate) * update * (1 - update)
    else:
        d_next = d
        reset = update = to_candidate = to_reset = to_update = torch.zeros_like(d)

    def head(weight: Tensor | None, offset: Tensor | None, state: Tensor) -> Tensor:
        assert weight is not None
        assert offset is not None
        return offset + state @ weight.T

    pre_r = pre_e = start[:, 1:]
    if posterior is not None:
        pre_e = head(weights.posterior_state, posterior, d_next)
    r, e = split(pre_r), split(pre_e)
    q = fuse(belief, e, rules.belief_weight, rules.evidence_weight)
    new = r if rules.reset else e
    pre_static = None if rules.static_belief == "held" else head(weights.prior_state, prior, d)
    if rules.change_prior == "constant":
        assert weights.prior_bias is not None
        pre_change = weights.prior_bias.expand(batch, n_snippets - 1, -1)
    else:
        pre_change = head(weights.prior_state, prior if rules.change_prior == "full" else weights.prior_bias, d_next)

    # the KLs, given their gradients: of q, of the Gaussian after a change, of the priors
    g_static, g_change, g_charged = (column[:, 1:] for column in (g.kl_static, g.kl_change, g.kl_charged))
    at_change = torch.where(changed[..., 0], g_charged, 0.0)
    p_change = split(pre_change)
    q_from_static, to_static = kl_backward(
        q, belief if pre_static is None else split(pre_static), g_static + g_charged - at_change
    )
    q_from_change, to_change = kl_backward(q, p_change, g_change)
    new_from_charge, to_charge = kl_backward(new, p_change, at_change)
    gq = _add(q_from_static, q_from_change)
    to_pre_change = split_backward(pre_change, _add(to_change, to_charge))
    through_belief, through_e = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, gq)
    through_state, into_state = torch.zeros_like(d), g.state
    if pre_static is None:
        through_belief = _add(through_belief, to_static)
    else:
        assert weights.prior_state is not None
        to_pre_static = split_backward(pre_static, to_static)
        into_state = into_state + pad(to_pre_static @ weights.prior_state, (0, 0, 0, 1))
    if rules.change_prior != "constant":
        assert weights.prior_state is not None
        through_state = to_pre_change @ weights.prior_state
    if posterior is not None:
        assert weights.posterior_state is not None
        known = through_e if rules.reset else _add(through_e, new_from_charge)
        from_known = split_backward(pre_e, known) @ weights.posterior_state
        through_state = through_state + from_known

    # the rest in order: belief' = what is known + share belief, ...; see csrc/cuda/change_point_scan.cu
    noise_std = output.belief_log_std.exp() * noise
    unit = Gaussian(torch.ones_like(r.mean), torch.zeros_like(r.mean))
    share, pull = _through_filter(belief, e, rules, changed)
    rest = torch.where(changed, 0.0 if rules.reset else 1.0, 1.0 - share)
    share = torch.where(changed, 0.0, share)
    inside = split_backward(pre_e, Gaussian(unit.log_std, unit.mean))[..., z:]
    steps = torch.stack([share, pull, *through_belief, rest, inside], dim=2)
    columns = [g.belief_mean + g.latent, g.belief_log_std + g.latent * noise_std, noise_std]
    belief_terms = torch.cat([torch.stack(columns, dim=2), pad(steps, (0, 0, 0, 0, 1, 0))], dim=2).contiguous()
    restarts = changed[..., 0] & rules.reset if has_state else torch.ones_like(following)
    gb = start.new_zeros(batch, n_snippets, z2)
    gd = torch.zeros_like(output.state)
    tensors = {
        "gru_input": weights.gru_input,
        "gru_state": weights.gru_state,
        "posterior_state": weights.posterior_state,
        "lengths": lengths,
        "order": _longest_first(lengths),
        "restarts": pad(restarts, (1, 0)).contiguous(),
        "into_state": into_state.contiguous(),
        "belief_terms": belief_terms,
        "belief_gradient": gb,
        "state_gradient": gd,
    }
    for name, term in (
        ("to_candidate", to_candidate),
        ("to_reset", to_reset),
        ("to_update", to_update),
        ("reset", reset),
        ("update", update),
        ("through_state", through_state),
    ):
        tensors[name] = pad(term, (0, 0, 0, 1)).contiguous()
    sizes = {"batch": batch, "snippets": n_snippets, "latent_size": z, "state_size": h, "few": batch <= FEW_VIDEOS}
    transition = rules.evidence == "transition"
    library.reverse(_Reverse(**_pointers(tensors), **sizes, transition=transition), start.device)

    # streams and weights, from the gradients of all beliefs and states
    g_belief = Gaussian(*(part[:, 1:] for part in gb.chunk(2, dim=-1)))
    gq = _add(gq, Gaussian(*(torch.where(changed, 0.0, part) for part in g_belief)))
    g_new = _add(new_from_charge, Gaussian(*(torch.where(changed, part, 0.0) for part in g_belief)))
    _, ge = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, gq)
    if not rules.reset:
        ge, g_new = _add(ge, g_new), Gaussian(torch.zeros_like(g_new.mean), torch.zeros_like(g_new.mean))
    to_pre_e = split_backward(pre_e, ge)
    g_start = split_backward(pre_r, g_new)
    if posterior is None:
        g_start = g_start + to_pre_e
    standard = Gaussian(torch.zeros_like(gb[:, 0, :z]), torch.zeros_like(gb[:, 0, :z]))
    from_charge, _ = kl_backward(split(start[:, 0]), standard, g.kl_charged[:, 0])
    first = split_backward(start[:, 0], _add(Gaussian(*gb[:, 0].chunk(2, dim=-1)), from_charge))
    zeros: list[Any] = [None if tensor is None else torch.zeros_like(tensor) for tensor in (*streams, *weights)]
    g_streams, g_weights = ScanStreams(*zeros[:3]), ScanWeights(*zeros[3:])
    g_streams.start.copy_(torch.cat([first[:, None], g_start], dim=1))
    g_d = torch.where(restarts[..., None], 0.0, gd[:, 1:])
    g_weights.initial_state.copy_(gd[:, 0].sum(0) + (gd[:, 1:] - g_d).sum((0, 1)))
    if g_streams.posterior is not None:
        assert weights.posterior_state is not None
        g_streams.posterior[:, 1:] = to_pre_e
        g_weights.posterior_state.copy_(_outer(to_pre_e, d_next))  # type: ignore[union-attr]
        g_d = g_d + to_pre_e @ weights.posterior_state - from_known
    if rules.change_prior != "full":
        g_weights.prior_bias.copy_(to_pre_change.sum((0, 1)))  # type: ignore[union-attr]
    if rules.change_prior != "constant":
        g_weights.prior_state.add_(_outer(to_pre_change, d_next))  # type: ignore[union-attr]
    if rules.change_prior == "full":
        g_streams.prior[:, :-1].add_(to_pre_change)  # type: ignore[index]
    if pre_static is not None:
        g_weights.prior_state.add_(_outer(to_pre_static, d))  # type: ignore[union-attr]
        g_streams.prior[:, :-1].add_(to_pre_static)  # type: ignore[index]
    if has_state:
        to_next = g_d + through_state
        to_new = to_next * to_candidate
        to_gates = [to_new * to_reset, to_next * to_update]
        to_input = torch.cat([*to_gates, to_new], dim=-1)
        to_hidden = torch.cat([*to_gates, to_new * reset], dim=-1)
        g_weights.gru_input.copy_(_outer(to_input, v))
        g_weights.gru_state.copy_(_outer(to_hidden, d))
        g_weights.gru_input_bias.copy_(to_input.sum((0, 1)))
        g_weights.gru_state_bias.copy_(to_hidden.sum((0, 1)))
    return g_streams, g_weights


def _through_filter(belief: Gaussian, e: Gaussian, rules: ScanRules, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6 as a linear map of gradients: the belief's share, and what its mean pulls out of its log deviation."""
    zeros = torch.zeros_like(e.mean)
    unit = Gaussian(torch.ones_like(zeros), zeros)
    to_belief, _ = fuse_backward(belief, e, rules.belief_weight, rules.evidence_weight, unit)
    return to_belief.mean, torch.where(changed, 0.0, -to_belief.log_std)


def _uses_state(rules: ScanRules) -> bool:
    return rules.static_belief == "prior" or rules.change_prior != "constant" or rules.evidence == "transition"


def _add(one: Gaussian, other: Gaussian) -> Gaussian:
    return Gaussian(one.mean + other.mean, one.log_std + other.log_std)


def _outer(gradient: Tensor, value: Tensor) -> Tensor:
    """Gradient of a weight, summed over videos and steps."""
    return gradient.flatten(0, 1).T @ value.flatten(0, 1)


def _longest_first(lengths: Tensor) -> Tensor:
    return torch.argsort(lengths, descending=True, stable=True)


def _library(library: Library | None) -> Library:
    library = library or installed()
    if library is None:
        raise RuntimeError("this installation has no CUDA kernels; build with AHLM_CUDA=ON where nvcc is")
    return library


def _pointers(tensors: dict[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}


def _check(library: Library, tensors: dict[str, Tensor | None], dtype: torch.dtype) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != library.device:
            raise ValueError(f"{name} must be on {library.device}, got {tensor.device}")
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
