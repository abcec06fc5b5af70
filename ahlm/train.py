"""Training from video-level labels: `python -m ahlm.train [--config NAME|FILE] [--data.root DIR] [overrides]`."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ahlm.arguments import config_mapping, config_parser, parse
from ahlm.checkpoint import Checkpoint, load_state, load_weights, save_state, save_weights
from ahlm.config import Config, DataConfig, OptimConfig
from ahlm.data.dataset import FeatureDataset, unusual_scale
from ahlm.data.sampling import collate, crop_start, sample_snippets_train
from ahlm.data.slow_features import Read, as_they_are, slow_projection
from ahlm.data.synthetic import open_split
from ahlm.errors import DataError, exit_code
from ahlm.evaluation.predictions import write_predictions
from ahlm.files import write_json, write_text
from ahlm.infer import Predictor, VideoAnalysis, moved, open_testing, read_all, score, select_device, timed
from ahlm.kernels.compiled import default_backend, promoted
from ahlm.kernels.core import choose_backend
from ahlm.model.ahlm import AHLM
from ahlm.model.classification import ClassifierOutput
from ahlm.model.losses import classifier_loss, detector_loss, segment_loss
from ahlm.report.html import write_report
from ahlm.run_folder import RunFolder, read_metrics

LOG_EVERY = 10
COLLAPSED = 0.4  # a firing rate beyond this; ratios that stay between the clips of eq. 8 give 0.5
# streams of random numbers, drawn anew from the seed at every step: a resumed run repeats an uninterrupted one
CLASSIFIER, DETECTOR, ORDER, DROPOUT = range(4)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the state was saved."""


