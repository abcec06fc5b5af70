"""Ablation: `python -m ahlm.ablate --config NAME|FILE --data.root DIR --seeds 0 1 2 --output-dir OUT [--only table3]`.

Trains what the rows of `ahlm.ablation.rows` need, each training once, and writes means, deviations and intervals. The
same command goes on where it was stopped.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ahlm.ablation.experiment import Experiment
from ahlm.ablation.rows import FULL, ORACLE, THRESHOLDS, Row, all_rows, chosen_rows
from ahlm.ablation.tables import markdown, plot, summarise
from ahlm.arguments import config_mapping, config_parser, parse
from ahlm.config import Config
from ahlm.data.dataset import FeatureDataset
from ahlm.data.synthetic import open_split
from ahlm.errors import DataError, exit_code
from ahlm.evaluation import PROTOCOLS
from ahlm.files import write_json, write_text
from ahlm.infer import open_testing, select_device
from ahlm.train import be_deterministic

VALIDATION = 0.2  # share of the training list where the recipe keeps none


def open_experiment(config: Config, split: str, folder: Path, resamples: int) -> Experiment:
    """An experiment on the validation videos cut from the training list, or on the test split.

    On the test split the models are trained on the whole training list. Either way the other change-point detectors
    are tuned on the validation videos.
    """
    everything = open_split(config.data, "train")
    training, validation = everything.split_validation(config.data.validation or VALIDATION)
    for note in training.notes:
        print(f"note: {note}")
    scored: FeatureDataset | None = validation
    if split == "test":
        training, scored = everything, open_testing(config.data, everything.classes, everything.feature_dim)
    for name, part in ((split, scored), ("validation", validation)):
        if part is None or not any(video.segments for video in part.videos):
            raise DataError(config.data.root or "demo", f"{name} videos", "segments to compare with", "none")
    assert scored is not None
    return Experiment(config, training, scored, validation, folder, select_device(config.device), resamples)


def run(config: Config, options: Any) -> int:
    """Body of the command; see `--help`."""
    be_deterministic(config)
    folder = Path(options.output_dir)
    rows = chosen_rows(all_rows(config), options.only or [])
    if importlib.util.find_spec("ruptures") is None and any(row.points.startswith("kernel_") for row in rows):
        print("note: the rows of KernelCPD are left out: they need ruptures (pip install 'ahlm[bench]')")
        rows = [row for row in rows if not row.points.startswith("kernel_")]
    experiment = open_experiment(config, options.split, folder, options.resamples)
    if config.detector.slow_size > experiment.training.feature_dim:
        print(f"note: rows of slow features are left out: there are fewer than {config.detector.slow_size} dimensions")
        rows = [row for row in rows if row.settings.get("detector.standardise") != "slow"]
    print(
        f"{len(rows)} rows, seeds {' '.join(map(str, options.seeds))}; {describe(experiment.training)} to train, "
        f"{describe(experiment.scored)} to score"
    )
    started = time.perf_counter()
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    with tqdm(total=len(rows) * len(options.seeds), desc="ablate", unit="row", disable=None) as bar:
        for seed in options.seeds:
            for row in rows:
                result = experiment.result(row, seed)
                results[row.name].append(result)
                tqdm.write(f"seed {seed}  {row.group:10s}{row.name:36s}{100 * result['average']:6.2f}")
                bar.update()
            experiment.forget_analyses()
    write_results(folder, options, config, experiment, rows, results, time.perf_counter() - started)
    return 0


def describe(dataset: FeatureDataset) -> str:
    """Size of a split in words."""
    segments = sum(len(video.segments) for video in dataset.videos)
    return f"{len(dataset)} videos ({segments} segments)"


def write_results(
    folder: Path,
    options: Any,
    config: Config,
    experiment: Experiment,
    rows: Sequence[Row],
    results: dict[str, list[dict[str, Any]]],
    seconds: float,
) -> None:
    """SPLIT.json, SPLIT.md and SPLIT.svg in the output folder; the second is printed as well."""
    summary = summarise(rows, results)
    counts = results[rows[0].name][0]["counts"]
    span = "{:g}:{:g}".format(*PROTOCOLS[config.protocol].averages[-1])
    seeds = ", ".join(map(str, options.seeds))
    name = Path(config.data.root).resolve().name if config.data.root else "demo"
    title = f"Ablation on {name}, {options.split} split"
    notes = [
        f"{counts['instances']} instances of {counts['classes']} classes in {counts['videos']} videos, protocol "
        f"{config.protocol}, mAP (%) averaged over {span}; last checkpoints trained on "
        f"{len(experiment.training)} videos, mean ± standard deviation over the seeds {seeds}. Intervals: 95 % of "
        f"{options.resamples} resamples of the videos, both rows on the same ones, means over the seeds.",
        "F1 of change-points within one snippet, their rate (true rate) and F1 after the foreground's selection.",
        (
            "The test split is read here; settings belong to the validation videos."
            if options.split == "test"
            else "The validation videos are cut from the training list. Other detectors were tuned on these same "
            "videos, which flatters them here."
        ),
    ]
    if (closed := share_of_gap(summary)) is not None:
        notes.append(f"Of the gap from thresholds to true boundaries, {FULL} closes {100 * closed:.0f} %.")
    text = markdown(summary, title, notes)
    values = config_mapping(config)
    values["data"]["root"] = config.data.root and name  # figures are to be shared, and the path means nothing elsewhere
    write_json(
        folder / f"{options.split}.json",
        {
            "config": values,
            "split": options.split,
            "seeds": options.seeds,
            "counts": counts,
            "resamples": options.resamples,
            "seconds": round(seconds, 1),
            "rows": summary,
        },
    )
    write_text(folder / f"{options.split}.md", text)
    print(text)
    picture = folder / f"{options.split}.svg"
    try:
        plot(picture, summary, title)
    except ModuleNotFoundError as error:
        print(f"note: {error}")
    print(f"{seconds:.0f} s; results in {folder}")


def share_of_gap(summary: Sequence[dict[str, Any]]) -> float | None:
    """What the full method gains over thresholds, as a share of what true boundaries would; none where rows miss."""
    means = {row["name"]: row["average"]["mean"] for row in summary}
    if not {FULL, THRESHOLDS, ORACLE} <= means.keys() or means[ORACLE] == means[THRESHOLDS]:
        return None
    return float((means[FULL] - means[THRESHOLDS]) / (means[ORACLE] - means[THRESHOLDS]))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.ablate`."""
    parser = config_parser("python -m ahlm.ablate", "Compare the parts of the method, controls and baselines.")
    text = "trainings, rows and tables; a later call finds the first two again and writes its own tables"
    parser.add_argument("--output-dir", required=True, help=text)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training of each kind a seed")
    parser.add_argument("--only", type=str, nargs="+", help="groups (recipe, table3, ...) or names of rows")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="what rows are scored on")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap over videos")
    config, options = parse(parser, sys.argv[1:] if argv is None else argv)
    protocol = PROTOCOLS[config.protocol]
    if protocol.snippet is not None or protocol.left_out:
        parser.error(f"--protocol must take all videos, in seconds, for the bootstrap; got {protocol.name}")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: expected each seed once, got {' '.join(map(str, options.seeds))}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must be at least 0, got {min(options.seeds)}")
    if options.resamples < 1:
        parser.error(f"--resamples must be at least 1, got {options.resamples}")

    def body() -> int:
        try:
            return run(config, options)
        except ValueError as error:  # rows or settings that do not go with each other or with these features
            print(f"error: {error}", file=sys.stderr)
            return 2

    return exit_code(body, "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
