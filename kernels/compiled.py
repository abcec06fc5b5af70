"""Which implementation of the scans a call takes: compiled for the CPU, for the GPU, or the reference."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import cuda
from .core import core as whole_core
from .padding import OptionalTensor
from .self_check import is_trusted

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
PRECISIONS = ("fp32", "fp16")

# compilers without vector types (MSVC) build the rest of the core
core: Any = whole_core if hasattr(whole_core, "change_point_scan") else None


def torch_threads() -> int:
    """Address of the fork and join of the OpenMP library that torch runs on; 0: it has another, or none."""
    library = next(iter((Path(torch.__file__).parent / "lib").glob("libgomp*")), "libgomp.so.1")
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD)
        return ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


if core is not None:
    core.set_thread_pool(torch_threads())


def choose_backend(backend: str, precision: str, tensor: Tensor) -> str:
    """What a scan whose streams are like `tensor` should run: `reference`, or what the custom op is asked for.

    `auto` is what AHLM_BACKEND says, else the first of `candidates` that is trusted. Another name insists, and on a
    GPU is not checked against the reference first.

    Raises:
        ValueError: an unknown backend or precision, or a backend that is missing or cannot take the tensor.
    """
    source, wanted = "backend", backend
    if backend == "auto" and os.environ.get("AHLM_BACKEND"):
        source, wanted = "AHLM_BACKEND", os.environ["AHLM_BACKEND"]
    if wanted not in BACKENDS:
        raise ValueError(f"{source} must be auto or one of {', '.join(BACKENDS[1:])}, got {wanted}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    if wanted in ("auto", "reference"):
        return wanted
    obstacle = why_not(wanted, tensor)
    if obstacle:
        raise ValueError(f"{source}={wanted} {obstacle}")
    return backend


def why_not(kernel: str, tensor: Tensor) -> str | None:
    """What keeps a kernel from running streams like `tensor`; none: nothing."""
    device = tensor.device.type
    if kernel == "cpu" and core is None:
        return "needs the compiled scans, and this installation has none; use reference"
    if kernel == "triton" and importlib.util.find_spec("triton") is None:
        return "needs Triton, and this installation has none: pip install triton, or use reference"
    if kernel == "cuda" and (obstacle := cuda.obstacle(tensor.device)):
        return f"{obstacle}; use triton or reference"
    fits = device == ("cpu" if kernel == "cpu" else "cuda")
    if kernel == "triton" and device == "cpu":
        fits = os.environ.get("TRITON_INTERPRET") == "1"
    if not fits or tensor.dtype != torch.float32:
        place = "the CPU" if kernel == "cpu" else "a GPU"
        return f"takes float32 tensors on {place}, got {tensor.dtype} on {tensor.device}"
    return None


def candidates(tensor: Tensor) -> tuple[str, ...]:
    """Kernels that `auto` tries before the reference; the CUDA kernels only where AHLM_BACKEND asks for them."""
    wanted = os.environ.get("AHLM_BACKEND") or "auto"
    by_default = ("triton",) if tensor.device.type == "cuda" else ("cpu",)
    chains = {"reference": (), "cpu": ("cpu",), "triton": ("triton",), "cuda": ("cuda", "triton")}
    return tuple(kernel for kernel in chains.get(wanted, by_default) if why_not(kernel, tensor) is None)


def resolve(request: str, tensor: Tensor, state: int, subject: str, mismatch: Callable[[str], str | None]) -> str:
    """The implementation that the op runs.

    Args:
        request: what `choose_backend` returned.
        tensor: a stream (B, T, 2Z).
        state: H.
        subject: what is compiled for this call: the scan, its reading, sizes and precision.
        mismatch: tries a kernel on this device and says how it differs from the reference; none: it does not.
    """
    if request != "auto":
        return request
    batch, n_snippets, z2 = tensor.shape
    for kernel in candidates(tensor):
        if kernel == "cuda" and not cuda.supports(batch, n_snippets, z2 // 2, state):
            continue
        if kernel == "cpu" or is_trusted(kernel, subject, tensor.device, partial(mismatch, kernel)):
            return kernel
    return "reference"


def gpu_module(kernel: str, scan: str) -> Any:
    """The module of a GPU kernel: `forward`, with the arguments of the reference and the precision, and `solver`."""
    return importlib.import_module(f".{scan}.fused_{kernel}", __package__)


def default_backend(device: str) -> str:
    """The implementation that `backend="auto"` tries first for float32 tensors on a device."""
    choose_backend("auto", "fp32", torch.empty(0, device=device))
    return (*candidates(torch.empty(0, device=device)), "reference")[0]


def instruction_sets() -> tuple[str, ...]:
    """Builds of the compiled scans that this machine can run, the one in use by default last; none: not compiled."""
    return () if core is None else tuple(core.scan_instruction_sets())


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the compiled scans of this process as built for `name`, for tests and benchmarks.

    Raises:
        ValueError: this machine cannot run it.
    """
    before = core.scan_instruction_set()
    core.set_scan_instruction_set(name)
    try:
        yield
    finally:
        core.set_scan_instruction_set(before)


