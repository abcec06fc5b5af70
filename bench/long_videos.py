"""What becomes of long videos: `python bench/long_videos.py RUN`, the test videos of a run joined end to end.

Prints mAP averaged over the protocol's thresholds for videos of 1, 4, 16 and 64 joined, read as a whole and in pieces
as long as the longest video of the training (`classifier.window`). Features are read from where the run's config says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import ahlm
from ahlm.data.dataset import FeatureDataset, Video
from ahlm.data.synthetic import open_split
from ahlm.infer import Predictor, score


def joined(dataset: FeatureDataset, count: int) -> FeatureDataset:
    """`count` videos at a time as one, in their order, their segments moved along."""
    videos = []
    for first in range(0, len(dataset), count):
        parts, segments, begin_s = [], [], 0.0
        for i in range(first, min(first + count, len(dataset))):
            features, known = dataset.features(i), dataset.videos[i].segments
            parts.append(features)
            segments += [s._replace(start_s=s.start_s + begin_s, end_s=s.end_s + begin_s) for s in known]
            begin_s += len(features) * dataset.spec.snippet_s
        labels = tuple(sorted({segment.label for segment in segments}))
        videos.append(Video(f"{first}", np.concatenate(parts), labels, tuple(segments)))
    return FeatureDataset(videos, dataset.classes, dataset.spec)


def mean_ap(predictor: Predictor, dataset: FeatureDataset) -> float:
    """Average mAP of a data set under the run's protocol."""
    return score(predictor, dataset, predictor.analyse_dataset(dataset))[1].headline


def main() -> None:
    """A line for each number of joined videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    whole = ahlm.load(run)
    window = whole.checkpoint.longest
    assert window is not None, "weights of an older version"
    in_pieces = ahlm.load(run, window=window)
    dataset = open_split(whole.config.data, "test", whole.classes)
    for count in (1, 4, 16, 64):
        long = joined(dataset, count)
        values = (100 * mean_ap(predictor, long) for predictor in (whole, in_pieces))
        lengths = f"{count} joined, up to {long.longest} snippets: mAP"
        print(lengths, "{:.2f} whole, {:.2f} in pieces of {}".format(*values, window))


if __name__ == "__main__":
    main()
