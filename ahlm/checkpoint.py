"""Weights as safetensors with the configuration inside; what resuming needs as a state read with `weights_only`."""

from __future__ import annotations

import io
import json
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ahlm.arguments import config_from, config_mapping
from ahlm.config import Config
from ahlm.errors import DataError
from ahlm.files import replacing
from ahlm.model.ahlm import AHLM
from ahlm.timeline import FeatureSpec

FORMAT = "ahlm-1"


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that is needed to run it.

    Attributes:
        model: from a file: in evaluation mode, on the CPU.
        config: of the run that trained it.
        classes: names in the order of the model's outputs, background left out.
        spec: of the features it was trained on.
        feature_dim: their dimension.
        longest: snippets of the longest video it was trained on; none: the file does not say.
        step: training steps done.
    """

    model: AHLM
    config: Config
    classes: tuple[str, ...]
    spec: FeatureSpec
    feature_dim: int
    longest: int | None
    step: int


def save_weights(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    header = {
        "format": FORMAT,
        "config": config_mapping(checkpoint.config),
        "classes": list(checkpoint.classes),
        "features": vars(checkpoint.spec) | {"feature_dim": checkpoint.feature_dim},
        "longest": checkpoint.longest,
        "step": checkpoint.step,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.model.state_dict().items()}
    with replacing(path) as temporary:
        # Python writes, whose error says that the disk is full
        temporary.write_bytes(save(tensors, metadata={"ahlm": json.dumps(header)}))


def load_weights(path: str | Path) -> Checkpoint:
    """Read a checkpoint; raises `DataError` when the file is missing, truncated or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "checkpoint", "a .safetensors file written by ahlm.train", "no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("ahlm", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(path, "checkpoint", "a complete .safetensors file", error) from None
    if header.get("format") != FORMAT:
        raise DataError(path, "metadata", f"format {FORMAT}", header.get("format", "none"))
    try:
        config, features = config_from(header["config"]), header["features"]
    except (ArgumentError, ValueError) as error:
        found, hint = " ".join(str(error).split()), "written by another version of ahlm?"
        raise DataError(path, "config", "the settings of this version", found, hint) from None
    feature_dim = features.pop("feature_dim")
    model = AHLM(feature_dim, len(header["classes"]), config.detector, config.classifier, config.squash)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(path, "weights", "tensors that fit the configuration", str(error).splitlines()[-1]) from None
    classes, spec = tuple(header["classes"]), FeatureSpec(**features)
    return Checkpoint(model.eval(), config, classes, spec, feature_dim, header.get("longest"), header["step"])


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write optimizer state and step for `--resume`, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote; only tensors and plain values are admitted."""
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "state", "the state of an interrupted run", "no such file")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        raise DataError(path, "state", "a state written by ahlm.train", type(error).__name__) from None
    known = state.keys() if isinstance(state, dict) else set()
    missing = {"weights", "step", "optimizers", "best_validation", "scaler", "data"} - known
    if missing:
        raise DataError(path, "state", "a state written by ahlm.train", f"one without {', '.join(sorted(missing))}")
    return state
