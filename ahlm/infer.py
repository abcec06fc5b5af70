"""From features to detections with a trained model: `python -m ahlm.infer`, `ahlm.load(RUN).localize(features)`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ahlm.checkpoint import Checkpoint, load_weights
from ahlm.config import DEVICE, Config, DataConfig
from ahlm.data.dataset import FeatureDataset, open_dataset
from ahlm.data.sampling import collate, sample_snippets_test
from ahlm.data.synthetic import open_split
from ahlm.errors import DataError, NoSplit, exit_code
from ahlm.evaluation import Result, evaluate
from ahlm.evaluation.predictions import write_predictions
from ahlm.kernels.compiled import default_backend
from ahlm.localization import Localization, cut_in_pieces, localize_pieces, mean_of_pieces
from ahlm.localization.directions import Direction, join_directions
from ahlm.run_folder import FILES, RunFolder
from ahlm.timeline import FeatureSpec

Found = TypeVar("Found")
MUCH_LONGER = 2  # times the longest video of the training
BATCH_SNIPPETS = 20_000  # snippets scanned together; bounds memory, and keeps short videos in large batches


class Detection(NamedTuple):
    """One action instance: class name, score, start and end in seconds."""

    label: str
    score: float
    start_s: float
    end_s: float


class VideoAnalysis(NamedTuple):
    """What the model says of one video of n snippets and C classes, before localisation.

    Attributes:
        pieces: first snippet of each piece that EFC read by itself, and the edge where it ends [P, 2]; most often one.
        video_scores: softmax video scores of the foreground branch, of each piece [P, C].
        cas: foreground class probabilities [n, C].
        attention: foreground, context, background [n, 3].
        embedding: EFC's snippet embedding [n, width]; [n, 0] unless the run's LCS step compares it.
        change_points: detected edges, sorted, in 1 .. n-1; edge e lies between snippets e - 1 and e.
        boundaries_s: seconds of the boundaries that they mark, which may lie off the edges.
        kl_static: D_static of eq. 7 in nats [n], 0 at the first snippet.
        kl_change: D_change likewise.
    """

    pieces: NDArray[np.int64]
    video_scores: NDArray[np.float32]
    cas: NDArray[np.float32]
    attention: NDArray[np.float32]
    embedding: NDArray[np.float32]
    change_points: NDArray[np.int64]
    boundaries_s: NDArray[np.float64]
    kl_static: NDArray[np.float32]
    kl_change: NDArray[np.float32]

    def with_change_points(self, change_points: NDArray[np.int64], spec: FeatureSpec) -> VideoAnalysis:
        """The same with other change-points, which mark the edges they are at."""
        return self._replace(change_points=change_points, boundaries_s=spec.edges_s(len(self.cas))[change_points])

    def boundaries_at(self, change_points: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of the boundaries that some of the change-points mark."""
        return self.boundaries_s[np.isin(self.change_points, change_points)]


