"""Weakly-supervised temporal action localization with change-points (AHLM, ICCV 2023)."""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# `python -m ahlm.train` in a checkout puts the source tree before site-packages, where the compiled parts live
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from ahlm.infer import load


def __getattr__(name: str) -> Any:
    """Import `load` on first use, so that `import ahlm` costs no torch."""
    if name == "load":
        from ahlm.infer import load

        return load
    raise AttributeError(f"module 'ahlm' has no attribute {name!r}")
