"""The compiled scans, where the installation has them, and which backend a call takes."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "cpu")

try:
    _core: Any = importlib.import_module("ahlm._core")
except ImportError:  # installed without a C++ compiler
    _core = None
# compilers without vector types (MSVC) build the rest of the core
core: Any = _core if hasattr(_core, "change_point_scan") else None


def choose_backend(backend: str, tensor: Tensor) -> str:
    """`reference` or `op`, for a scan whose streams are like `tensor`.

    `auto` is what AHLM_BACKEND says, else the custom op, which runs the compiled scan on float32 CPU tensors where
    there is one and the reference loops elsewhere. `cpu` insists on the compiled scan.

    Raises:
        ValueError: an unknown backend, or `cpu` where the compiled scan is missing or cannot take the tensor.
    """
    source = "backend"
    if backend == "auto" and os.environ.get("AHLM_BACKEND"):
        source, backend = "AHLM_BACKEND", os.environ["AHLM_BACKEND"]
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be auto or one of {', '.join(BACKENDS[1:])}, got {backend}")
    if backend == "cpu":
        if core is None:
            raise ValueError(f"{source}=cpu needs the compiled scans, and this installation has none; use reference")
        if not runs_compiled(tensor):
            raise ValueError(f"{source}=cpu takes float32 tensors on the CPU, got {tensor.dtype} on {tensor.device}")
    return "reference" if backend == "reference" else "op"


def runs_compiled(tensor: Tensor) -> bool:
    """Whether the op runs the compiled scan for streams like `tensor`."""
    return core is not None and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def default_backend(device: str) -> str:
    """The implementation that `backend="auto"` takes for float32 tensors on a device."""
    chosen = choose_backend("auto", torch.empty(0, device="cpu" if device == "cpu" else "meta"))
    return "cpu" if chosen == "op" and device == "cpu" and core is not None else "reference"


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


def array(tensor: Tensor | None) -> Any:
    """What the compiled core reads and writes: a NumPy view of a contiguous tensor."""
    return None if tensor is None else tensor.detach().numpy()


OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)


def promoted(tensor: OptionalTensor) -> OptionalTensor:
    """16-bit floats as float32: the test of eq. 7 flips in half precision, and one flip moves every later state."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_lengths(lengths: Tensor, n_snippets: int) -> None:
    """Every length is in [1, T]; called where values may be read, which is not while tracing.

    Raises:
        ValueError: one is not.
    """
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > n_snippets:
        raise ValueError(f"lengths must be in [1, {n_snippets}], got {low} to {high}")