class Predictor:
    """A trained model with its classes and timeline, ready for videos."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.config: Config = checkpoint.config
        self.classes, self.spec = checkpoint.classes, checkpoint.spec
        self.device = torch.device(device)
        self.model = checkpoint.model.to(self.device).eval()

    def follow(self, dataset: FeatureDataset, root: object) -> None:
        """Take the timeline of a data set in `root`, with a note where it is not that of the training.

        Raises:
            DataError: its features have other dimensions than the model's.
        """
        expected = self.checkpoint.feature_dim
        if dataset.feature_dim != expected:
            raise DataError(str(root), "feature_dim", f"{expected} as in training", dataset.feature_dim)
        if dataset.spec != self.spec:
            print(f"note: trained on {self.spec}; of these data {dataset.spec_source} says {dataset.spec}")
            self.spec = dataset.spec

    def too_long(self, dataset: FeatureDataset, remedy: str) -> str | None:
        """What to say where videos are much longer than any in training and read as a whole; none: nothing."""
        longest = self.checkpoint.longest
        if longest is None or self.config.classifier.window is not None:
            return None
        n = sum(dataset.n_snippets(i) > MUCH_LONGER * longest for i in range(len(dataset)))
        if not n:
            return None
        return (
            f"{n} videos are more than {MUCH_LONGER} times as long as any in training ({longest} snippets), up to "
            f"{dataset.longest}; read as a whole they lose short actions: {remedy} {longest} takes them in pieces"
        )

    def localize(self, features: NDArray[Any], duration_s: float | None = None, **localization: Any) -> list[Detection]:
        """Detections of one video, best first.

        Args:
            features: snippet features [n, F], cut as `self.spec` says.
            duration_s: detections end here; none: the end of the last snippet.
            localization: fields of `LocalizationConfig` that replace the run's, such as `proposals="both"`.

        Raises:
            ValueError: wrong shape, no snippet, or values that are not finite.
        """
        features, expected = np.asarray(features), self.checkpoint.feature_dim
        if features.dtype.kind not in "fiu":
            raise ValueError(f"features must be numbers, got {features.dtype}; np.load reads a file of them")
        if features.ndim != 2 or features.shape[1] != expected or not len(features):
            hint = "; transposed?" if features.ndim == 2 and len(features) == expected else ""
            raise ValueError(f"features must be [n >= 1, {expected}], got {list(features.shape)}{hint}")
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, got NaN or infinity")
        features = features.astype(np.float32, copy=False)
        analysis = self.analyse([features])[0]
        settings = dataclasses.replace(self.config.localization, **localization)
        found = self.localize_analysis(
            features, analysis, duration_s, dataclasses.replace(self.config, localization=settings)
        )
        return self.detections(found)

    def detections(self, found: Localization) -> list[Detection]:
        """Detections with class names, best first."""
        return [
            Detection(self.classes[c], float(score), float(start), float(end))
            for c, score, start, end in zip(found.class_index, found.score, found.start_s, found.end_s, strict=True)
        ]

    def localize_analysis(
        self,
        features: NDArray[np.float32],
        analysis: VideoAnalysis,
        duration_s: float | None,
        config: Config,
    ) -> Localization:
        """Change-points, CAS and attention of an analysed video to detections (section 3.3, end)."""
        return localize_pieces(
            analysis.pieces,
            analysis.cas,
            analysis.video_scores,
            analysis.attention[:, 0],
            analysis.change_points,
            self.spec.edges_s(len(features)),
            self.spec.duration_s(len(features)) if duration_s is None else duration_s,
            config=config.localization,
            refinement=config.refinement,
            similarity_features=analysis.embedding if config.refinement.similarity == "embedding" else features,
            boundaries_s=analysis.boundaries_s,
        )

    @torch.inference_mode()
    def analyse(self, videos: Sequence[NDArray[np.float32]]) -> list[VideoAnalysis]:
        """Run both modules on a batch of videos [n_i, F], padded to the longest."""
        lone_ratio = self.config.detector.lone_ratio
        return [
            VideoAnalysis(*classified, *detected)
            for classified, detected in zip(self._classify(videos), self._detect(videos, lone_ratio), strict=True)
        ]

    def _detect(self, videos: Sequence[NDArray[np.float32]], lone_ratio: float) -> list[list[NDArray[Any]]]:
        """Change-points, seconds of their boundaries, D_static and D_change of every video."""
        lead = self.model.detector.lead
        scans = [self._scan(videos)]
        if self.config.detector.both_directions:
            scans.append(self._scan([video[::-1] for video in videos]))
        found = []
        for i, n in enumerate(map(len, videos)):
            directions = []
            for changes, static, change in scans:
                edges = np.flatnonzero(changes[i, :n])
                directions.append(Direction(edges, static[i, edges] > lone_ratio * change[i, edges]))
            edges, positions = directions[0].edges, directions[0].edges + lead
            if len(directions) == 2:
                edges, positions = join_directions(directions[0], directions[1], n, lead)
            seconds = np.interp(positions, np.arange(n + 1), self.spec.edges_s(n))
            _, static, change = scans[0]
            found.append([edges, seconds, static[i, :n], change[i, :n]])
        return found

    def _scan(self, videos: Sequence[NDArray[np.float32]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Change-points, D_static and D_change of every video, padded [B, T]."""
        scan = self.model.change_points(*(tensor.to(self.device) for tensor in collate(videos)))
        changes, static, change = (
            tensor.cpu().numpy() for tensor in (scan.change_points, scan.kl_static, scan.kl_change)
        )
        return changes, static, change

    def _classify(self, videos: Sequence[NDArray[np.float32]]) -> list[list[NDArray[Any]]]:
        """Pieces, their video scores, CAS, attention and embedding of every video; where pieces overlap, their mean."""
        cuts = [cut_in_pieces(len(video), self.config.classifier.window) for video in videos]
        parts = [video[first:end] for video, cut in zip(videos, cuts, strict=True) for first, end in cut]
        read: dict[int, list[NDArray[Any]]] = {}
        for batch in length_batches([len(part) for part in parts]):
            read.update(zip(batch, self._classify_whole([parts[i] for i in batch]), strict=True))
        in_order = (read[i] for i in range(len(parts)))
        found = []
        for cut in cuts:
            scores, *sequences = zip(*itertools.islice(in_order, len(cut)), strict=True)
            found.append([cut, np.stack(scores), *(mean_of_pieces(cut, sequence) for sequence in sequences)])
        return found

    def _classify_whole(self, videos: Sequence[NDArray[np.float32]]) -> list[list[NDArray[Any]]]:
        """Video scores, CAS, attention and embedding of every video: the means over EFC's passes."""
        config, compares_embedding = self.config.classifier, self.config.refinement.similarity == "embedding"
        passes = config.passes if max(map(len, videos)) > config.n_snippets else 1
        scores: Any = 0.0
        sequences: list[Any] = [0.0] * len(videos)
        for turn in range(passes):
            indices = [sample_snippets_test(len(video), config.n_snippets, turn, passes) for video in videos]
            sampled = collate([video[index] for video, index in zip(videos, indices, strict=True)])
            output = self.model.classify(*(tensor.to(self.device) for tensor in sampled))
            cas = output.foreground_cas()
            embedding = output.embedding if compares_embedding else output.embedding[..., :0]
            values = torch.cat([cas, output.attention, embedding], dim=-1).cpu().numpy()
            scores = scores + output.video_scores().cpu().numpy() / np.float32(passes)
            for i, (video, index) in enumerate(zip(videos, indices, strict=True)):
                sequences[i] += at_every_snippet(values[i, : len(index)], index, len(video)) / np.float32(passes)
        columns = np.cumsum([cas.shape[-1], output.attention.shape[-1]])
        return [[scores[i], *np.split(sequence, columns, axis=1)] for i, sequence in enumerate(sequences)]

    def analyse_dataset(self, dataset: FeatureDataset, progress: bool = True) -> list[VideoAnalysis]:
        """Analyse every video of a data set, in its order; videos of similar length are scanned together."""
        return _in_batches(dataset, self.analyse, progress)

    @torch.inference_mode()
    def change_points(self, dataset: FeatureDataset) -> list[NDArray[np.int64]]:
        """Edges that teach EFC, of every video of a data set: all that are detected, `lone_ratio` or not."""
        found = _in_batches(dataset, lambda videos: self._detect(videos, lone_ratio=0.0), progress=False)
        return [edges for edges, *_ in found]


