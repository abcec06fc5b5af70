"""Score detections: `python -m ahlm.evaluate GT.json PRED.json --protocol thumos14`; starts without torch."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahlm.errors import DataError, exit_code
from ahlm.evaluation.protocols import PROTOCOLS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ahlm.evaluate", description="Score detections: mAP at tIoU.")
    parser.add_argument("ground_truth", metavar="GT.json", help="ActivityNet JSON, or labels.csv with segments")
    parser.add_argument("predictions", metavar="PRED.json", help="ActivityNet results JSON, of any project")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="thumos14", help="default: thumos14")
    parser.add_argument("--subset", help="of the ground truth (default: the protocol's)")
    parser.add_argument("--tiou", type=float, nargs="+", help="thresholds instead of the protocol's")
    parser.add_argument("--ambiguous", metavar="FILE", help="drop predictions that touch these segments")
    parser.add_argument("--official-ties", action="store_true", help="order equal scores as ActivityNet's code does")
    parser.add_argument("--json", metavar="OUT", help="write the result here")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parser


def _ground_truth(path: str) -> str | dict[str, Any]:
    """The path of a JSON, or what such a file would hold for a CSV."""
    if not path.lower().endswith(".csv"):
        return path
    from ahlm.data.annotations import as_json, read_annotations

    database = {
        video: {"subset": known.subset, "annotations": as_json(known.segments)}
        for video, known in read_annotations(path).items()
    }
    if not any(entry["annotations"] for entry in database.values()):
        raise DataError(path, "columns start, end", "segments to score", "tags alone")
    return {"database": database}


def run(arguments: argparse.Namespace) -> int:
    """Body of the command; see `--help`."""
    # NumPy and the compiled core load only after the command line was found good
    from ahlm.evaluation import evaluate
    from ahlm.files import write_json
    from ahlm.kernels.core import core

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        result = evaluate(
            _ground_truth(arguments.ground_truth),
            arguments.predictions,
            arguments.protocol,
            subset=arguments.subset,
            tious=arguments.tiou,
            ambiguous=arguments.ambiguous,
            ties="official" if arguments.official_ties else "stable",
        )
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    if core is None:
        print("note: the compiled evaluator is absent, NumPy serves in its place", file=sys.stderr)
    print(result)
    if arguments.json:
        write_json(arguments.json, result.to_dict())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.evaluate`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.tiou and not all(0 < tiou <= 1 for tiou in arguments.tiou):
        parser.error(f"--tiou: thresholds must be in (0, 1], got {arguments.tiou}")
    if arguments.json and Path(arguments.json).exists() and not arguments.overwrite:
        parser.error(f"{arguments.json} exists; --overwrite replaces it")
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
