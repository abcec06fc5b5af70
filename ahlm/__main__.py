"""The console script `ahlm VERB`: the same code as `python -m ahlm.VERB`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import ahlm

VERBS = {
    "train": "train from video-level labels, localise, evaluate",
    "infer": "localise actions with a trained model",
    "evaluate": "score detections (mAP at tIoU)",
    "ablate": "compare the parts of the method, controls and baselines",
    "report": "write report.html of a run again, or draw one of its videos",
    "check": "look for problems in a folder of data",
    "convert": "bring data of other projects into a layout read here",
}


def _module(verb: str) -> Any:
    return importlib.import_module(f"ahlm.{verb}.__main__" if verb == "report" else f"ahlm.{verb}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in VERBS:
        return int(_module(argv[0]).main(argv[1:]))
    if argv == ["--version"]:
        print(f"ahlm {ahlm.__version__}")
        return 0
    lines = [f"  {verb:10s}{text}" for verb, text in VERBS.items()]
    print("\n".join(["usage: ahlm VERB [options]; ahlm VERB --help says more", "", *lines]))
    return 0 if argv in (["--help"], ["-h"]) else 2


if __name__ == "__main__":
    sys.exit(main())