def _nothing() -> None:
    pass


class _Tf32:
    """TF32 in torch's own float32 products, off for as long as a scan of any thread runs on a GPU.

    torch has two sets of switches, and a mix of them is an error: each is turned back by its own name.
    """

    def __init__(self) -> None:
        self.scans, self.lock = 0, threading.Lock()
        self.turn_back: Callable[[], None] = _nothing

    @contextlib.contextmanager
    def off(self, device: torch.device) -> Iterator[None]:
        """Products in full where a scan's backward needs them, which TF32 would cost three digits."""
        if device.type != "cuda":
            yield
            return
        with self.lock:
            if not self.scans:
                self.turn_back = self._turn_off()
            self.scans += 1
        try:
            yield
        finally:
            with self.lock:
                self.scans -= 1
                if not self.scans:
                    self.turn_back()

    def _turn_off(self) -> Callable[[], None]:
        """Returns what turns it back."""
        switches: Any = torch.backends.cuda.matmul
        try:
            older = torch.get_float32_matmul_precision()
        except RuntimeError:  # the newer names were used
            newer = switches.fp32_precision
            switches.fp32_precision = "ieee"
            return partial(setattr, switches, "fp32_precision", newer)
        if older == "highest":
            return _nothing
        switches.allow_tf32 = False
        if older == "medium":
            return partial(torch.set_float32_matmul_precision, older)
        return partial(setattr, switches, "allow_tf32", True)


tf32 = _Tf32()


def register_op(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """A custom op `ahlm::name` on every device, which changes none of its arguments.

    Args:
        name: the op's.
        run: the op itself; its annotations are the schema, its first argument a tensor or a list of them.
        fake: empty outputs of the right shapes from the same arguments.
    """

    def guarded(*arguments: Any) -> Any:
        first: Tensor = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        # Triton launches on the current device; autograd may come from within autocast
        device = torch.cuda.device_of(first)  # type: ignore[no-untyped-call]
        with device, torch.autocast(first.device.type, enabled=False), tf32.off(first.device):
            return run(*arguments)

    schema = torch.library.infer_schema(run, mutates_args=())
    # torch.library.custom_op does the same, and imports torch._dynamo, a second, at the first call. A CUDA graph could
    # not hold these: the lengths are read on the way.
    torch.library.define(f"ahlm::{name}", schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe))
    torch.library.impl(f"ahlm::{name}", "CompositeExplicitAutograd", guarded)
    torch.library.register_fake(f"ahlm::{name}", fake)
    return getattr(torch.ops.ahlm, name).default


def array(tensor: Tensor | None) -> Any:
    """What the compiled core reads and writes: a NumPy view of a contiguous tensor."""
    return None if tensor is None else tensor.detach().numpy()


def promoted(tensor: OptionalTensor) -> OptionalTensor:
    """16-bit floats as float32: the test of eq. 7 flips in half precision, and one flip moves every later state."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_tensors(
    expected: Mapping[str, tuple[Tensor | None, tuple[int, ...] | None]], like: Tensor, where: str = ""
) -> None:
    """Every tensor has the shape that is asked for (none: it is absent), is on `like`'s device, and has its dtype.

    Raises:
        ValueError: one has not; names it, expected and got, and says `where`.
    """
    for name, (tensor, shape) in expected.items():
        got = None if tensor is None else tuple(tensor.shape)
        if got != shape:
            raise ValueError(f"{name} must be {shape}{where}, got {got}")
        if tensor is None:
            continue
        if tensor.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")
        dtype = cuda.DTYPES.get(name, like.dtype)
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_lengths(lengths: Tensor, n_snippets: int) -> None:
    """Every length is in [1, T]; called where values may be read, which is not while tracing.

    Raises:
        ValueError: one is not.
    """
    low, high = torch.stack(lengths.aminmax()).tolist()
    if low < 1 or high > n_snippets:
        raise ValueError(f"lengths must be in [1, {n_snippets}], got {low} to {high}")
