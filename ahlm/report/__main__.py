"""`python -m ahlm.report RUN`: the page of a run again; `--picture VIDEO OUT.svg`: one of its videos."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ahlm.config import DataConfig
from ahlm.data.dataset import FeatureDataset
from ahlm.data.synthetic import open_split
from ahlm.errors import DataError, NoSplit, exit_code
from ahlm.files import read_json, write_text
from ahlm.infer import Predictor, load, moved, open_testing, score, timed
from ahlm.report.html import draw, write_report
from ahlm.run_folder import RunFolder, read_metrics


def run(arguments: argparse.Namespace) -> int:
    """Body of the command; see `--help`."""
    folder = RunFolder(arguments.run)
    if not folder.path.is_dir():
        raise DataError(arguments.run, "run", "the folder of a run", "no such folder")
    predictor = load(arguments.run)
    for note in folder.doubts(predictor.checkpoint):
        print(f"note: {note}")
    data = timed(predictor.config.data, predictor.spec)
    data = moved(data, arguments.root) if arguments.root else data
    predictor.config = dataclasses.replace(predictor.config, data=data)
    if arguments.picture:
        return picture(predictor, data, *arguments.picture)
    testing = open_testing(data, predictor.classes, predictor.checkpoint.feature_dim)
    dataset = open_training(data, predictor.classes) if testing is None else testing
    predictor.follow(dataset, data.root)
    analyses = predictor.analyse_dataset(dataset)
    result = None if testing is None else score(predictor, dataset, analyses)[1]
    metrics = read_metrics(folder.metrics)
    best = read_json(folder.evaluation).get("best") if folder.evaluation.exists() else None
    write_report(folder.report, predictor, dataset, analyses, result, metrics, best)
    print(folder.report)
    return 0


def open_training(data: DataConfig, classes: tuple[str, ...]) -> FeatureDataset:
    """The videos that the run was trained on."""
    dataset = open_split(data, "train", classes)
    return dataset.split_validation(data.validation)[0] if data.validation else dataset


def picture(predictor: Predictor, data: DataConfig, name: str, out: str) -> int:
    """Draw one video of either split into a file."""
    known: list[str] = []
    for split in ("test", "train"):
        with suppress(NoSplit):
            dataset = open_split(data, split, predictor.classes)
            ids = [video.id for video in dataset.videos]
            known += ids
            if name not in ids:
                continue
            predictor.follow(dataset, data.root)
            i = ids.index(name)
            features, duration_s = dataset.features(i), dataset.videos[i].duration_s
            (analysis,) = predictor.analyse([features])
            found = predictor.localize_analysis(features, analysis, duration_s, predictor.config)
            write_text(out, draw(predictor, dataset, i, analysis, found))
            print(f"{name} -> {out}")
            return 0
    raise DataError(data.root or "demo", "video", f"one of {known[0]} .. {known[-1]}", name)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.report`."""
    parser = argparse.ArgumentParser(prog="python -m ahlm.report", description="Write report.html of a run.")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--picture", nargs=2, metavar=("VIDEO", "OUT.svg"), help="one video instead")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="where the data set is now (default: as trained)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.svg")
    arguments = parser.parse_args(argv)
    if arguments.picture and Path(arguments.picture[1]).exists() and not arguments.overwrite:
        parser.error(f"{arguments.picture[1]} exists; --overwrite replaces it")
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
