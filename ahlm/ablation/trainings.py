"""Trainings shared by the rows that need the same one, on disk and resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahlm.arguments import config_mapping
from ahlm.checkpoint import Checkpoint, load_state, load_weights
from ahlm.config import Config
from ahlm.data.dataset import FeatureDataset
from ahlm.model.ahlm import AHLM
from ahlm.model.classification import AttentionClassifier, ClassifierOutput, topk_mean
from ahlm.run_folder import RunFolder
from ahlm.train import Trainer, fit, new_model

PARTS = ("classifier", "detector")


class PlainMIL(AttentionClassifier):
    """Multiple-instance learning and nothing else: the CAS is the class probabilities, all attention is foreground."""

    def forward(self, features: Tensor, lengths: Tensor) -> ClassifierOutput:
        """As `AttentionClassifier.forward`, with attention (1, 0, 0)."""
        embedding = self.embed(features, lengths)
        cas = self.classifier(self.dropout(embedding * self.dropout(torch.ones_like(embedding[..., :1]))))
        attention = torch.zeros_like(cas[..., :3])
        attention[..., 0] = 1
        logits = topk_mean(cas, lengths, self.topk[0])
        # the other branches' losses become constants
        return ClassifierOutput(cas, attention, torch.stack([logits, *2 * [torch.zeros_like(logits)]], 1), embedding)


def hashed(value: Any) -> str:
    """A short name for nested plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Trainings:
    """One training a module and setting, in a folder named after a hash of all that influences it."""

    def __init__(self, folder: Path, dataset: FeatureDataset, device: str) -> None:
        self.folder, self.dataset, self.device = folder, dataset, device

    def key(self, config: Config, part: str, plain_mil: bool = False) -> str:
        """Name of the training of one module.

        DFC and EFC share no parameter and draw from streams of their own, so each depends on its own settings; the
        classifier's width decides which random numbers are left for the detector's first weights. With a shared
        embedding both are one training; a classifier that change-points teach depends on their detector as well.
        """
        values = config_mapping(config)
        shared = config.detector.shared_embedding
        used: dict[str, Any] = {"data": self.dataset.fingerprint, "seed": config.seed, "squash": config.squash}
        used |= {"precision": config.precision, "deterministic": config.deterministic}
        if part == "classifier" or shared:
            used |= {name: values[name] for name in ("classifier", "classifier_optim")} | {"plain_mil": plain_mil}
            for name in ("passes", "window"):  # no matter of training, as below
                used["classifier"].pop(name)
        if part == "classifier" and config.classifier.segment_weight:
            used |= {"taught_by": self.key(config, "detector"), "both_directions": config.detector.both_directions}
        if part == "detector" or shared:
            used |= {name: values[name] for name in ("detector", "detector_optim", "detector_weight")}
            used["width"] = config.classifier.width
            for name in ("both_directions", "lone_ratio"):
                used["detector"].pop(name)
        return ("both" if shared else part) + "-" + hashed(used)

    def checkpoint(self, config: Config, plain_mil: bool = False) -> Checkpoint:
        """A model with both modules trained under `config`; what is trained already is read.

        Raises:
            Interrupted: a signal came; the next call goes on from there.
        """
        classifier = self._trained(config, "classifier", plain_mil)
        if not config.detector.shared_embedding:
            classifier.model.detector = self._trained(config, "detector", False).model.detector
        return dataclasses.replace(classifier, config=config)

    def _trained(self, config: Config, part: str, plain_mil: bool) -> Checkpoint:
        folder = RunFolder(self.folder / self.key(config, part, plain_mil))
        if not (folder.path / "done").exists():
            self._train(config, part, plain_mil, folder)
        checkpoint = load_weights(folder.weights)
        if plain_mil:
            checkpoint = dataclasses.replace(checkpoint, model=as_plain_mil(checkpoint.model, config))
        return checkpoint

    def _train(self, config: Config, part: str, plain_mil: bool, folder: RunFolder) -> None:
        model = new_model(self.dataset, config)
        if part == "classifier" and config.classifier.segment_weight:
            model.detector = self._trained(config, "detector", False).model.detector
        if not config.detector.shared_embedding:
            (other,) = (f"{name}_optim" for name in PARTS if name != part)
            idle = dataclasses.replace(getattr(config, other), iterations=0)
            config = dataclasses.replace(config, **{other: idle})
        trainer = Trainer(as_plain_mil(model, config) if plain_mil else model, self.dataset, config, self.device)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.claim()
        if folder.state.exists():
            trainer.restore(load_state(folder.state))
            folder.forget_after(trainer.step)
        fit(trainer, folder)
        (folder.path / "done").touch()
        folder.state.unlink()  # optimizer moments, three times the weights


def as_plain_mil(model: AHLM, config: Config) -> AHLM:
    """The model with its classifier turned into `PlainMIL`, weights kept."""
    classifier = model.classifier
    plain = PlainMIL(classifier.embedding.in_channels, classifier.classifier.out_features - 1, config.classifier)
    plain.load_state_dict(classifier.state_dict())
    model.classifier = plain.train(classifier.training)
    return model