def _in_batches(
    dataset: FeatureDataset, run: Callable[[list[NDArray[np.float32]]], list[Found]], progress: bool
) -> list[Found]:
    """What `run` finds of every video of a data set, in its order, from batches of similar length."""
    found: dict[int, Found] = {}
    with tqdm(total=len(dataset), desc="analyse", unit="video", disable=None if progress else True) as bar:
        for batch in length_batches([dataset.n_snippets(i) for i in range(len(dataset))]):
            found.update(zip(batch, run([dataset.features(i) for i in batch]), strict=True))
            bar.update(len(batch))
    return [found[i] for i in range(len(dataset))]


def at_every_snippet(values: NDArray[np.float32], index: NDArray[np.int64], n: int) -> NDArray[np.float32]:
    """Values [m, K] at sampled snippets `index`, linear in between, at all n snippets [n, K]."""
    if len(index) == n:
        return values
    if len(index) == 1:
        return np.repeat(values, n, axis=0)
    right = np.searchsorted(index, np.arange(n), side="right").clip(1, len(index) - 1)
    left = right - 1
    share = ((np.arange(n) - index[left]) / (index[right] - index[left])).clip(0, 1)[:, None].astype(np.float32)
    return np.asarray(values[left] * (1 - share) + values[right] * share)