def classifier_batch(
    dataset: FeatureDataset, labels: Tensor, config: Config, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For EFC: sampled snippets (B, T, F), lengths (B,) and labels (B, C); which videos (B,) and snippets (B, T)."""
    rng = np.random.default_rng([config.seed, CLASSIFIER, step])
    batch, total = config.classifier_optim.batch_size, len(dataset)
    # every video once before any comes again
    epoch, offset = divmod(step * batch, total)
    chosen: list[int] = []
    while len(chosen) < batch:
        order = np.random.default_rng([config.seed, ORDER, epoch]).permutation(total)
        chosen.extend(order[offset : offset + batch - len(chosen)].tolist())
        epoch, offset = epoch + 1, 0
    videos = [dataset.features(i) for i in chosen]
    indices = [sample_snippets_train(len(video), config.classifier.n_snippets, rng) for video in videos]
    sampled = collate([video[index] for video, index in zip(videos, indices, strict=True)])
    return (*sampled, labels[chosen], torch.tensor(chosen), torch.from_numpy(np.stack(indices)))


def detector_batch(
    dataset: FeatureDataset, weights: np.ndarray[Any, Any], config: Config, step: int
) -> tuple[Tensor, Tensor]:
    """Contiguous crops (B, T, F) and lengths (B,) for DFC; long videos are drawn more often, so all snippets alike."""
    rng = np.random.default_rng([config.seed, DETECTOR, step])
    crops = []
    for i in rng.choice(len(dataset), config.detector_optim.batch_size, p=weights):
        video = dataset.features(int(i))
        start = crop_start(len(video), config.detector.crop, rng)
        crops.append(video[start : start + config.detector.crop])
    return collate(crops)


def feature_statistics(dataset: FeatureDataset, read: Read = as_they_are) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (F,) of the training snippets as `read` sees them, float64 sums over one pass."""
    count, total, squares = 0, 0.0, 0.0
    for i in range(len(dataset)):
        video = read(dataset.features(i)).astype(np.float64)
        count, total, squares = count + len(video), total + video.sum(0), squares + np.square(video).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


def new_model(dataset: FeatureDataset, config: Config) -> AHLM:
    """An untrained model for a data set, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    model = AHLM(dataset.feature_dim, len(dataset.classes), config.detector, config.classifier, config.squash)

    def read(video: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.read(torch.tensor(video)).numpy()

    if config.squash:
        model.set_squash(*feature_statistics(dataset))
    if config.detector.standardise == "slow":
        mean, projection = slow_projection(dataset, config.detector.slow_size, read)
        model.detector.set_projection(torch.from_numpy(mean).float(), torch.from_numpy(projection).float())
    elif not config.detector.shared_embedding:
        model.detector.set_statistics(*feature_statistics(dataset, read))
    return model


class Part:
    """One of the two modules in training: its optimizer, schedule and progress."""

    def __init__(self, module: torch.nn.Module, config: OptimConfig) -> None:
        self.module, self.config = module, config
        decay = config.weight_decay
        self.optimizer = torch.optim.Adam(module.parameters(), config.lr, weight_decay=decay, fused=True)

    def learning_rate(self, step: int) -> float:
        """Linear rise over `warmup` steps, times 0.3 after the share `decay_at` of the iterations."""
        rise = min(1.0, (step + 1) / self.config.warmup) if self.config.warmup else 1.0
        return self.config.lr * rise * (0.3 if step >= self.config.decay_at * self.config.iterations else 1.0)

    def update(self, step: int, scaler: torch.amp.GradScaler) -> None:
        """Clip the gradients and take one step of Adam; `scaler` skips it where fp16 gradients overflowed."""
        scaler.unscale_(self.optimizer)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        scaler.step(self.optimizer)


class Trainer:
    """The training loop: one step of EFC and one of DFC side by side, `L = L_EFC + lambda L_DFC`."""

    def __init__(self, model: AHLM, dataset: FeatureDataset, config: Config, device: str = "cpu") -> None:
        self.model, self.dataset, self.config = model.to(device).train(), dataset, config
        self.device = torch.device(device)
        self.labels = torch.from_numpy(dataset.label_matrix())
        snippets = np.array([dataset.n_snippets(i) for i in range(len(dataset))], np.float64)
        self.crop_weights = snippets / snippets.sum()
        self.parts = (Part(model.classifier, config.classifier_optim), Part(model.detector, config.detector_optim))
        self.total_steps = config.total_steps
        self.step = 0
        self.best_validation = -1.0
        # fp16 gradients vanish below 6e-8; in fp32 and bf16 the scaler does nothing
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._loader = ThreadPoolExecutor(1, "batches")
        self._ahead: tuple[int, Future[list[tuple[Tensor, ...] | None]]] | None = None
        self._segments: Tensor | None = None

    def active(self, step: int) -> list[bool]:
        """Which of the two modules train in a step."""
        return [step < part.config.iterations for part in self.parts]

    def prepare(self, step: int) -> list[tuple[Tensor, ...] | None]:
        """The batches of a step, which depend on seed and step alone; none for a module that is done."""
        active = self.active(step)
        batches = [
            classifier_batch(self.dataset, self.labels, self.config, step) if active[CLASSIFIER] else None,
            detector_batch(self.dataset, self.crop_weights, self.config, step) if active[DETECTOR] else None,
        ]
        if self.device.type == "cuda":  # pinned memory is copied while the GPU works
            return [batch and tuple(tensor.pin_memory() for tensor in batch) for batch in batches]
        return [*batches]

    def batches(self) -> list[tuple[Tensor, ...] | None]:
        """This step's batches on the device; a thread goes on to prepare the next step's."""
        ahead, following = self._ahead, self.step + 1
        batches = ahead[1].result() if ahead is not None and ahead[0] == self.step else self.prepare(self.step)
        self._ahead = (following, self._loader.submit(self.prepare, following)) if any(self.active(following)) else None
        return [batch and tuple(tensor.to(self.device, non_blocking=True) for tensor in batch) for batch in batches]

    def autocast(self) -> torch.autocast:
        """16-bit matrix products, where the precision says so."""
        dtype = torch.float16 if self.config.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.config.precision != "fp32")

    def train_step(self) -> dict[str, float]:
        """Train on one batch of each module that is not done yet; returns losses and the firing rate.

        Raises:
            FloatingPointError: the loss is not finite; names the terms.
        """
        config, step = self.config, self.step
        for_classifier, for_detector = self.batches()
        # dropout draws from the global generator
        torch.manual_seed(int(np.random.SeedSequence([config.seed, DROPOUT, step]).generate_state(1)[0]))
        terms: list[Tensor] = []
        record: dict[str, Tensor] = {}
        if for_classifier is not None:
            snippets, lengths, labels, videos, indices = for_classifier
            with self.autocast():
                classified = self.model.classify(snippets, lengths)
            classified = ClassifierOutput(*map(promoted, classified))
            efc = classifier_loss(classified, labels, lengths, config.classifier)
            terms.append(efc.total)
            record |= {"loss_efc": efc.total, "loss_foreground": efc.foreground}
            record |= {"loss_context": efc.context, "loss_background": efc.background}
            if config.classifier.segment_weight and step >= config.classifier.segment_from:
                activity = self.model.classifier.activity(classified)
                segments = self.segments()[videos[:, None], indices]
                taught = segment_loss(classified, activity, labels, lengths, segments)
                terms.append(config.classifier.segment_weight * taught)
                record["loss_segment"] = taught
        if for_detector is not None:
            crops, lengths = for_detector
            generator = torch.Generator(self.device).manual_seed(torch.initial_seed())
            noise = self.model.detector.draw_noise(len(crops), crops.shape[1], generator)
            with self.autocast():
                output = self.model.detect(crops, lengths, noise)
            dfc = detector_loss(output, lengths, config.detector, step)
            terms.append(config.detector_weight * dfc.total)
            record |= {"loss_dfc": dfc.total, "reconstruction": dfc.reconstruction}
            record |= {"kl_snippet": dfc.snippet_kl, "kl_segment": dfc.segment_kl}
            record["firing_rate"] = output.scan.change_points.sum() / (lengths - 1).sum().clamp(min=1)
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(terms).sum()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        # read at once: each value alone would keep the CPU waiting for a GPU
        total, *values = torch.stack([loss, *record.values()]).tolist()
        found = dict(zip(record, values, strict=True))
        if not math.isfinite(total):
            parts = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
            raise FloatingPointError(f"the loss at step {step} is {total} ({parts}); lower the learning rate")
        for part, is_active in zip(self.parts, self.active(step), strict=True):
            if is_active:
                part.update(step, self.scaler)
        self.scaler.update()
        self.step += 1
        return found

    def segments(self) -> Tensor:
        """The segment between change-points that every snippet of every video lies in (V, longest).

        Those of a DFC that is done, before the LCS step: a resumed run finds the same.
        """
        if self._segments is None:
            found = Predictor(self.checkpoint(), str(self.device)).change_points(self.dataset)
            self.model.train()
            starts = torch.zeros(len(found), self.dataset.longest, dtype=torch.int32)
            for row, change_points in zip(starts, found, strict=True):
                row[torch.from_numpy(change_points)] = 1
            self._segments = starts.cumsum(1, dtype=torch.int32).to(self.device)
        return self._segments

    def checkpoint(self) -> Checkpoint:
        """The model as it stands."""
        dataset = self.dataset
        of_data = (dataset.classes, dataset.spec, dataset.feature_dim, dataset.longest)
        return Checkpoint(self.model, self.config, *of_data, self.step)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        optimizers = [part.optimizer.state_dict() for part in self.parts]
        progress = {"step": self.step, "best_validation": self.best_validation, "data": self.dataset.fingerprint}
        weights = self.model.state_dict()  # of the same step as the rest, whatever became of the file of the weights
        return {**progress, "weights": weights, "optimizers": optimizers, "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.model.load_state_dict(state["weights"])
        self.step, self.best_validation = state["step"], state["best_validation"]
        for part, saved in zip(self.parts, state["optimizers"], strict=True):
            part.optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self._segments = None

    def batch_sizes(self) -> str:
        """What decides over memory, for the message when there is not enough."""
        config = self.config
        return (
            f"EFC trains on {config.classifier_optim.batch_size} videos of {config.classifier.n_snippets} snippets, "
            f"DFC on {config.detector_optim.batch_size} crops of up to {config.detector.crop}; lower "
            "--classifier_optim.batch_size, --detector_optim.batch_size or --detector.crop"
        )


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, with exit code 130."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list instead of dying, so that the step in progress ends and is saved."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def fit(
    trainer: Trainer,
    folder: RunFolder,
    validation: FeatureDataset | None = None,
    *,
    tensorboard: bool = False,
    progress: bool = True,
) -> None:
    """Train to the end, logging and saving on the way.

    Args:
        trainer: where it starts, and where it ends.
        folder: where metrics, weights and state go.
        validation: scored whenever the state is saved, detections by mAP and change-points within one snippet; the
            best weights by mAP are kept beside the last.
        tensorboard: also write TensorBoard's event files.
        progress: show a bar on a terminal.

    Raises:
        Interrupted: a signal came; the state was saved.
        MemoryError: the device has not enough memory for a step.
        FloatingPointError: the loss of a step is not finite.
    """
    writer = summary_writer(folder) if tensorboard else None

    def log(record: dict[str, Any]) -> None:
        folder.log(record)
        if writer is not None:
            for name, value in record.items():
                if name != "step":
                    writer.add_scalar(name, value, record["step"])

    def save() -> None:
        save_state(folder.state, trainer.state())
        save_weights(folder.weights, trainer.checkpoint())

    def validate() -> None:
        if validation is None:
            return
        predictor = Predictor(trainer.checkpoint(), str(trainer.device))
        result = score(predictor, validation, predictor.analyse_dataset(validation, progress=False))[1]
        trainer.model.train()
        assert result.change_points is not None
        found = result.change_points["detected"]["1"]
        scores = {f"validation_{name}": found[name] for name in ("precision", "recall", "f1", "rate", "true_rate")}
        log({"step": trainer.step, "validation_mAP": result.headline, **scores})
        if result.headline > trainer.best_validation:
            trainer.best_validation = result.headline
            save_weights(folder.best, trainer.checkpoint())

    if trainer.step in (0, trainer.total_steps):
        save()  # from now on the run can be resumed, whatever ends it
    started, first = time.perf_counter(), trainer.step
    with (
        stop_signals() as received,
        tqdm(
            total=trainer.total_steps, initial=first, desc="train", unit="step", disable=None if progress else True
        ) as bar,
    ):
        while trainer.step < trainer.total_steps:
            try:
                record = trainer.train_step()
            except torch.OutOfMemoryError as error:
                message = f"{trainer.device} is out of memory at step {trainer.step}: {trainer.batch_sizes()}"
                raise MemoryError(message) from error
            bar.update()
            done = trainer.step == trainer.total_steps
            if trainer.step % LOG_EVERY == 0 or done:
                seconds = (time.perf_counter() - started) / (trainer.step - first)
                log({"step": trainer.step, "seconds_per_step": round(seconds, 5), **record})
                bar.set_postfix({k: f"{record[k]:.3g}" for k in ("loss_efc", "loss_dfc", "firing_rate") if k in record})
            due = trainer.step % trainer.config.save_every == 0 or done
            if due:
                validate()
            if due or received:
                save()
            if received:
                raise Interrupted
    trainer.model.eval()
    if writer is not None:
        writer.close()


def summary_writer(folder: RunFolder) -> Any:
    """TensorBoard's writer; its extra must be there."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder.path / "tensorboard"))


def firing(analyses: Sequence[VideoAnalysis]) -> str:
    """How often the detector fires and how clear its test of eq. 7 is: quantiles of D_static / D_change.

    The ratios are of the video read forward, the change-points of both directions where both are read. A detector that
    fires nowhere, or at about half of the snippets or more, has found no change-points, and is said to have collapsed.
    """
    at_change = np.concatenate([np.isin(np.arange(1, len(a.cas)), a.change_points) for a in analyses])
    ratio = np.concatenate([a.kl_static[1:] / np.maximum(a.kl_change[1:], 1e-9) for a in analyses])
    if not ratio.size:
        return "no video has two snippets, so nothing can change"
    rate = at_change.mean()
    parts = [
        f"{where} " + " ".join(f"{q:.2g}" for q in np.quantile(ratio[chosen], (0.1, 0.5, 0.9)))
        for where, chosen in (("inside segments", ~at_change), ("at change-points", at_change))
        if chosen.any()
    ]
    text = f"firing rate {rate:.3f}; D_static / D_change at 10, 50, 90 %: {', '.join(parts)}"
    collapsed = "nowhere" if rate == 0 else "almost everywhere" if rate > COLLAPSED else ""
    return text + (f"\nnote: the detector fires {collapsed}: its change-points mean nothing" if collapsed else "")


def test(predictor: Predictor, dataset: FeatureDataset, folder: RunFolder) -> None:
    """Localise and evaluate the test split with the last checkpoint; writes predictions, evaluation and report.

    Where a validation split chose a best checkpoint, its test result stands in eval.json under `best`.
    """
    remedy = f"python -m ahlm.infer --checkpoint {shlex.quote(str(folder.path))} ... --window"
    if long := predictor.too_long(dataset, remedy):
        print(f"note: {long}")
    analyses = predictor.analyse_dataset(dataset)
    print(firing(analyses))
    predictions, result = score(predictor, dataset, analyses)
    write_predictions(folder.predictions, predictions)
    data = predictor.config.data.root or "demo"
    summary: dict[str, Any] = {"data": data, "without_features": sorted(dataset.missing), "checkpoint": "last"}
    summary |= {"step": predictor.checkpoint.step, **result.to_dict()}
    if folder.best.exists():
        best = Predictor(load_weights(folder.best), str(predictor.device))
        best.spec = predictor.spec
        summary["best"] = {
            "checkpoint": "best on validation",
            "step": best.checkpoint.step,
            **score(best, dataset, best.analyse_dataset(dataset))[1].to_dict(),
        }
    write_json(folder.evaluation, summary)
    metrics = read_metrics(folder.metrics)
    write_report(folder.report, predictor, dataset, analyses, result, metrics, summary.get("best"))
    print(result)
    if dataset.missing:
        print(f"note: {len(dataset.missing)} test videos without features are left out of the score")
    print(f"results of the last checkpoint in {folder.path}; look at {folder.report}")


def earlier_config(
    parser: ArgumentParser, folder: RunFolder, config: Config, given: Config, argv: Sequence[str]
) -> Config:
    """The settings of an earlier run; a command line may move its data and its device and change nothing else."""
    if changed := folder.edited(config):
        parser.error(
            f"{folder.config} was edited ({', '.join(changed)}), and an earlier run keeps its settings; undo it"
        )
    if given.data.root:
        config = dataclasses.replace(config, data=moved(config.data, given.data.root))
    if given.device != "auto":
        config = dataclasses.replace(config, device=given.device)
    written = {word.removeprefix("--").split("=")[0] for word in argv if word.startswith("--")}
    written = {"data.missing" if name == "missing" else name for name in written} - {"data.root", "device"}
    if "config" in written:  # all that the recipe says
        differs = config != dataclasses.replace(
            given, data=dataclasses.replace(given.data, root=config.data.root), device=config.device
        )
    else:
        own = [name for name in written if hasattr(config, name.split(".")[0])]
        differs = any(attrgetter(name)(config) != attrgetter(name)(given) for name in own)
    if differs:
        parser.error(f"the settings are those of {folder.path}; only --data.root and --device may differ")
    return config


def open_splits(data: DataConfig) -> tuple[FeatureDataset, FeatureDataset | None, FeatureDataset | None]:
    """Training, validation and test split, every value of them read once, so that bad data stop a run before it starts.

    There is no validation split unless the settings ask for one, and no test split where the data have none with
    segments to score.
    """
    training, validation = open_split(data, "train"), None
    testing = open_testing(data, training.classes, training.feature_dim)
    if data.validation:
        training, validation = training.split_validation(data.validation)
        if not any(video.segments for video in validation.videos):
            raise DataError(str(data.root), "validation", "videos with segments to score", "tags alone")
    for dataset in filter(None, (training, validation)):
        read_all(dataset)
    return training, validation, testing


def run(config: Config, options: Any, argv: Sequence[str], earlier: tuple[RunFolder, Checkpoint] | None) -> int:
    """Body of the command; see `--help`. `earlier` is the run to go on with or to evaluate."""
    device = select_device(config.device)
    if options.tensorboard and find_spec("tensorboardX") is None:
        raise ModuleNotFoundError("--tensorboard needs tensorboardX: pip install 'ahlm[tb]'")
    be_deterministic(config)
    data = config.data
    if earlier is not None:
        folder, trained = earlier
        data = timed(config.data, trained.spec)
        if options.eval_only:
            return evaluate_again(dataclasses.replace(config, data=data), trained, folder, device)
    training, validation, testing = open_splits(data)
    print(describe({"train": training, "validation": validation, "test": testing}, device, config))
    if earlier is not None:
        model = trained.model
        for name in ("classes", "feature_dim", "spec"):
            if getattr(training, name) != getattr(trained, name):
                expected = f"{getattr(trained, name)} as in {folder.path}"
                raise DataError(str(config.data.root), name, expected, getattr(training, name))
    else:
        try:
            model = new_model(training, config)
        except ValueError as error:  # settings that do not go with these features
            print(f"error: {error}", file=sys.stderr)
            return 2
        name = "demo" if config.data.root is None else Path(config.data.root).resolve().name
        folder = RunFolder.create(options.output_dir, name, options.overwrite)
        write_text(folder.config, yaml.safe_dump(config_mapping(config), sort_keys=False))
    trainer = Trainer(model, training, config, device)
    if earlier is not None:
        state = load_state(folder.state)
        if state["data"] != training.fingerprint:
            expected = f"videos, labels and features as {folder.path} began with"
            hint = "train anew; or were they begun by another version of ahlm?"
            raise DataError(str(config.data.root), "training list", expected, "others", hint)
        trainer.restore(state)
        folder.forget_after(trainer.step)
        print(f"settings are those of {folder.path}; resuming at step {trainer.step} of {trainer.total_steps}")
    folder.write_environment(device, backends(device), list(argv))
    here = shlex.quote(str(folder.path))
    try:
        fit(trainer, folder, validation, tensorboard=options.tensorboard)
    except Interrupted:
        print(f"stopped at step {trainer.step}; go on with: python -m ahlm.train --resume {here}", file=sys.stderr)
        return 130
    except OSError as error:
        if not folder.weights.exists():
            raise
        raise OSError(f"{error}; once that is mended, go on with: python -m ahlm.train --resume {here}") from error
    predictor = Predictor(load_weights(folder.weights), device)
    if validation is not None:
        step = load_weights(folder.best).step
        print(f"best on validation: mAP {100 * trainer.best_validation:.2f} at step {step}, kept in {folder.best}")
    if testing is None:
        analyses = predictor.analyse_dataset(training)
        print(firing(analyses))
        write_report(folder.report, predictor, training, analyses, metrics=read_metrics(folder.metrics))
        print(f"nothing to score; what was found in the training videos is in {folder.report}")
        print(f"localise in others with: python -m ahlm.infer --checkpoint {here} FILE.npy --output OUT.json")
    else:
        test(predictor, testing, folder)
    return 0


def evaluate_again(config: Config, trained: Checkpoint, folder: RunFolder, device: str) -> int:
    """Test a trained run once more; of its data the test split alone is read."""
    testing = open_testing(config.data, trained.classes, trained.feature_dim)
    if testing is None:
        raise DataError(str(config.data.root), "test split", "videos with segments to score", "none")
    print(describe({"test": testing}, device, config))
    print(f"settings are those of {folder.path}")
    for note in folder.doubts(trained):
        print(f"note: {note}")
    predictor = Predictor(dataclasses.replace(trained, config=config), device)
    predictor.follow(testing, config.data.root)
    test(predictor, testing, folder)
    return 0


def be_deterministic(config: Config) -> None:
    """Same seed, same bits, where the configuration asks for it; before anything runs on a GPU."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)


def backends(device: str = "cpu") -> dict[str, str]:
    """The implementation in use of every hot loop."""
    scan = default_backend(device)
    if scan in ("triton", "cuda"):
        scan += " once it has passed its check"
    return {"scan": scan, "lcs": "numba", "mAP": choose_backend(), "nms": choose_backend()}


def describe(splits: Mapping[str, FeatureDataset | None], device: str, config: Config) -> str:
    """What the run works on: device, data by their splits, timeline, and what was mended."""
    there = {name: dataset for name, dataset in splits.items() if dataset is not None}
    first, *_ = there.values()
    used = ", ".join(f"{name}={backend}" for name, backend in backends(device).items())
    sizes = ", ".join(
        f"no {name} split" if dataset is None else f"{name} {len(dataset)} videos ({len(dataset.missing)} missing)"
        for name, dataset in splits.items()
    )
    lines = [
        f"device {device}; {config.precision}; backends: {used}; seed {config.seed}",
        f"{sizes}, {len(first.classes)} classes, {first.feature_dim} features a snippet, layout {first.layout}",
        f"{first.spec} (from {first.spec_source})",
    ]
    if config.data.root is None:
        lines.append("note: without --data.root these are the generated videos of the demo")
    elif {"train", "test"} <= there.keys():
        trained, tested = ({video.id for video in there[name].videos} for name in ("train", "test"))
        if both := sorted(trained & tested):
            lines.append(f"note: {len(both)} videos are both trained on and tested: {', '.join(both[:5])}")
    if "train" in there and not config.squash and (unusual := unusual_scale(there["train"].root_mean_square)):
        lines.append(f"note: {unusual}")
    lines += [f"note: {note}" for note in dict.fromkeys(note for dataset in there.values() for note in dataset.notes)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m ahlm.train`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = config_parser("python -m ahlm.train", "Train AHLM from video-level labels, then localise and evaluate.")
    parser.add_argument("--output-dir", type=str | None, default=None, help="run folder (default: runs/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --output-dir")
    parser.add_argument("--resume", type=str | None, default=None, metavar="RUN", help="go on with an interrupted run")
    parser.add_argument(
        "--eval-only", type=str | None, default=None, metavar="RUN", help="evaluate a trained run again"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's event files")
    config, options = parse(parser, argv)
    if options.resume and options.eval_only:
        parser.error("--resume and --eval-only exclude each other")
    earlier = options.resume or options.eval_only
    if earlier and (options.output_dir or options.overwrite):
        parser.error("--output-dir and --overwrite are for new runs")

    def body() -> int:
        with terminated_like_ctrl_c():
            if not earlier:
                return run(config, options, argv, None)
            folder = RunFolder(earlier)
            if folder.path.is_dir():
                folder.claim()
            if folder.config.exists() and not folder.weights.exists():
                got, hint = "none: it was stopped before its first step", "give its first command again"
                raise DataError(folder.path, "state", "that of an interrupted run", got, hint)
            try:
                trained = load_weights(folder.weights)
                settings = earlier_config(parser, folder, trained.config, config, argv)
                return run(settings, options, argv, (folder, trained))
            finally:
                folder.release()

    return exit_code(body)


if __name__ == "__main__":
    sys.exit(main())
