"""Untrimmed "videos" from UCI's "Smartphone-Based Recognition of Human Activities and Postural Transitions".

The recordings (3-axis acceleration and angular rate at 50 Hz, CC BY 4.0) are continuous, and the labels say to the
sample when an activity goes on: temporal localisation on real signals. They are cut into pieces of 60 to 140 snippets,
rests from 31 on kept; walks and postural transitions are actions, postures are background.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ahlm.data.write import begin, write_array, write_spec
from ahlm.errors import DataError
from ahlm.files import write_json, write_text
from ahlm.timeline import FeatureSpec

RATE, WINDOW = 50, 32  # samples a second, samples a snippet
ACTIONS = {1: "walking", 2: "walking_upstairs", 3: "walking_downstairs"}
ACTIONS |= {7: "stand_to_sit", 8: "sit_to_stand", 9: "sit_to_lie", 10: "lie_to_sit", 11: "stand_to_lie"}
ACTIONS |= {12: "lie_to_stand"}
TRAIN_USERS = range(1, 21)
PIECE = (60, 140)  # snippets of a video, drawn uniformly
SHORTEST = 30  # a rest of no more snippets is dropped
N_FREQUENCIES = 8
# an action cut by the end of a piece stays if half of it, or this many samples, are in the piece
KEPT_SHARE, KEPT_SAMPLES = 0.5, 100


def convert_hapt(
    source: str | Path,
    out: str | Path,
    *,
    test_users: tuple[int, int] = (21, 25),
    seed: int = 5,
    progress: bool = False,
) -> list[str]:
    """Write the recordings in ACM-Net's layout; users 1 to 20 train.

    Args:
        source: UCI's zip file.
        out: folder to write to; `gt.json` comes last.
        test_users: first and last user of the test split.
        seed: of the pieces' lengths.
        progress: show a bar on a terminal.

    Returns:
        What was done, a line each.

    Raises:
        DataError: not that zip file.
    """
    out = Path(out)
    with _open(Path(source)) as files:
        rows = _table(files, r"(^|/)RawData/labels\.txt$", 5).astype(np.int64)
        recordings = sorted({(int(experiment), int(user)) for experiment, user, *_ in rows})
        signals = {}
        for experiment, user in tqdm(recordings, desc="read", unit="recording", disable=None if progress else True):
            name = rf"_exp{experiment:02d}_user{user:02d}\.txt$"
            halves = [_table(files, rf"(^|/){sensor}{name}", 3) for sensor in ("acc", "gyro")]
            if len(halves[0]) != len(halves[1]):
                got = f"{len(halves[0])} and {len(halves[1])}"
                raise DataError(source, f"recording {experiment}", "as many samples of acc as of gyro", got)
            signals[experiment] = np.concatenate(halves, axis=1)
    users = {"train": TRAIN_USERS, "test": range(test_users[0], test_users[1] + 1)}
    present = {split: [e for e, user in recordings if user in own] for split, own in users.items()}
    for split, experiments in present.items():
        if not experiments:
            raise DataError(source, f"{split} users", f"recordings of {users[split][0]} to {users[split][-1]}", "none")
    training = np.concatenate([signals[experiment] for experiment in present["train"]])
    mean, deviation = training.mean(0), training.std(0)
    rng = np.random.default_rng(seed)
    begin(out)
    database: dict[str, Any] = {}
    for split, experiments in present.items():
        names = []
        for experiment in experiments:
            features = snippet_features((signals[experiment] - mean) / deviation)
            own = rows[rows[:, 0] == experiment, 2:]
            for first, last in _pieces(len(features), rng):
                actions = _actions(own, first * WINDOW, last * WINDOW)
                if not actions:
                    continue
                name = f"hapt_exp{experiment:02d}_{first:04d}"
                names.append(name)
                write_array(out / split / f"{name}.npy", features[first:last].astype(np.float16))
                duration = round((last - first) * WINDOW / RATE, 3)
                database[name] = {"subset": split, "duration": duration, "annotations": actions}
        write_text(out / f"split_{split}.txt", "".join(f"{name}\n" for name in names))
    kind = "32-sample windows of acceleration and angular rate at 50 Hz: samples, statistics, FFT magnitudes"
    write_spec(out, FeatureSpec(RATE, WINDOW, WINDOW), features.shape[1], kind)
    write_json(out / "gt.json", {"version": "hapt", "taxonomy": sorted(ACTIONS.values()), "database": database})
    counts = [sum(entry["subset"] == split for entry in database.values()) for split in present]
    return [f"{counts[0]} train and {counts[1]} test videos, {features.shape[1]} features a snippet -> {out}"]


def snippet_features(signal: NDArray[np.float64]) -> NDArray[np.float32]:
    """Features of standardised samples [n, 6] as [n // 32, 264].

    A snippet's 32 samples of 6 channels, their mean, deviation, minimum and maximum, and 8 FFT magnitudes a channel.
    """
    n = len(signal) // WINDOW
    windows = signal[: n * WINDOW].reshape(n, WINDOW, signal.shape[1])
    mean = windows.mean(1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(windows - mean, axis=1))[:, 1 : N_FREQUENCIES + 1] / WINDOW
    statistics = [mean[:, 0], windows.std(1), windows.min(1), windows.max(1)]
    return np.concatenate([windows.reshape(n, -1), *statistics, spectrum.reshape(n, -1)], axis=1).astype(np.float32)


def _pieces(n_snippets: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    first = 0
    while first < n_snippets - SHORTEST:
        last = min(n_snippets, first + int(rng.integers(PIECE[0], PIECE[1] + 1)))
        yield first, last
        first = last


def _actions(rows: NDArray[np.int64], first: int, last: int) -> list[dict[str, Any]]:
    """Annotations of the piece of samples `first` to `last`, from rows (activity, start, end) of its recording."""
    actions = []
    for activity, start, end in rows.tolist():
        low, high = max(start, first), min(end, last)
        if activity in ACTIONS and (high - low >= KEPT_SHARE * (end - start) or high - low > KEPT_SAMPLES):
            segment = [round((low - first) / RATE, 3), round((high - first) / RATE, 3)]
            actions.append({"label": ACTIONS[activity], "segment": segment})
    return actions


@contextmanager
def _open(source: Path) -> Iterator[zipfile.ZipFile]:
    """The archive with the recordings; UCI also serves it inside another one."""
    try:
        with zipfile.ZipFile(source) as outer:
            names = outer.namelist()
            inner = [name for name in names if name.endswith(".zip")]
            if any(name.endswith("labels.txt") for name in names) or len(inner) != 1:
                yield outer
            else:
                with zipfile.ZipFile(io.BytesIO(outer.read(inner[0]))) as archive:
                    yield archive
    except FileNotFoundError:
        raise DataError(source, "file", "UCI's HAPT zip", "no such file") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(source, "file", "UCI's HAPT zip", error) from None


def _table(files: zipfile.ZipFile, pattern: str, columns: int) -> NDArray[np.float64]:
    found = [name for name in files.namelist() if re.search(pattern, name)]
    if len(found) != 1:
        raise DataError(files.filename or "HAPT zip", pattern, "one file of this name", len(found))
    try:
        table = np.loadtxt(io.BytesIO(files.read(found[0])), np.float64, ndmin=2)
    except ValueError as error:
        raise DataError(found[0], "file", f"{columns} numbers a line", error) from None
    if table.shape[1] != columns or not np.isfinite(table).all():
        raise DataError(found[0], "file", f"{columns} finite numbers a line", list(table.shape))
    return table