def length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of videos of similar length, longest first, so that padding wastes little."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, BATCH_SNIPPETS // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def true_edges(dataset: FeatureDataset, i: int) -> NDArray[np.int64]:
    """True boundaries of video i, rounded to the edges between snippets: the oracle's change-points."""
    bounds = [time for segment in dataset.videos[i].segments for time in (segment.start_s, segment.end_s)]
    edges = np.unique(np.rint(dataset.spec.edge_position(np.array(bounds))).astype(np.int64))
    return edges[(edges >= 1) & (edges < dataset.n_snippets(i))]


def predict(
    predictor: Predictor,
    dataset: FeatureDataset,
    analyses: Sequence[VideoAnalysis] | None = None,
    config: Config | None = None,
    oracle: bool = False,
) -> dict[str, Any]:
    """ActivityNet results of a data set, with the change-points of every video under `"ahlm"`.

    Args:
        predictor: the model.
        dataset: the videos.
        analyses: of `analyse_dataset`, when they are at hand already.
        config: replaces the predictor's (refinement and localisation).
        oracle: true boundaries instead of detected change-points, all of which the LCS step leaves and which segments
            are not extended beyond; evaluation only.
    """
    config = config or predictor.config
    if oracle:
        refinement = dataclasses.replace(config.refinement, enabled=False)
        localization = dataclasses.replace(config.localization, extend=0.0)
        config = dataclasses.replace(config, refinement=refinement, localization=localization)
    analyses = analyses if analyses is not None else predictor.analyse_dataset(dataset)
    results: dict[str, list[dict[str, Any]]] = {}
    points: dict[str, dict[str, list[float]]] = {}
    for i, (video, analysis) in enumerate(zip(dataset.videos, analyses, strict=True)):
        if not np.isfinite(analysis.cas).all():
            raise DataError(video.id, "features", "values the model can take", "a CAS of NaN or infinity", "too large?")
        if oracle:
            analysis = analysis.with_change_points(true_edges(dataset, i), predictor.spec)
        found = predictor.localize_analysis(dataset.features(i), analysis, video.duration_s, config)
        results[video.id] = [
            {"label": d.label, "score": d.score, "segment": [d.start_s, d.end_s]} for d in predictor.detections(found)
        ]
        points[video.id] = {"detected": analysis.boundaries_s.tolist()}
        if config.localization.proposals != "thresholds":
            points[video.id] |= {
                "refined": analysis.boundaries_at(found.change_points).tolist(),
                "foreground": analysis.boundaries_at(found.foreground_change_points).tolist(),
            }
    extra = {
        "features": vars(predictor.spec),
        "proposals": config.localization.proposals,
        "change_point_source": "true boundaries (oracle)" if oracle else "detected",
        "n_snippets": {video.id: len(a.cas) for video, a in zip(dataset.videos, analyses, strict=True)},
        "change_points": points,
    }
    return {
        "version": "VERSION 1.3",
        "results": results,
        "external_data": {"used": False, "details": ""},
        "ahlm": extra,
    }


