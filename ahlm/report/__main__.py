"""`python -m ahlm.report RUN --picture VIDEO OUT.svg`: one test video of a run as a picture."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from ahlm.data.synthetic import open_split
from ahlm.errors import DataError
from ahlm.files import write_text
from ahlm.infer import load
from ahlm.report.timeline_svg import Bar, Timeline, timeline_svg


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.report`."""
    parser = argparse.ArgumentParser(prog="python -m ahlm.report", description="Draw what a run found.")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--picture", nargs=2, metavar=("VIDEO", "OUT.svg"), required=True, help="one test video")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="where the data set is now (default: as trained)"
    )
    arguments = parser.parse_args(argv)
    name, out = arguments.picture
    try:
        predictor = load(arguments.run)
        data = predictor.config.data
        dataset = open_split(dataclasses.replace(data, root=arguments.root or data.root), "test", predictor.classes)
        ids = [video.id for video in dataset.videos]
        if name not in ids:
            raise DataError(arguments.run, "video", f"one of {ids[0]} .. {ids[-1]}", name)
        i = ids.index(name)
        features, video = dataset.features(i), dataset.videos[i]
        (analysis,) = predictor.analyse([features])
        found = predictor.localize_analysis(features, analysis, video.duration_s, predictor.config)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    edges_s = predictor.spec.edges_s(len(features))
    best = int(np.argmax(analysis.video_scores))
    scores = [d.score for d in predictor.detections(found)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(analysis.kl_static / analysis.kl_change.clip(1e-9))
    picture = Timeline(
        f"{video.id}, {edges_s[-1]:.0f} s",
        edges_s,
        [Bar(s.label, s.start_s, s.end_s) for s in video.segments],
        [
            Bar(d.label, d.start_s, d.end_s, float(np.clip(d.score / max(scores), 0.15, 1)))
            for d in predictor.detections(found)
            if d.score > 0.25 * max(scores)
        ],
        analysis.attention,
        analysis.cas[:, best],
        predictor.classes[best],
        np.where(np.isfinite(ratio), ratio, np.nan),
        edges_s[analysis.change_points],
        edges_s[found.foreground_change_points],
    )
    write_text(out, timeline_svg(picture))
    print(f"{name} -> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
