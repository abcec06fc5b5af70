"""The folder of a run: configuration, environment, metrics, weights, predictions, results."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import ahlm
from ahlm.arguments import config_mapping
from ahlm.checkpoint import Checkpoint
from ahlm.config import Config
from ahlm.errors import DataError
from ahlm.files import write_json, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILES = {
    "config": "config.yaml",
    "environment": "env.json",
    "metrics": "metrics.jsonl",
    "weights": "last.safetensors",
    "best": "best.safetensors",
    "state": "state.pt",
    "predictions": "predictions.json",
    "evaluation": "eval.json",
    "report": "report.html",
}
_LIBRARIES = ("numpy", "torch", "numba", "triton", "safetensors", "jsonargparse")


class RunFolder:
    """Paths and writers of one run; `folder.weights` is the path of the weights, and so on for every key of `FILES`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __getattr__(self, name: str) -> Path:
        if name not in FILES:
            raise AttributeError(name)
        return self.path / FILES[name]

    @classmethod
    def create(cls, path: str | Path | None, name: str, overwrite: bool) -> RunFolder:
        """A new folder; without `path` the first free one of `runs/NAME`, `runs/NAME-2`, ...

        Raises:
            FileExistsError: `path` holds a run and `overwrite` is off, or another process is at work in it.
        """
        if path is None:
            path = _first_free(Path("runs"), name)
        folder = cls(path)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.claim()
        occupied = [file for file in FILES.values() if (folder.path / file).exists()]
        if folder.weights.exists() and not overwrite:  # without weights it cannot be resumed either
            raise FileExistsError(
                f"{folder.path} holds a run ({', '.join(occupied)}); --resume goes on with it, --overwrite replaces it"
            )
        for file in occupied:
            (folder.path / file).unlink()
        if occupied:
            shutil.rmtree(folder.path / "tensorboard", ignore_errors=True)
        return folder

    def claim(self) -> None:
        """Keep other processes from training into the folder until `release`, or for as long as this object lives.

        Raises:
            FileExistsError: another process has it.
        """
        if fcntl is not None:
            self._lock = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(f"another process is at work in {self.path}") from None
            except OSError:
                pass  # a file system without locks

    def release(self) -> None:
        """Give up the claim, if there is one."""
        if "_lock" in self.__dict__:
            os.close(self.__dict__.pop("_lock"))

    def __del__(self) -> None:
        self.release()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`, which a resumed run will write again."""
        records = read_metrics(self.metrics)
        write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in records if r["step"] <= step))

    def edited(self, config: Config) -> list[str]:
        """Fields of config.yaml that are not those of the run's weights; its data and its device may move."""

        def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
            values: dict[str, Any] = {}
            for name, value in mapping.items():
                values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
            return values

        if not self.config.exists():
            return []
        try:
            written = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            written = None
        if not isinstance(written, dict):
            return ["it holds no settings"]
        kept = flat(config_mapping(config))
        changed = {name for name, value in flat(written).items() if kept.get(name) != value}
        return sorted(changed - {"data.root", "device"})

    def doubts(self, trained: Checkpoint) -> list[str]:
        """What a user of the run's last weights should know: that training stopped early, or a file was edited."""
        if not self.path.is_dir():
            return []  # weights of their own
        notes, total = [], trained.config.total_steps
        if trained.step < total:
            notes.append(f"trained for {trained.step} of {total} steps; --resume goes on")
        if changed := self.edited(trained.config):
            notes.append(f"{self.config} was edited ({', '.join(changed)}); the run's own settings count")
        return notes

    def write_environment(self, device: str, backends: Mapping[str, str], command: list[str]) -> None:
        """Write env.json: versions, machine, device, backends in use, git state of the working folder."""
        versions = {}
        for library in _LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[library] = metadata.version(library)
        write_json(
            self.environment,
            {
                "ahlm": ahlm.__version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "libraries": versions,
                "device": device,
                "backends": dict(backends),
                "command": command,
                "git": git_state(),
            },
        )


def _first_free(folder: Path, name: str) -> Path:
    """NAME, NAME-2, ... in a folder, made here, so that two runs which start together get two."""
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl, if there is one; a last line cut off by a crash is dropped."""
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise DataError(path, f"line {number + 1}", "a JSON object", line[:40]) from None
    return records


def git_state() -> dict[str, Any] | None:
    """Commit and whether files were changed, of the current folder; none outside a repository."""
    if shutil.which("git") is None:
        return None
    answers = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        if answer.returncode:
            return None
        answers.append(answer.stdout.strip())
    return {"commit": answers[0], "changed_files": len(answers[1].splitlines())}
