"""Bring data of other projects into a layout read here: `python -m ahlm.convert wtalc|demo|hapt ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ahlm.config import DataConfig
from ahlm.data.hapt import convert_hapt
from ahlm.data.synthetic import write_demo
from ahlm.data.write import ANNOTATIONS, LAYOUTS
from ahlm.data.wtalc import convert_wtalc
from ahlm.errors import exit_code
from ahlm.timeline import FeatureSpec


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ahlm.convert", description="Bring data of other projects into a layout that ahlm reads."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="wtalc|demo|hapt")
    wtalc = verbs.add_parser(
        "wtalc",
        help="packs of W-TALC, CO2-Net, DELU, P-MIL, ...: *-JOINTFeatures.npy and *-Annotations/",
        description="Write a pack as one feature file a video. An interrupted run goes on where it stopped.",
    )
    wtalc.add_argument("source", metavar="SRC", help="the pack, or the folder of one pack")
    wtalc.add_argument("out", metavar="OUT", help="folder to write")
    wtalc.add_argument("--annotations", metavar="DIR", help="default: NAME-Annotations beside the pack")
    default = DataConfig()
    for name, what in (("fps", "frames a second"), ("stride", "frames from snippet to snippet"), ("window", "frames")):
        text = f"{what}, which the pack does not say (default: {getattr(default, name):g})"
        wtalc.add_argument(f"--{name}", type=float, default=getattr(default, name), help=text)
    demo = verbs.add_parser("demo", help="the generated demo, as an example of a layout")
    demo.add_argument("out", metavar="OUT", help="folder to write")
    demo.add_argument("--layout", default="acmnet", choices=LAYOUTS, help="default: acmnet")
    hapt = verbs.add_parser(
        "hapt", help="UCI's recordings of activities and postural transitions (HAPT), from their zip"
    )
    hapt.add_argument("source", metavar="ZIP", help="the zip file of UCI")
    hapt.add_argument("out", metavar="OUT", help="folder to write")
    hapt.add_argument(
        "--test-users", type=int, nargs=2, default=(21, 25), metavar=("FIRST", "LAST"), help="of 21 to 30"
    )
    hapt.add_argument("--seed", type=int, default=5, help="of the videos' lengths (default: 5)")
    for verb in (wtalc, demo, hapt):
        verb.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.convert`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    if (out / "labels.csv").exists():
        parser.error(f"{out} holds a labels.csv, a data set of its own; choose another folder")
    if not arguments.overwrite:
        done = [out / name for name in ANNOTATIONS if (out / name).exists()]
        if done:
            parser.error(f"{done[0]} exists; --overwrite replaces the data set")

    def body() -> int:
        lines = _convert(parser, arguments)
        print("\n".join([*lines, f"look it over with: python -m ahlm.check {out}"]))
        return 0

    goes_on = arguments.verb == "wtalc" and not arguments.overwrite
    return exit_code(body, "interrupted" + ("; the same command goes on" if goes_on else ""))


def _convert(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    if arguments.verb == "demo":
        write_demo(arguments.out, arguments.layout)
        return [f"the demo in layout {arguments.layout} -> {arguments.out}"]
    if arguments.verb == "hapt":
        first, last = arguments.test_users
        if not 20 < first <= last:
            parser.error(
                f"--test-users: expected FIRST <= LAST, both beyond the training users 1-20, got {first} {last}"
            )
        if arguments.seed < 0:
            parser.error(f"--seed: expected at least 0, got {arguments.seed}")
        return convert_hapt(
            arguments.source, arguments.out, test_users=(first, last), seed=arguments.seed, progress=True
        )
    try:
        spec = FeatureSpec(arguments.fps, arguments.stride, arguments.window)
    except ValueError as error:
        parser.error(str(error))
    return convert_wtalc(
        arguments.source,
        arguments.out,
        spec=spec,
        annotations=arguments.annotations,
        progress=True,
    )


if __name__ == "__main__":
    sys.exit(main())
