"""The console script `ahlm VERB`: the same code as `python -m ahlm.VERB`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import ahlm

VERBS = {
    "train": "train from video-level labels, localise, evaluate",
    "infer": "localise actions with a trained model",
    "evaluate": "score detections (mAP at tIoU)",
    "check": "look for problems in a folder of data",
    "convert": "bring data of other projects into the layout read here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in VERBS:
        return int(importlib.import_module(f"ahlm.{argv[0]}").main(argv[1:]))
    if argv == ["--version"]:
        print(f"ahlm {ahlm.__version__}")
        return 0
    lines = [f"  {verb:10s}{text}" for verb, text in VERBS.items()]
    print("\n".join(["usage: ahlm VERB [options]; ahlm VERB --help says more", "", *lines]))
    return 0 if argv in (["--help"], ["-h"]) else 2


if __name__ == "__main__":
    sys.exit(main())
