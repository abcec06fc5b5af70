"""Look for problems in a folder of data: `python -m ahlm.check ROOT`; says all of them in one run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ahlm.config import DataConfig, check_fields
from ahlm.errors import exit_code

if TYPE_CHECKING:
    from ahlm.data.inspection import Inspection

SHOWN = 5  # problems of one kind in the table; --json lists all


def _parser() -> argparse.ArgumentParser:
    default = DataConfig()
    parser = argparse.ArgumentParser(
        prog="python -m ahlm.check",
        description="Say everything that is wrong with a data set. Exit code 3: something would stop or spoil a run.",
    )
    parser.add_argument("root", metavar="ROOT", help="folder of the data set, in any layout of docs/data.md")
    for name, what in (("features", "folder of the features"), ("annotations", "annotation file")):
        text = f"{what} within ROOT, if there are several"
        parser.add_argument(f"--data.{name}", dest=name, metavar="NAME", help=text)
    for name, what in (("fps", "frames a second"), ("stride", "frames from snippet to snippet"), ("window", "frames")):
        text = f"{what}, unless the data say (default: {getattr(default, name):g})"
        parser.add_argument(f"--data.{name}", dest=name, type=float, default=getattr(default, name), help=text)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.check`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = ("root", "features", "annotations", "fps", "stride", "window")
    config = DataConfig(**{name: getattr(arguments, name) for name in names})
    try:
        check_fields(config, "data.")
    except ValueError as error:
        parser.error(str(error))
    return exit_code(lambda: run(config, arguments.json))


def run(config: DataConfig, as_json: bool) -> int:
    """Body of the command; see `--help`."""
    # NumPy loads only after the command line was found good
    from ahlm.data.inspection import inspect

    found = inspect(config, progress=True)
    print(json.dumps(found.to_dict(), indent=1) if as_json else _table(found))
    return 3 if found.errors else 0


def _table(found: Inspection) -> str:
    lines = []
    if found.layout:
        lines += [
            f"{found.root}: layout {found.layout}, annotations {found.annotations}, "
            f"{found.feature_dim} features a snippet",
            f"{found.timeline} (from {found.timeline_source})",
            "",
            f"{'split':8s}{'listed':>8s}{'missing':>9s}{'snippets':>10s}{'shortest':>10s}{'median':>8s}{'longest':>9s}"
            f"{'hours':>8s}{'segments':>10s}",
        ]
        lines += [
            f"{name:8s}{s.listed:8d}{s.missing:9d}{s.snippets:10d}{s.shortest:10d}{s.median:8g}{s.longest:9d}"
            f"{s.hours:8.2f}{s.segments:10d}"
            for name, s in found.splits.items()
        ]
        width = max([5, *map(len, found.classes)]) + 2
        lines += ["", f"{'class':{width}s}{'train videos':>13s}{'segments':>10s}{'test videos':>13s}{'segments':>10s}"]
        lines += [
            f"{label:{width}s}{train:13d}{train_segments:10d}{test:13d}{test_segments:10d}"
            for label, (train, test, train_segments, test_segments) in found.classes.items()
        ]
        lines.append("")
    for level in ("error", "warning"):
        kinds: dict[str, list[str]] = {}
        for problem in found.problems:
            if problem.level == level:
                kinds.setdefault(problem.kind, []).append(problem.text)
        for kind, texts in kinds.items():
            lines.append(f"{level}: {kind} ({len(texts)})")
            lines += [f"  {text}" for text in texts[:SHOWN]]
            lines += [f"  ... and {len(texts) - SHOWN} more (--json lists all)"] * (len(texts) > SHOWN)
    errors = len(found.errors)
    lines.append(f"{errors} errors, {len(found.problems) - errors} warnings")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
