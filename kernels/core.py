"""The compiled core where the installation has one, and the choice between it and NumPy."""

from __future__ import annotations

import importlib
from typing import Any

try:
    core: Any = importlib.import_module("ahlm._core")
except ImportError:  # installed without a C++ compiler
    core = None


def choose_backend(backend: str = "auto") -> str:
    """`c++` or `numpy`.

    Raises:
        ValueError: another name, or `c++` where it was not built.
    """
    if backend not in ("auto", "c++", "numpy"):
        raise ValueError(f"backend must be auto, c++ or numpy, got {backend!r}")
    if backend == "c++" and core is None:
        raise ValueError("backend c++ is not built: install ahlm where a C++ compiler is, or use auto or numpy")
    return "numpy" if core is None or backend == "numpy" else "c++"
