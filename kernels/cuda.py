"""The scans on Hopper GPUs (sm_90): the library of kernels from `csrc/cuda/`, and the reverse scan that both share.

Built where CMake finds nvcc (`AHLM_CUDA`): clusters of 8 blocks, weights that stay on the chip, one launch a scan. The
kernels take H = 256 and Z up to 64, float32 and contiguous.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

import ahlm

from .gru import GruSteps
from .padding import longest_first
from .recursion import Recursion, Solve

STATE_SIZE, MOST_LATENTS = 256, 64
# float32 batches that run in clusters of two videos: 132 multiprocessors hold about 15 clusters of 8 blocks at once
FEW_VIDEOS = 30
MOST_ROWS = 2**31 - 1  # of (B, T): the kernels count them in 32 bits
NAME = "libahlm_cuda.so"
# of what the scans read, by name; the rest are floats
DTYPES = dict.fromkeys(("lengths", "order"), torch.int64)
DTYPES |= dict.fromkeys(("change_points", "forced_changes", "restarts"), torch.bool)

Precision = Literal["fp32", "fp16"]


def structure(name: str, pointers: str, integers: str, floats: str = "") -> type[ctypes.Structure]:
    """A struct of csrc/cuda/interface.hpp: pointers, then 32-bit integers, then floats."""
    kinds = ((pointers, ctypes.c_void_p), (integers, ctypes.c_int32), (floats, ctypes.c_float))
    fields = [(field, kind) for fields, kind in kinds for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Reverse = structure(
    "AhlmCudaReverse",
    "gru_input gru_state posterior_state lengths order restarts to_candidate to_reset to_update reset update "
    "into_state through_state belief_terms belief_gradient state_gradient",
    "batch snippets latent_size state_size few transition after_restart",
)
_Resources = structure("AhlmCudaResources", "", "registers local_bytes shared_bytes threads clusters")
SCAN_KERNELS = tuple(
    name + reading
    for name in ("forward fp32", "forward fp32, few videos", "forward fp16", "reverse fp32", "reverse fp32, few videos")
    for reading in ("", ", transition")
)
SNIPPET_KERNELS = ("snippets fp32", "snippets fp32, few videos", "snippets fp16")


class Library:
    """The kernels in a shared object; `device` is the kind of memory they work on (`cpu`: they are emulated)."""

    def __init__(self, path: Path, device: str = "cuda") -> None:
        self.path, self.device = path, device
        self.calls = ctypes.CDLL(str(path))
        self.calls.ahlm_cuda_error.restype = ctypes.c_char_p

    def obstacle(self, device: torch.device) -> str | None:
        """What keeps the kernels from running on a GPU; none: nothing."""
        fits = ctypes.c_int32()
        with self._on(device):
            error = self.calls.ahlm_cuda_device_fits(ctypes.byref(fits))
        if error:
            return f"cannot ask {device} what it is: {self._message(error)}"
        return None if fits.value else "needs a GPU of compute capability 9.0"

    def resources(self, device: torch.device) -> dict[str, dict[str, Any]]:
        """What each kernel takes, and how many clusters run at once on a device; -1 is unknown.

        Where a device is there and does not answer, the row's `error` says why.
        """
        table = {}
        groups = (
            (SCAN_KERNELS, self.calls.ahlm_cuda_resources),
            (SNIPPET_KERNELS, self.calls.ahlm_cuda_snippet_resources),
        )
        with self._on(device):
            for names, call in groups:
                for i, name in enumerate(names):
                    found = _Resources()
                    error = call(i, ctypes.byref(found))
                    table[name] = {field: getattr(found, field) for field, *_ in found._fields_}
                    if error and torch.cuda.is_available():
                        table[name]["error"] = self._message(error)
        return table

    def run(self, call: str, arguments: ctypes.Structure, device: torch.device, precision: Precision = "fp32") -> None:
        """Launch one of the functions of interface.hpp on the device's current stream."""
        with self._on(device):
            stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None)
            more = () if call == "ahlm_cuda_reverse" else (int(precision.removeprefix("fp")),)
            self._check(getattr(self.calls, call)(ctypes.byref(arguments), *more, stream))

    def _on(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA scan: {self._message(error)}")

    def _message(self, error: int) -> str:
        return str(self.calls.ahlm_cuda_error(error).decode())


@functools.cache
def installed() -> Library | None:
    """The kernels of this installation, none where it was built without nvcc."""
    for folder in ahlm.__path__:
        path = Path(folder) / NAME
        if path.is_file():
            with contextlib.suppress(OSError):
                return Library(path)
    return None


def obstacle(device: torch.device) -> str | None:
    """What keeps this installation's kernels from running on a GPU; none: nothing."""
    library = installed()
    if library is None:
        return "needs the CUDA kernels, and this installation has none"
    return library.obstacle(device) if torch.cuda.is_available() else "needs a GPU, and torch sees none"


def supports(batch: int, n_snippets: int, z: int, h: int) -> bool:
    """Whether the kernels take scans of this size."""
    return h == STATE_SIZE and z <= MOST_LATENTS and batch * n_snippets <= MOST_ROWS


def reverse(library: Library, recursion: Recursion) -> tuple[Tensor, Tensor]:
    """Run a recursion; see `Recursion` and `Solve`."""
    into_state, lengths = recursion.into_state, recursion.lengths
    batch, n_snippets, h = into_state.shape
    terms = recursion.terms()
    z = terms.shape[-1]
    gb, gd = terms.new_zeros(batch, n_snippets, 2 * z), torch.zeros_like(into_state)
    steps = recursion.steps or GruSteps(*(torch.zeros_like(into_state[:, 1:]) for _ in GruSteps._fields))
    tensors: dict[str, Tensor | None] = {
        "gru_input": recursion.gru_input,
        "gru_state": recursion.gru_state,
        "posterior_state": recursion.posterior_state,
        "lengths": lengths,
        "order": longest_first(lengths),
        "restarts": pad(recursion.restarts, (1, 0)).contiguous(),
        "into_state": into_state.contiguous(),
        "through_state": pad(recursion.through_state, (0, 0, 0, 1)).contiguous(),
        "belief_terms": terms,
        "belief_gradient": gb,
        "state_gradient": gd,
    }
    tensors |= {
        name: pad(term, (0, 0, 0, 1)).contiguous() for name, term in steps._asdict().items() if name != "d_next"
    }
    arguments = _Reverse(
        **pointers(library, tensors),
        batch=batch,
        snippets=n_snippets,
        latent_size=z,
        state_size=h,
        few=batch <= FEW_VIDEOS,
        transition=recursion.posterior_state is not None,
        after_restart=recursion.after_restart,
    )
    library.run("ahlm_cuda_reverse", arguments, into_state.device)
    return gb, gd


def solver(precision: str, library: Library | None = None) -> Solve:
    """The recursion on the GPU, for both scans: float32 whatever the precision of the forward was."""
    return functools.partial(reverse, chosen(library))


def chosen(library: Library | None) -> Library:
    """The kernels to use, those of the installation by default.

    Raises:
        RuntimeError: the installation has none.
    """
    library = library or installed()
    if library is None:
        raise RuntimeError("this installation has no CUDA kernels; build with AHLM_CUDA=ON where nvcc is")
    return library


def pointers(library: Library, tensors: Mapping[str, Tensor | None]) -> dict[str, int]:
    """Addresses, for a struct, of the tensors that are there: where and what the kernels work on.

    Raises:
        ValueError: one is of another device or dtype or not contiguous; names it.
    """
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in present.items():
        if tensor.device.type != library.device:
            raise ValueError(f"{name} must be on {library.device}, got {tensor.device}")
        dtype = DTYPES.get(name, torch.float32)
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
    return {name: tensor.data_ptr() for name, tensor in present.items()}
