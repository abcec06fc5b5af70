"""Accuracy of a recipe on real data, as the README reports it: several seeds, last checkpoint, test split.

    python bench/accuracy.py ucf15 --data.root DIR --seeds 0 1 2

For each seed it trains once and localises with the recipe's proposals, with thresholds alone, with both, and with the
true boundaries as change-points (oracle). Writes bench/results/accuracy_NAME.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ahlm.arguments import load_recipe
from ahlm.checkpoint import Checkpoint
from ahlm.config import Config, LocalizationConfig
from ahlm.data.dataset import open_dataset
from ahlm.evaluation import evaluate
from ahlm.files import write_json
from ahlm.infer import Predictor, predict
from ahlm.train import Trainer, new_model

LITERAL = {
    "static_belief": "prior",
    "change_prior": "full",
    "evidence": "transition",
    "belief_weight": 0.0,
    "evidence_weight": 1.0,
    "decode": "segment",
}


def run(config: Config, root: str, detector_only: bool) -> dict[str, Any]:
    """Train one seed and score it; all values are fractions."""
    data = dataclasses.replace(config.data, root=root)
    training = open_dataset(data, "train")
    testing = open_dataset(data, "test", classes=training.classes)
    if detector_only:
        config = dataclasses.replace(
            config, classifier_optim=dataclasses.replace(config.classifier_optim, iterations=1)
        )
    trainer = Trainer(new_model(training, config), training, config)
    started = time.perf_counter()
    for _ in tqdm(range(trainer.total_steps), desc=f"seed {config.seed}", disable=None):
        trainer.train_step()
    seconds = time.perf_counter() - started
    checkpoint = Checkpoint(
        trainer.model.eval(), config, training.classes, training.spec, training.feature_dim, trainer.step
    )
    predictor = Predictor(checkpoint)
    analyses = predictor.analyse_dataset(testing, progress=False)
    rows: dict[str, Any] = {"seed": config.seed, "training_seconds": round(seconds, 1)}
    if detector_only:
        predictions = predict(predictor, testing, analyses)
        scores = evaluate(testing.ground_truth("test"), predictions, config.protocol).change_points or {}
        return rows | {"boundaries": {"detected": scores["detected"]}}
    ways: dict[str, tuple[LocalizationConfig, bool]] = {
        "recipe": (config.localization, False),
        "change_points": (dataclasses.replace(config.localization, proposals="change_points"), False),
        "thresholds": (dataclasses.replace(config.localization, proposals="thresholds"), False),
        "both": (dataclasses.replace(config.localization, proposals="both"), False),
        "oracle": (dataclasses.replace(config.localization, proposals="change_points"), True),
    }
    for name, (localization, oracle) in ways.items():
        settings = dataclasses.replace(config, localization=localization)
        predictions = predict(predictor, testing, analyses, settings, oracle=oracle)
        result = evaluate(testing.ground_truth("test"), predictions, config.protocol)
        rows[name] = {"average": result.average["0.1:0.7"], "mAP": result.mAP}
        if name == "change_points":
            rows["boundaries"] = result.change_points
    return rows


def main() -> None:
    """Run all seeds, print the means, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data.root", dest="root", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--change-prior", choices=("state", "constant"), help="change-points only: another change prior"
    )
    parser.add_argument("--literal", action="store_true", help="change-points only: the literal reading of eqs. 4-8")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fields: dict[str, Any] = LITERAL if options.literal else {}
    if options.change_prior:
        fields = {"change_prior": options.change_prior}
        if options.change_prior == "constant":
            fields |= {"belief_weight": 0.7, "evidence_weight": 0.3}
    runs = []
    for seed in options.seeds:
        config = load_recipe(options.recipe, seed=seed)
        config = dataclasses.replace(config, detector=dataclasses.replace(config.detector, **fields))
        runs.append(run(config, options.root, detector_only=bool(fields)))
    if not fields:
        for name in ("recipe", "change_points", "thresholds", "both", "oracle"):
            averages = [100 * row[name]["average"] for row in runs]
            high = [100 * row[name]["mAP"]["0.7"] for row in runs]
            print(f"{name:14s} average {np.mean(averages):5.1f} +- {np.std(averages):.1f}   @0.7 {np.mean(high):5.1f}")
    # without a trained classifier only the detector's own points mean something
    for stage in ("detected",) if fields else ("detected", "refined", "foreground"):
        for name in ("f1", "precision", "recall", "rate", "true_rate"):
            values = [row["boundaries"][stage]["1"][name] for row in runs]
            print(f"{stage:10s} {name:10s} {np.mean(values):.3f} +- {np.std(values):.3f}")
    print(f"training {np.mean([row['training_seconds'] for row in runs]):.0f} s on {options.threads} threads")
    suffix = "_literal" if options.literal else f"_{options.change_prior}" if options.change_prior else ""
    results = Path(__file__).parent / "results" / f"accuracy_{options.recipe}{suffix}.json"
    machine = {"machine": platform.machine(), "threads": options.threads, "torch": torch.__version__}
    write_json(results, {"recipe": options.recipe, "detector": fields, "machine": machine, "runs": runs})


if __name__ == "__main__":
    main()
