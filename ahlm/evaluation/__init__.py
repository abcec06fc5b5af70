"""Scores of temporal detections: mAP at tIoU under named protocols, change-point scores. Imports no torch."""

from __future__ import annotations

from ahlm.evaluation.anet import ANETdetection
from ahlm.evaluation.evaluate import Result, evaluate
from ahlm.evaluation.protocols import PROTOCOLS, Protocol

__all__ = ["PROTOCOLS", "ANETdetection", "Protocol", "Result", "evaluate"]