def score(
    predictor: Predictor, dataset: FeatureDataset, analyses: Sequence[VideoAnalysis]
) -> tuple[dict[str, Any], Result]:
    """Predictions on a split and their evaluation under the run's protocol; classes that it lacks count for nothing."""
    predictions = predict(predictor, dataset, analyses)
    truth, protocol = dataset.ground_truth("test"), predictor.config.protocol
    return predictions, evaluate(truth, of_labels(predictions, dataset.segment_labels), protocol, subset="test")


def of_labels(predictions: dict[str, Any], labels: set[str]) -> dict[str, Any]:
    """Predictions with the detections of some classes alone."""
    results = {video: [d for d in found if d["label"] in labels] for video, found in predictions["results"].items()}
    return predictions | {"results": results}


def load(run: str | Path, device: str = "cpu", window: int | None = None) -> Predictor:
    """The model of a run folder or of a .safetensors file; `window` replaces the run's `classifier.window`.

    >>> ahlm.load("runs/demo").localize(features)  # doctest: +SKIP
    """
    path = Path(run)
    checkpoint = load_weights(path / FILES["weights"] if path.is_dir() else path)
    if window is not None:
        classifier = dataclasses.replace(checkpoint.config.classifier, window=window)
        checkpoint = dataclasses.replace(
            checkpoint, config=dataclasses.replace(checkpoint.config, classifier=classifier)
        )
    return Predictor(checkpoint, device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ahlm.infer", description="Localise actions with a trained model.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument("files", nargs="*", metavar="FILE.npy", help="feature files [n, F], or folders of them")
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="folder of a data set, in place of files")
    for name in ("features", "annotations"):
        parser.add_argument(f"--data.{name}", dest=name, metavar="NAME", help="within it, where there are several")
    parser.add_argument("--split", help="split of the data set (default: test)")
    parser.add_argument("--output", required=True, metavar="JSON", help="where the predictions go")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--proposals", choices=("change_points", "both", "thresholds"), help="default: the run's")
    parser.add_argument(
        "--window", type=int, metavar="N", help="localise longer videos in pieces of N snippets (default: the run's)"
    )
    parser.add_argument("--min-score", type=float, metavar="S", help="leave out detections that score less")
    parser.add_argument("--oracle", action="store_true", help="true boundaries as change-points (evaluation only)")
    text = "videos without features (default: error)"
    parser.add_argument("--missing", "--data.missing", choices=("error", "skip"), help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def moved(trained: DataConfig, root: str, features: str | None = None, annotations: str | None = None) -> DataConfig:
    """Where a data set is now; names within it are those given, else the training's where they are there too."""

    def name(given: str | None, before: str | None) -> str | None:
        return given or (before if before and (Path(root) / before).exists() else None)

    return dataclasses.replace(
        trained,
        root=root,
        features=name(features, trained.features),
        annotations=name(annotations, trained.annotations),
    )


def timed(data: DataConfig, spec: FeatureSpec) -> DataConfig:
    """With the timeline of training, which counts where the data set says no other."""
    return dataclasses.replace(data, **vars(spec))


def open_testing(data: DataConfig, classes: tuple[str, ...], feature_dim: int) -> FeatureDataset | None:
    """The test split, all of it read once; none where the data have none with segments to score."""
    try:
        testing = open_split(data, "test", classes)
    except NoSplit:
        return None
    if testing.feature_dim != feature_dim:
        expected = f"{feature_dim} as in training"
        raise DataError(str(data.root), "feature_dim of the test split", expected, testing.feature_dim)
    if not any(video.segments for video in testing.videos):
        print(f"note: the {len(testing)} videos of the test split have no segments, and are not scored")
        return None
    if tagged := sum(bool(video.labels) and not video.segments for video in testing.videos):
        print(f"note: {tagged} test videos have labels and no segments: every detection there counts as false")
    read_all(testing)
    return testing


def read_all(dataset: FeatureDataset) -> None:
    """Read every video, so that a broken one is found now."""
    for i in range(len(dataset)):
        dataset.features(i)


def run(arguments: argparse.Namespace) -> int:
    """Body of the command; see `--help`."""
    folder = Path(arguments.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # said now, not after hours of work
        raise PermissionError(f"{folder} cannot be written to")
    predictor = load(arguments.checkpoint, select_device(arguments.device), arguments.window)
    config = predictor.config
    for note in RunFolder(arguments.checkpoint).doubts(predictor.checkpoint):
        print(f"note: {note}")
    if arguments.proposals:
        settings = dataclasses.replace(config.localization, proposals=arguments.proposals)
        config = dataclasses.replace(config, localization=settings)
    data = timed(config.data, predictor.spec)
    if arguments.root:
        data = moved(data, arguments.root, arguments.features, arguments.annotations)
        data = dataclasses.replace(data, missing=arguments.missing or "error")
        dataset = open_dataset(data, arguments.split or "test", classes=predictor.classes)
    else:
        dataset = FeatureDataset.from_files(arguments.files, predictor.classes, data, predictor.checkpoint.feature_dim)
    if arguments.oracle and not any(video.segments for video in dataset.videos):
        raise DataError(arguments.root, "segments", "true boundaries for --oracle", "none")
    print(f"{dataset.spec} (from {dataset.spec_source})")
    for note in dataset.notes:
        print(f"note: {note}")
    predictor.follow(dataset, arguments.root)
    if long := predictor.too_long(dataset, "--window"):
        print(f"note: {long}")
    predictions = predict(predictor, dataset, config=config, oracle=arguments.oracle)
    if arguments.min_score is not None:
        for video, found in predictions["results"].items():
            predictions["results"][video] = [entry for entry in found if entry["score"] >= arguments.min_score]
    write_predictions(arguments.output, predictions)
    n_detections = sum(map(len, predictions["results"].values()))
    print(f"{len(dataset)} videos, {n_detections} detections ({config.localization.proposals}) -> {arguments.output}")
    return 0


def select_device(name: str) -> str:
    """`auto` is CUDA where there is a card; raises `DataError` for a card or an AHLM_BACKEND that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DataError("--device", name, "a CUDA device", "none: torch sees no NVIDIA GPU", hint="use --device cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DataError("--device", name, f"one of {torch.cuda.device_count()} CUDA devices", f"index {device.index}")
    try:
        default_backend(name)
    except ValueError as error:
        raise DataError("environment", "AHLM_BACKEND", f"a backend that runs on {name}", error) from None
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.infer`."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)  # files may stand on both sides of an option
    if bool(arguments.root) == bool(arguments.files):
        parser.error("give either feature files or --data.root")
    if not arguments.root:
        for option in ("oracle", "split", "missing", "data.features", "data.annotations"):
            if getattr(arguments, option.removeprefix("data.")):
                parser.error(f"--{option} is for a data set, which --data.root gives")
    if arguments.window is not None and arguments.window < 1:
        parser.error(f"--window: expected at least 1 snippet, got {arguments.window}")
    if arguments.min_score is not None and not math.isfinite(arguments.min_score):
        parser.error(f"--min-score: expected a number, got {arguments.min_score}")
    if Path(arguments.output).is_dir():
        parser.error(f"--output must be a file, got the folder {arguments.output}")
    if Path(arguments.output).exists() and not arguments.overwrite:
        parser.error(f"{arguments.output} exists; --overwrite replaces it")
    if not DEVICE.fullmatch(arguments.device):
        parser.error(f"--device: expected auto, cpu, cuda or cuda:N, got {arguments.device}")
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
