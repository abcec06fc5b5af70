"""From change-points and class activation sequences to detections (section 3.3, end). Imports no torch."""

from __future__ import annotations

from ahlm.localization.localize import Localization, localize
from ahlm.localization.pieces import cut_in_pieces, localize_pieces, mean_of_pieces
from ahlm.localization.refinement import refine_change_points

__all__ = [
    "Localization",
    "cut_in_pieces",
    "localize",
    "localize_pieces",
    "mean_of_pieces",
    "refine_change_points",
]
