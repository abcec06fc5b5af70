from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ahlm.ablate import main
from ahlm.ablation import experiment as experiments
from ahlm.ablation import trainings as trainings_module
from ahlm.ablation.rows import FULL, all_rows, replaced
from ahlm.ablation.trainings import PlainMIL, Trainings
from ahlm.arguments import load_recipe
from ahlm.config import ClassifierConfig, Config
from ahlm.data.dataset import FeatureDataset, Video
from ahlm.data.sampling import collate
from ahlm.data.synthetic import demo_dataset, write_demo
from ahlm.model.losses import classifier_loss
from ahlm.timeline import FeatureSpec
from ahlm.train import Trainer, new_model

TINY = ["--detector_optim.iterations=4", "--classifier_optim.iterations=5", "--resamples=20", "--seeds", "0"]


def tiny_config(**fields: object) -> Config:
    settings = {"detector_optim.iterations": 4, "classifier_optim.iterations": 5, **fields}
    return replaced(load_recipe("demo"), settings)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both tables of the paper; tests work on copies."""
    folder = tmp_path_factory.mktemp("ablation") / "out"
    assert main([*TINY, "--output-dir", str(folder), "--only", "table3", "table4"]) == 0
    return folder


@pytest.fixture(scope="module")
def dataset() -> FeatureDataset:
    return demo_dataset("train")


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


def read(folder: Path, split: str = "validation") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{split}.json").read_text())
    return content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "trainings").iterdir())


def test_tables_share_one_detector_and_four_classifiers(done: Path) -> None:
    assert [name.split("-")[0] for name in names(done)] == ["classifier"] * 4 + ["detector"]
    assert not list(done.rglob("state.pt"))
    summary = read(done)
    assert [row["name"] for row in summary["rows"]] == [
        row.name for row in all_rows(tiny_config()) if row.group in ("table3", "table4")
    ]
    by_name = {row["name"]: row for row in summary["rows"]}
    full = by_name["fg + bg + context, DFC"]
    assert full["gain"]["value"] == pytest.approx(full["average"]["mean"] - by_name[full["against"]]["average"]["mean"])
    assert full["gain"]["low"] <= full["gain"]["high"]
    assert {"detected", "foreground"} == full["change_points"].keys()
    assert "change_points" not in by_name["fg"]
    text = (done / "validation.md").read_text()
    assert "## table3" in text
    assert "35 instances of 3 classes in 8 videos" in text


def test_the_picture_is_an_extra(done: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (done / "validation.svg").read_text().startswith("<?xml")


def test_nothing_is_done_twice(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    before = read(copy)
    with monkeypatch.context() as patch:
        patch.setattr(experiments.Experiment, "_compute", forbidden)
        assert main([*TINY, "--output-dir", str(copy), "--only", "table3", "table4"]) == 0
    assert read(copy)["rows"] == before["rows"]
    # what only changes inference makes new rows of the old trainings
    monkeypatch.setattr(trainings_module, "fit", forbidden)
    assert main([*TINY, "--output-dir", str(copy), "--only", "table4", "--localization.oic_margin=0.9"]) == 0
    assert read(copy)["rows"][0]["average"] != before["rows"][6]["average"]
    with pytest.raises(AssertionError, match="computed again"):
        main([*TINY, "--output-dir", str(copy), "--only", "table4", "--classifier.dropout=0.6"])


@pytest.mark.parametrize(
    ("field", "value", "classifier", "detector"),
    [
        ("seed", 1, True, True),
        ("classifier.context_weight", 0.0, True, False),
        ("classifier_optim.lr", 1e-2, True, False),
        ("detector.reset", False, False, True),
        ("detector_optim.iterations", 3, False, True),
        ("precision", "bf16", True, True),
        ("classifier.passes", 2, False, False),
        ("classifier.width", 64, True, True),  # the detector's first weights come after the classifier's
        ("localization.nms_tiou", 0.1, False, False),
        ("refinement.enabled", False, False, False),
        ("detector.both_directions", True, False, False),
        ("detector.lone_ratio", 0.2, False, False),
    ],
)
def test_a_training_depends_on_its_own_settings(
    dataset: FeatureDataset, tmp_path: Path, field: str, value: object, classifier: bool, detector: bool
) -> None:
    trainings = Trainings(tmp_path, dataset, "cpu")
    changed = [
        trainings.key(tiny_config(), part) != trainings.key(tiny_config(**{field: value}), part)
        for part in ("classifier", "detector")
    ]
    assert changed == [classifier, detector]
    fewer = Trainings(tmp_path, dataset.subset(range(30)), "cpu")
    assert fewer.key(tiny_config(), "detector") != trainings.key(tiny_config(), "detector")


TAUGHT = {"classifier.segment_from": 4, "classifier.segment_weight": 1.0}


@pytest.mark.parametrize(("field", "value"), [("detector.reset", False), ("detector.both_directions", True)])
def test_a_taught_classifier_depends_on_its_teacher(
    dataset: FeatureDataset, tmp_path: Path, field: str, value: bool
) -> None:
    trainings, config = Trainings(tmp_path, dataset, "cpu"), tiny_config(**TAUGHT)
    other = replaced(config, {field: value})
    assert trainings.key(config, "classifier") != trainings.key(other, "classifier")
    assert trainings.key(config, "classifier") != trainings.key(tiny_config(), "classifier")
    assert trainings.key(config, "detector") == trainings.key(tiny_config(), "detector")


@pytest.mark.parametrize("settings", [{}, {"detector.shared_embedding": True}, TAUGHT])
def test_modules_trained_apart_are_those_trained_together(
    dataset: FeatureDataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = tiny_config(**settings)
    together = Trainer(new_model(dataset, config), dataset, config)
    while together.step < together.total_steps:
        together.train_step()
    apart = Trainings(tmp_path, dataset, "cpu").checkpoint(config)
    assert len(list(tmp_path.iterdir())) == (1 if config.detector.shared_embedding else 2)
    assert apart.config == config
    for name, value in together.model.state_dict().items():
        assert torch.equal(value, apart.model.state_dict()[name]), name


def test_stopped_in_a_training_it_goes_on_to_the_same_figures(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, step = [0], Trainer.train_step

    def stop_at_seventh(trainer: Trainer) -> dict[str, float]:
        steps[0] += 1
        if steps[0] == 7:  # the second step of the second training
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stop_at_seventh)
    command = [*TINY, "--output-dir", str(tmp_path), "--only", "table4"]
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("state.pt"))) == 1
    assert main(command) == 0
    assert steps[0] == 5 + 4, "each step was done once"
    assert read(tmp_path)["rows"] == read(done)["rows"][-2:]


def test_plain_mil_ignores_attention() -> None:
    config = ClassifierConfig(width=16, dropout=0.0, topk_foreground=4)
    torch.manual_seed(0)
    model = PlainMIL(8, 3, config)
    snippets, lengths = collate(
        [np.random.default_rng(i).normal(size=(n, 8)).astype("f") for i, n in enumerate((9, 2))]
    )
    output = model(snippets, lengths)
    assert output.attention.unique(dim=1).squeeze(1).tolist() == [[1, 0, 0], [1, 0, 0]]
    torch.testing.assert_close(output.foreground_cas(), torch.softmax(output.cas, -1)[..., :-1])
    expected = output.cas[0, :9].topk(2, dim=0).values.mean(0)  # 9 // 4 snippets
    torch.testing.assert_close(output.video_logits[0, 0], expected)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    # the other branches have nothing to learn
    foreground, every = (
        torch.autograd.grad(
            classifier_loss(output, labels, lengths, dataclasses.replace(config, context_weight=w)).total,
            model.classifier.weight,
            retain_graph=True,
        )[0]
        for w in (0.0, 1.0)
    )
    torch.testing.assert_close(foreground, every)
    assert torch.autograd.grad(output.video_logits.sum(), model.attention.weight, allow_unused=True) == (None,)


def test_controls_detectors_and_the_test_split(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ahlm.ablate.importlib.util.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["--only", "controls", "feature difference", "KernelCPD, rbf"]
    assert main([*TINY, "--output-dir", str(copy), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "rows of KernelCPD are left out: they need ruptures (pip install 'ahlm[bench]')" in printed
    assert "the picture needs matplotlib: pip install 'ahlm[viz]'" in printed
    assert "closes" in printed
    rows = {row["name"]: row for row in read(copy)["rows"]}
    assert rows["true boundaries (oracle)"]["change_points"]["detected"]["f1"]["mean"] == 1
    assert rows["every third edge"]["change_points"]["detected"]["rate"]["mean"] == pytest.approx(1 / 3, abs=0.01)
    detected = rows[FULL]["change_points"]["detected"]["rate"]["mean"]
    for name in ("random, detector's rate", "uniform, detector's rate"):
        assert rows[name]["change_points"]["detected"]["rate"]["mean"] == pytest.approx(detected)
    difference = rows["feature difference"]
    assert difference["points_settings"]["tuning_f1"] == difference["change_points"]["detected"]["f1"]["mean"]
    assert not any(name.startswith("Kernel") for name in rows)

    assert main([*TINY, "--output-dir", str(copy), "--split", "test", "--only", FULL]) == 0
    printed = capsys.readouterr().out
    assert "40 videos" in printed
    assert "100 instances of 4 classes in 20 videos" in printed
    assert "The test split is read here" in printed


def test_errors(dataset: FeatureDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocols = (["--protocol", name] for name in ("thumos14-210", "thumos14-snippet-unfiltered"))
    for options in (*protocols, ["--seeds", "-1"], ["--seeds", "0", "0"]):
        with pytest.raises(SystemExit) as wrong:
            main([*TINY, "--output-dir", str(tmp_path / "out"), *options])
        assert wrong.value.code == 2
    assert not (tmp_path / "out").exists()
    assert main([*TINY, "--output-dir", str(tmp_path / "out"), "--only", "table9"]) == 2
    assert "got 'table9'" in capsys.readouterr().err
    assert main([*TINY, "--output-dir", str(tmp_path / "out"), "--localization.proposals=thresholds"]) == 2
    assert "localization.proposals must be" in capsys.readouterr().err
    rows = ["video,label"]
    (tmp_path / "data").mkdir()
    for i, video in enumerate(dataset.videos):
        np.save(tmp_path / "data" / f"{video.id}.npy", dataset.features(i))
        rows += [f"{video.id},{label}" for label in video.labels]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    root = str(tmp_path / "data")
    assert main([*TINY, "--config", "demo", "--data.root", root, "--output-dir", str(tmp_path / "out")]) == 3
    assert "validation videos: expected segments to compare with, got none" in capsys.readouterr().err
    write_demo(tmp_path / "mixed")
    (tmp_path / "mixed" / "features.json").unlink()
    for path in (tmp_path / "mixed" / "test").iterdir():
        np.save(path, np.zeros((9, 32), np.float32))
    mixed = ["--config", "demo", "--data.root", str(tmp_path / "mixed"), "--split", "test"]
    assert main([*TINY, *mixed, "--output-dir", str(tmp_path / "out")]) == 3
    assert "feature_dim of the test split: expected 64 as in training, got 32" in capsys.readouterr().err


def test_the_hash_of_a_split_knows_tags() -> None:
    one, other = ([Video("a", np.ones((3, 2), np.float32), (tag,))] for tag in ("run", "fly"))
    made = [FeatureDataset(videos, ("fly", "run"), FeatureSpec()) for videos in (one, other)]
    assert made[0].fingerprint != made[1].fingerprint


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_figures(done: Path, tmp_path: Path) -> None:
    """SIGKILL again and again, in the middle of files being written included."""
    command = [sys.executable, "-m", "ahlm.ablate", *TINY, "--save_every=1", "--only", "table3", "table4"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def call(folder: Path, timeout: float | None) -> bool:
        """Whether it ended before it was killed."""
        arguments = [*command, "--output-dir", str(folder)]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            assert process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True

    started = time.monotonic()
    call(tmp_path / "whole", None)
    whole = time.monotonic() - started
    rng, kills = np.random.default_rng(0), 0
    for trial in range(20):
        for attempt in range(4):
            # most of a call is spent on starting; the last may end, however slow the machine
            if call(tmp_path / str(trial), float(rng.uniform(0.5, 1)) * whole if attempt < 3 else None):
                break
            kills += 1
        assert read(tmp_path / str(trial))["rows"] == read(done)["rows"]
        if kills >= 4:
            return
    pytest.fail(f"only {kills} kills in 20 runs")


@pytest.mark.slow
def test_whole_ablation_of_the_demo(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    assert main(["--output-dir", str(tmp_path), "--seeds", "0"]) == 0
    rows = {row["name"]: row for row in read(tmp_path)["rows"]}
    assert rows.keys() == {row.name for row in all_rows(load_recipe("demo"))}
    average = {name: row["average"]["mean"] for name, row in rows.items()}
    assert average["true boundaries (oracle)"] > average[FULL] > average["random, detector's rate"] + 0.05
    f1 = {name: row["change_points"]["detected"]["f1"]["mean"] for name, row in rows.items() if "change_points" in row}
    assert f1[FULL] > f1["literal reading"] + 0.1
    assert rows["literal reading"]["f1_gain"]["detected"]["high"] < 0
    for name in ("KernelCPD, rbf", "feature difference", "slow-feature difference"):
        assert f1[name] > f1["random, detector's rate"] + 0.2
