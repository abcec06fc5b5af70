"""Scores of temporal detections: mAP at tIoU under named protocols, change-point scores. Imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ahlm.evaluation.protocols import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from ahlm.evaluation.anet import ANETdetection
    from ahlm.evaluation.scoring import Result, evaluate

__all__ = ["PROTOCOLS", "ANETdetection", "Protocol", "Result", "evaluate"]

_HOME = {"ANETdetection": "anet", "Result": "scoring", "evaluate": "scoring"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a command line can name the protocols without NumPy."""
    if name in _HOME:
        return getattr(importlib.import_module(f"ahlm.evaluation.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ahlm.evaluation' has no attribute {name!r}")
