"""How many decisions of a trained detector fp16 moves: `python bench/half_precision.py RUN`, on its test split.

On a GPU by the Triton kernel; without one in Triton's interpreter (TRITON_INTERPRET=1), a quarter of a second a column.
The features are read from where the run's config says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import ahlm
from ahlm.data.sampling import collate
from ahlm.data.synthetic import open_split
from ahlm.kernels.change_point_scan import ScanRules, change_point_scan

BATCH = 32


@torch.inference_mode()
def main() -> None:
    """Print decisions, change-points and those of either that fp16 moves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--decisions", type=int, default=10**9, help="stop after so many, shortest videos first")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = ahlm.load(options.run, device=device)
    detector, dataset = predictor.model.detector, open_split(predictor.config.data, "test", predictor.classes)
    rules = ScanRules(**{name: getattr(detector.config, name) for name in ScanRules._fields})
    order = sorted(range(len(dataset)), key=dataset.n_snippets)
    decisions = change_points = moved = 0
    for first in range(0, len(order), BATCH):
        batch = collate([dataset.features(i) for i in order[first : first + BATCH]])
        features, lengths = (tensor.to(device) for tensor in batch)
        target = detector.standardise(predictor.model.detector_input(features, lengths))
        scan = (*detector.streams(detector.levels(target, lengths)), rules)
        exact = change_point_scan(*scan, noise=None, lengths=lengths).change_points
        half = change_point_scan(*scan, noise=None, lengths=lengths, backend="triton", precision="fp16").change_points
        decisions += int((lengths - 1).sum())
        change_points += int(exact.sum())
        moved += int((exact != half).sum())
        if decisions >= options.decisions:
            break
    print(f"{options.run}: {moved} of {decisions} decisions differ in fp16, {change_points} are change-points")


if __name__ == "__main__":
    main()
