"""`python -m ahlm.report RUN`: the page of a run again; `--picture VIDEO OUT.svg`: one of its test videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ahlm.data.synthetic import open_split
from ahlm.errors import DataError, exit_code
from ahlm.files import read_json, write_text
from ahlm.infer import load, moved, open_testing, score, timed
from ahlm.report.html import draw, write_report
from ahlm.run_folder import RunFolder, read_metrics


def run(arguments: argparse.Namespace) -> int:
    """Body of the command; see `--help`."""
    folder, predictor = RunFolder(arguments.run), load(arguments.run)
    for note in folder.doubts(predictor.checkpoint):
        print(f"note: {note}")
    data = timed(predictor.config.data, predictor.spec)
    data = moved(data, arguments.root) if arguments.root else data
    testing = open_testing(data, predictor.classes, predictor.checkpoint.feature_dim)
    dataset = open_split(data, "train", predictor.classes) if testing is None else testing
    predictor.follow(dataset, data.root)
    if arguments.picture:
        name, out = arguments.picture
        ids = [video.id for video in dataset.videos]
        if name not in ids:
            raise DataError(arguments.run, "video", f"one of {ids[0]} .. {ids[-1]}", name)
        i = ids.index(name)
        (analysis,) = predictor.analyse([dataset.features(i)])
        found = predictor.localize_analysis(
            dataset.features(i), analysis, dataset.videos[i].duration_s, predictor.config
        )
        write_text(out, draw(predictor, dataset, i, analysis, found))
        print(f"{name} -> {out}")
        return 0
    analyses = predictor.analyse_dataset(dataset)
    scored = None if testing is None else score(predictor, dataset, analyses)
    metrics = read_metrics(folder.metrics)
    best = read_json(folder.evaluation).get("best") if folder.evaluation.exists() else None
    write_report(folder.report, predictor, dataset, analyses, scored, metrics, best)
    print(folder.report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.report`."""
    parser = argparse.ArgumentParser(prog="python -m ahlm.report", description="Write report.html of a run.")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--picture", nargs=2, metavar=("VIDEO", "OUT.svg"), help="one test video instead")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="where the data set is now (default: as trained)"
    )
    arguments = parser.parse_args(argv)
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
