from __future__ import annotations

import copy
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml

import ahlm
from ahlm.ablation.rows import replaced
from ahlm.arguments import config_from, config_mapping, config_parser, load_recipe, parse, recipes
from ahlm.checkpoint import Checkpoint, load_state, load_weights, save_weights
from ahlm.config import ClassifierConfig, Config, DetectorConfig, OptimConfig
from ahlm.data.dataset import FeatureDataset, Video
from ahlm.data.sampling import collate
from ahlm.data.synthetic import demo_dataset, piecewise_constant, write_demo
from ahlm.errors import DataError
from ahlm.evaluation import evaluate
from ahlm.evaluation.boundaries import change_point_scores
from ahlm.evaluation.protocols import PROTOCOLS
from ahlm.infer import Predictor, VideoAnalysis, predict, score
from ahlm.infer import main as infer
from ahlm.model.losses import segment_loss
from ahlm.report.__main__ import main as report
from ahlm.run_folder import FILES, RunFolder, read_metrics
from ahlm.timeline import FeatureSpec
from ahlm.train import Trainer, classifier_batch, firing, fit, main, new_model

SHORT = ["--detector_optim.iterations=6", "--classifier_optim.iterations=8"]


def short_config(**fields: object) -> Config:
    config = load_recipe("demo", **fields)
    return dataclasses.replace(
        config,
        detector_optim=dataclasses.replace(config.detector_optim, iterations=6),
        classifier_optim=dataclasses.replace(config.classifier_optim, iterations=8),
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_recipes_round_trip() -> None:
    assert set(recipes()) >= {"thumos14", "activitynet13", "ucf15", "hapt", "demo"}
    for name in recipes():
        config = load_recipe(name)
        assert config_from(json.loads(json.dumps(config_mapping(config)))) == config


def test_the_papers_settings() -> None:
    thumos, activitynet = load_recipe("thumos14"), load_recipe("activitynet13")
    assert (thumos.classifier_optim.lr, thumos.classifier_optim.weight_decay) == (1e-4, 5e-4)
    assert (thumos.classifier_optim.batch_size, thumos.classifier.n_snippets) == (16, 750)
    assert (activitynet.classifier_optim.batch_size, activitynet.classifier.n_snippets) == (64, 150)
    assert (thumos.detector.width, thumos.detector.state_size, thumos.detector.level1) == (1024, 256, "gru")
    assert (thumos.detector.alpha, thumos.detector.beta_range) == (0.15, (0.15, 0.9))


def test_command_line_overrides_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    parser = config_parser("train", "")
    config, _ = parse(parser, ["--config", "hapt", "--detector.latent_size", "7", "--seed=3"])
    assert (config.detector.latent_size, config.detector.look_ahead, config.seed) == (7, 2, 3)
    with pytest.raises(SystemExit) as wrong:
        parse(parser, ["--detector.latnt_size", "7"])
    assert wrong.value.code == 2
    assert "latnt_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "ucf51"], "--config: expected a YAML file or one of activitynet13, demo, hapt, thumos14, ucf15"),
        (["--detector_optim.iteration", "3"], "detector_optim.iteration"),  # no guess at what was meant
    ],
)
def test_command_lines_are_taken_at_their_word(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as wrong:
        main(argv)
    assert wrong.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_field_in_a_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("detector: {latnt_size: 3}\n")
    with pytest.raises(SystemExit) as wrong:
        main(["--config", str(path)])
    assert wrong.value.code == 2
    assert "latnt_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--seed=-1", "seed must be in 0 .. 2^63 - 1, got -1"),
        ("--seed=99999999999999999999", "seed must be in 0 .. 2^63 - 1, got 99999999999999999999"),
        ("--localization.max_segments=0", "localization.max_segments must be at least 1, got 0"),
        ("--localization.threshold_weight=2", "localization.threshold_weight must be in (0, 1], got 2"),
        ("--localization.extend=-1", "localization.extend must be at least 0, got -1"),
        ("--localization.cas_thresholds=[.nan]", "localization.cas_thresholds must be finite, got (nan,)"),
        ("--refinement.lcs_ratio=0", "refinement.lcs_ratio must be in (0, 1], got 0"),
        ("--refinement.max_rounds=0", "refinement.max_rounds must be at least 1, got 0"),
        ("--refinement.cosine_threshold=1.5", "refinement.cosine_threshold must be in [-1, 1], got 1.5"),
        ("--classifier.passes=0", "classifier.passes must be at least 1, got 0"),
        ("--classifier_optim.weight_decay=-1", "classifier_optim.weight_decay must be at least 0, got -1"),
        ("--detector_optim.clip_norm=-1", "detector_optim.clip_norm must be at least 0, got -1"),
        ("--detector.belief_weight=7", "detector.belief_weight must be in [0, 1], got 7"),
        (
            "--detector.beta_range=[0.9,0.1]",
            "detector.beta_range must be two rising numbers of at least 0, got 0.9, 0.1",
        ),
        ("--localization.gamma=.nan", "localization.gamma must be finite, got nan"),
        ("--detector_weight=-1", "detector_weight must be at least 0, got -1"),
        ("--classifier.guide_weight=-1", "classifier.guide_weight must be at least 0, got -1"),
        (
            "--detector={shared_embedding: true, standardise: slow}",
            "must not be slow with shared_embedding",
        ),
        ("--classifier_optim.decay_at=2", "classifier_optim.decay_at must be in [0, 1], got 2"),
        ("--detector={belief_weight: 0, evidence_weight: 0}", "belief_weight and evidence_weight must not both be 0"),
        ("--save_every=0", "save_every must be at least 1, got 0"),
        ("--data.fps=0", "data.fps must be a positive number, got 0"),
        ("--data.validation=1.5", "data.validation must be in [0, 1), got 1.5"),
        ("--classifier.width=0", "classifier.width must be at least 1, got 0"),
        ("--localization.cas_thresholds=[]", "localization must have cas_thresholds"),
        ("--protocol=thumos15", "thumos14-210"),
    ],
)
def test_settings_that_cannot_work_are_usage_errors(
    setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as wrong:
        parse(config_parser("train", ""), [setting])
    assert wrong.value.code == 2
    assert message in capsys.readouterr().err


def test_choices_are_checked_without_a_command_line_too() -> None:
    with pytest.raises(ValueError, match=r"detector\.level1 must be one of gru, simple, got 'lstm'"):
        Config(detector=DetectorConfig(level1="lstm"))  # type: ignore[arg-type]


def test_a_backend_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AHLM_BACKEND", "gpu")
    assert main([*SHORT, "--output-dir", str(tmp_path / "run")]) == 3
    assert "AHLM_BACKEND must be auto or one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_state_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": {}, "step": 3}, tmp_path / "state.pt")
    with pytest.raises(DataError, match="one without best_validation, data, optimizers, scaler"):
        load_state(tmp_path / "state.pt")


def test_a_run_takes_every_protocol_that_needs_no_list() -> None:
    offered = get_args(get_type_hints(Config)["protocol"])
    assert offered == tuple(name for name, protocol in PROTOCOLS.items() if not protocol.ambiguous)


def test_run_folder_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*SHORT, "--output-dir", str(run), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "device cpu" in printed
    assert "note: without --data.root these are the generated videos of the demo" in printed
    assert "0.64 s a snippet" in printed
    for name in ("config", "environment", "metrics", "weights", "state", "predictions", "evaluation", "report"):
        assert (run / FILES[name]).is_file(), name
    assert not list(run.glob(".*")), "temporary files are left"
    environment = json.loads((run / FILES["environment"]).read_text())
    assert environment["backends"]["lcs"] == "numba"
    last = read_metrics(run / FILES["metrics"])[-1]
    assert last["step"] == 8
    assert {"loss_efc", "seconds_per_step"} <= last.keys()
    evaluation = json.loads((run / FILES["evaluation"]).read_text())
    assert evaluation["checkpoint"] == "last"
    assert evaluation["counts"]["videos"] == 20
    predictions = json.loads((run / FILES["predictions"]).read_text())
    assert {"version", "results", "external_data", "ahlm"} <= predictions.keys()
    # the file scores as the run said, and the configuration file makes the same run
    assert evaluate(demo_dataset("test").ground_truth("test"), run / FILES["predictions"]).mAP == evaluation["mAP"]
    assert (
        parse(config_parser("x", ""), ["--config", str(run / "config.yaml")])[0]
        == load_weights(run / FILES["weights"]).config
    )
    # not overwritten unless asked
    assert main([*SHORT, "--output-dir", str(run)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    before = (run / FILES["evaluation"]).read_text()
    assert main(["--eval-only", str(run)]) == 0
    assert (run / FILES["evaluation"]).read_text() == before


def test_same_seed_same_weights_other_seed_others() -> None:
    dataset = demo_dataset("train")
    runs = []
    for seed in (0, 0, 1):
        config = short_config(seed=seed)
        trainer = Trainer(new_model(dataset, config), dataset, config)
        for _ in range(3):
            trainer.train_step()
        runs.append(weights(trainer))
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(runs[0].values(), runs[2].values(), strict=True))


@pytest.mark.parametrize(
    ("stop_at", "precision", "taught"),
    [(1, "fp32", 0), (4, "fp32", 0), (7, "fp32", 0), (4, "bf16", 0), (4, "fp16", 0), (4, "fp32", 1), (7, "bf16", 1)],
)
def test_resume_gives_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, stop_at: int, precision: str, taught: float
) -> None:
    settings = {"precision": precision, "classifier.segment_from": 6, "classifier.segment_weight": taught}
    dataset, config = demo_dataset("train"), replaced(short_config(), settings)
    whole = Trainer(new_model(dataset, config), dataset, config)
    fit(whole, RunFolder.create(tmp_path / "whole", "", False), progress=False)

    folder = RunFolder.create(tmp_path / "parts", "", False)
    first = Trainer(new_model(dataset, config), dataset, config)
    for _ in range(stop_at):
        first.train_step()
    first.total_steps = stop_at  # ends here: fit only saves
    fit(first, folder, progress=False)
    second = Trainer(new_model(dataset, config), dataset, config)
    second.restore(load_state(folder.state))
    fit(second, folder, progress=False)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


def test_change_points_teach_once_they_are_found() -> None:
    dataset = demo_dataset("train")
    plain = short_config()
    config = replaced(plain, {"classifier.segment_from": 6, "classifier.segment_weight": 0.5})
    trainers = [Trainer(new_model(dataset, c), dataset, c) for c in (plain, config)]
    for step in range(8):
        alone, taught = (trainer.train_step() for trainer in trainers)
        assert ("loss_segment" in taught) == (step >= 6)
        assert (taught["loss_efc"] == alone["loss_efc"]) == (step <= 6)
        assert trainers[1].model.training
    assert "loss_segment" not in alone
    segments = trainers[1].segments()
    analyses = Predictor(trainers[1].checkpoint()).analyse_dataset(dataset, progress=False)
    for row, analysis in zip(segments, analyses, strict=True):
        starts = row[: len(analysis.cas)].diff().nonzero()[:, 0] + 1
        assert starts.tolist() == analysis.change_points.tolist()


def test_what_a_step_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The term by hand, of the step's own snippets; and its weight is that of its gradient."""
    dataset, moved = demo_dataset("train"), []
    rng = np.random.default_rng(0)
    found = [np.flatnonzero(rng.random(dataset.n_snippets(i) - 1) < 0.2) + 1 for i in range(len(dataset))]
    monkeypatch.setattr(Predictor, "change_points", lambda _self, _dataset: found)
    for weight in (0.0, 0.5, 1.0):
        config = replaced(short_config(), {"classifier.segment_from": 6, "classifier.segment_weight": weight})
        trainer = Trainer(new_model(dataset, config), dataset, config)
        trainer.step = 6
        labels = torch.from_numpy(dataset.label_matrix())
        snippets, lengths, batch_labels, videos, indices = classifier_batch(dataset, labels, config, 6)
        for row, video, index in zip(snippets, videos.tolist(), indices, strict=True):
            assert torch.equal(row, torch.from_numpy(dataset.features(video)[index.numpy()]))
        segments = torch.stack(
            [
                torch.from_numpy(np.searchsorted(found[video], index, side="right"))
                for video, index in zip(videos.tolist(), indices.numpy(), strict=True)
            ]
        )
        model = copy.deepcopy(trainer.model)
        record = trainer.train_step()
        moved.append(torch.cat([p.grad.flatten() for p in trainer.model.classifier.parameters() if p.grad is not None]))
        torch.manual_seed(torch.initial_seed())
        if weight:
            output = model.classify(snippets, lengths)
            expected = segment_loss(output, model.classifier.activity(output), batch_labels, lengths, segments)
            assert record["loss_segment"] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(moved[2] - moved[0], 2 * (moved[1] - moved[0]), rtol=1e-3, atol=1e-6)
    assert (moved[1] - moved[0]).abs().max() > 1e-4


def test_change_points_of_an_unfinished_detector_teach_nobody() -> None:
    with pytest.raises(ValueError, match=r"segment_from must be at least detector_optim\.iterations, 6, got 5"):
        replaced(short_config(), {"classifier.segment_from": 5, "classifier.segment_weight": 1.0})
    with pytest.raises(
        ValueError, match=r"classifier_optim\.iterations must exceed classifier\.segment_from, 8, got 8"
    ):
        replaced(short_config(), {"classifier.segment_from": 8, "classifier.segment_weight": 1.0})
    taught = replaced(short_config(), {"classifier.segment_from": 6, "classifier.segment_weight": 1.0})
    with pytest.raises(ValueError, match="segment_weight must be 0 with shared_embedding"):
        replaced(taught, {"detector.shared_embedding": True})


def test_best_is_chosen_on_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*SHORT, "--output-dir", str(run), "--data.validation", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "train 30 videos (0 missing), validation 10 videos (0 missing), test 20 videos" in printed
    scores = [record for record in read_metrics(run / FILES["metrics"]) if "validation_mAP" in record]
    assert [record["step"] for record in scores] == [8]
    predictor, validation = ahlm.load(run), demo_dataset("train").split_validation(0.25)[1]
    expected = score(predictor, validation, predictor.analyse_dataset(validation, progress=False))[1]
    assert f"best on validation: mAP {100 * expected.headline:.2f} at step 8, kept in {run / FILES['best']}" in printed
    assert expected.change_points is not None
    detected = expected.change_points["detected"]["1"]
    assert {name: scores[0][f"validation_{name}"] for name in detected} == detected
    assert load_weights(run / FILES["best"]).step == 8
    evaluation = json.loads((run / FILES["evaluation"]).read_text())
    assert evaluation["checkpoint"] == "last"
    assert evaluation["best"]["checkpoint"] == "best on validation"


def test_tensorboard_is_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main([*SHORT, "--output-dir", str(tmp_path / "run"), "--tensorboard"]) == 2
    assert "pip install 'ahlm[tb]'" in capsys.readouterr().err


def test_bad_data_leaves_no_folder_behind(tmp_path: Path) -> None:
    assert main(["--data.root", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "run")]) == 3
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_the_features_leave_the_old_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*SHORT, "--output-dir", str(run)]) == 0
    before = sorted(run.iterdir())
    unfit = ["--detector.standardise=slow", "--detector.slow_size=65", "--output-dir", str(run), "--overwrite"]
    assert main([*SHORT, *unfit]) == 2
    assert "detector.slow_size must be within 1 .. 64, the feature dimension, got 65" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before


def test_a_run_that_never_began_is_no_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "", overwrite=False)
    folder.config.touch()
    folder.release()
    RunFolder.create(tmp_path / "run", "", overwrite=False).weights.touch()
    with pytest.raises(FileExistsError, match="--resume goes on with it"):
        RunFolder.create(tmp_path / "run", "", overwrite=False)


def test_a_new_run_deletes_nothing_of_others(tmp_path: Path) -> None:
    curves = tmp_path / "tensorboard" / "events"
    curves.parent.mkdir()
    curves.touch()
    RunFolder.create(tmp_path, "", overwrite=False).metrics.touch()
    assert curves.exists()
    RunFolder.create(tmp_path, "", overwrite=True)
    assert not curves.exists(), "those of the run that is replaced"


def test_a_folder_has_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*SHORT, "--output-dir", str(run)]) == 0
    code = "import sys; from ahlm.run_folder import RunFolder; f = RunFolder(sys.argv[1]); f.claim(); print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(run)], **pipes) as other:  # type: ignore[call-overload]
        other.stdout.readline()
        for command in (["--resume", str(run)], [*SHORT, "--output-dir", str(run), "--overwrite"]):
            assert main(command) == 2
            assert f"another process is at work in {run}" in capsys.readouterr().err
        other.communicate(b"\n")
    assert main(["--eval-only", str(run)]) == 0


def test_evaluating_again_follows_the_timeline_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the frames a second and half of every time are the same videos."""
    data, run = tmp_path / "data", tmp_path / "run"
    write_demo(data)
    assert main([*SHORT, "--config", "demo", "--data.root", str(data), "--output-dir", str(run)]) == 0
    before = json.loads((run / FILES["evaluation"]).read_text())
    spec, truth = (json.loads((data / name).read_text()) for name in ("features.json", "gt.json"))
    spec["fps"] *= 2
    for entry in truth["database"].values():
        entry["duration"] /= 2
        for item in entry["annotations"]:
            item["segment"] = [float(time) / 2 for time in item["segment"]]
    for name, content in (("features.json", spec), ("gt.json", truth)):
        (data / name).write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["--eval-only", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "0.64 s a snippet; of these data features.json says 50 fps" in printed
    assert json.loads((run / FILES["evaluation"]).read_text())["mAP"] == before["mAP"]


def test_evaluating_again_keeps_the_timeline_where_the_data_say_none(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_demo(data)
    (data / "features.json").write_text(json.dumps({"fps": 30, "stride": 15, "window": 15}))
    assert main([*SHORT, "--config", "demo", "--data.root", str(data), "--output-dir", str(run)]) == 0
    before = json.loads((run / FILES["evaluation"]).read_text())
    (data / "features.json").unlink()
    assert main(["--eval-only", str(run)]) == 0
    assert json.loads((run / FILES["evaluation"]).read_text()) == before
    assert main(["--resume", str(run)]) == 0
    assert json.loads((run / FILES["predictions"]).read_text())["ahlm"]["features"]["fps"] == 30


def test_videos_of_both_lists_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_demo(data)
    shutil.copy(data / "test" / "test_003.npy", data / "train")
    with (data / "split_train.txt").open("a") as file:
        file.write("test_003\n")
    assert main([*SHORT, "--config", "demo", "--data.root", str(data), "--output-dir", str(tmp_path / "run")]) == 0
    assert "note: 1 videos are both trained on and tested: test_003" in capsys.readouterr().out


def test_bad_values_of_the_test_split_stop_a_run_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demo(tmp_path / "data")
    path = tmp_path / "data" / "test" / "test_019.npy"
    np.save(path, np.full((3, 64), np.inf, np.float16))
    command = ["--config", "demo", "--data.root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run")]
    assert main([*SHORT, *command]) == 3
    assert f"{path}: value [0, 0]: expected a finite number, got inf" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    for path in (tmp_path / "data" / "test").iterdir():
        np.save(path, np.zeros((9, 32), np.float32))
    (tmp_path / "data" / "features.json").unlink()
    assert main([*SHORT, *command]) == 3
    assert "feature_dim of the test split: expected 64 as in training, got 32" in capsys.readouterr().err


def test_tags_without_segments_train_and_are_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "data")
    truth = json.loads((tmp_path / "data" / "gt.json").read_text())
    for entry in truth["database"].values():
        entry["labels"] = sorted({item["label"] for item in entry.pop("annotations")})
    (tmp_path / "data" / "gt.json").write_text(json.dumps(truth))
    run = tmp_path / "a run"
    command = [*SHORT, "--config", "demo", "--data.root", str(tmp_path / "data"), "--output-dir", str(run)]
    assert main([*command, "--data.validation", "0.25"]) == 3
    assert "expected videos with segments to score, got tags alone" in capsys.readouterr().err
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "note: the 20 videos of the test split have no segments, and are not scored" in printed
    assert f"localise in others with: python -m ahlm.infer --checkpoint '{run}' FILE.npy" in printed
    page = (run / FILES["report"]).read_text()
    assert "Nothing was scored" in page
    assert page.count("<details") == 40
    assert "mAP at tIoU" not in page
    (run / FILES["report"]).unlink()
    assert report([str(run)]) == 0
    assert (run / FILES["report"]).read_text() == page
    assert main(["--eval-only", str(run)]) == 3
    assert "test split: expected videos with segments to score, got none" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_demo(data)
    assert main([*SHORT, "--config", "demo", "--data.root", str(data), "--output-dir", str(run)]) == 0
    truth, features = data / "gt.json", data / "train" / "train_007.npy"
    content, array = json.loads(truth.read_text()), np.load(features)
    for item in content["database"]["train_000"]["annotations"]:
        item["label"] = "Jump" if item["label"] == "Spin" else "Spin"
    truth_before = truth.read_text()
    truth.write_text(json.dumps(content))
    assert main(["--resume", str(run)]) == 3
    assert f"videos, labels and features as {run} began with, got others (train anew" in capsys.readouterr().err
    content = json.loads(truth_before)
    content["database"]["train_000"]["annotations"][0]["segment"] = [0.1, 0.2]
    truth.write_text(json.dumps(content))  # training never reads segments
    assert main(["--resume", str(run)]) == 0
    np.save(features, array[::-1])
    assert main(["--resume", str(run)]) == 3
    np.save(features, array)
    assert main(["--resume", str(run)]) == 0


def test_what_is_doubtful_of_a_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "run", "", False)
    config, dataset = short_config(), demo_dataset("train")
    trainer = Trainer(new_model(dataset, config), dataset, config)
    trainer.train_step()
    trainer.total_steps = 1  # stopped after it
    fit(trainer, run, progress=False)
    run.release()
    text = yaml.safe_dump(config_mapping(config))
    run.config.write_text(text)
    stopped = "note: trained for 1 of 8 steps; --resume goes on"
    np.save(tmp_path / "a.npy", demo_dataset("test").features(0))
    commands = [
        lambda: main(["--eval-only", str(run.path)]),
        lambda: report([str(run.path)]),
        lambda: infer(["--checkpoint", str(run.path), str(tmp_path / "a.npy"), "--output", str(tmp_path / "o.json")]),
    ]
    for command in commands:
        assert command() == 0
        assert stopped in capsys.readouterr().out
    run.config.write_text(text.replace("nms_tiou: 0.55", "nms_tiou: 0.3"))
    (tmp_path / "o.json").unlink()
    for command in commands[1:]:
        assert command() == 0
        assert "config.yaml was edited (localization.nms_tiou); the run's own settings count" in capsys.readouterr().out
    assert infer(["--checkpoint", str(run.weights), str(tmp_path / "a.npy"), "--output", str(tmp_path / "p.json")]) == 0
    assert "note:" not in capsys.readouterr().out  # weights of their own


def test_earlier_runs_keep_their_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", str(tmp_path / "run")
    write_demo(data)
    command = [*SHORT, "--config", "demo", "--data.root", str(data)]
    assert main([*command, "--output-dir", run]) == 0
    data.rename(tmp_path / "moved")
    assert main(["--eval-only", run]) == 3
    assert main(["--eval-only", run, "--data.root", str(tmp_path / "moved")]) == 0
    assert main([*command[:-1], str(tmp_path / "moved"), "--resume", run]) == 0  # the command that made it
    capsys.readouterr()
    written = Path(run, FILES["config"]).read_text()
    for edited, message in (
        (written.replace("  sigma: 1.0\n", "  sigma: 0.7\n"), "config.yaml was edited (detector.sigma)"),
        ("- 1\n", "it holds no settings"),
        ("a: [", "it holds no settings"),
    ):
        assert edited != written
        Path(run, FILES["config"]).write_text(edited)
        with pytest.raises(SystemExit) as usage:
            main(["--eval-only", run, "--data.root", str(tmp_path / "moved")])
        assert usage.value.code == 2
        assert message in capsys.readouterr().err
    Path(run, FILES["config"]).unlink()
    assert main(["--eval-only", run, "--data.root", str(tmp_path / "moved")]) == 0
    for wrong, message in (
        (["--eval-only", run, "--seed", "1"], "only --data.root and --device may differ"),
        (["--eval-only", run, "--missing", "skip"], "only --data.root and --device may differ"),
        (["--eval-only", run, "--config", "ucf15"], "only --data.root and --device may differ"),
        # the default, which this run does not have
        (["--eval-only", run, "--detector_optim.iterations=400"], "only --data.root and --device may differ"),
        (["--resume", run, "--overwrite"], "for new runs"),
        (["--resume", run, "--eval-only", run], "exclude each other"),
    ):
        with pytest.raises(SystemExit) as usage:
            main(wrong)
        assert usage.value.code == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(tmp_path / "moved" / "train")  # nothing of the training is read again
    assert main(["--eval-only", run, "--data.root", str(tmp_path / "moved")]) == 0
    truth = tmp_path / "moved" / "gt.json"
    truth.write_text(truth.read_text().replace('"Spin"', '"Twist"'))
    assert main(["--eval-only", run, "--data.root", str(tmp_path / "moved")]) == 3
    assert "labels among 4 known classes" in capsys.readouterr().err


def test_a_run_without_a_first_step_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(tmp_path / "run", "", overwrite=False)
    folder.config.write_text("")
    folder.release()
    assert main(["--resume", str(folder.path)]) == 3
    assert "it was stopped before its first step (give its first command again)" in capsys.readouterr().err


def test_features_of_an_unusual_scale_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "data")
    for path in (tmp_path / "data" / "train").glob("*.npy"):
        np.save(path, 1e4 * np.load(path).astype(np.float32))
    command = [*SHORT, "--config", "demo", "--data.root", str(tmp_path / "data"), "--output-dir"]
    assert main([*command, str(tmp_path / "run")]) == 0
    assert "note: the features' root mean square is" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "squashed"), "--squash", "true"]) == 0
    assert "root mean square" not in capsys.readouterr().out


def test_full_disk_is_one_line_and_keeps_the_last_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may be larger than 1 MB: the state of step 0 fits, those with Adam's moments do not."""
    run = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        assert main([*SHORT, "--output-dir", str(run)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    named = f"error: [Errno 27] File too large: '{run / FILES['state']}'"
    go_on = f"once that is mended, go on with: python -m ahlm.train --resume {run}"
    assert capsys.readouterr().err.endswith(f"{named}; {go_on}\n")
    assert load_state(run / FILES["state"])["step"] == 0
    assert not list(run.glob(".*"))


def test_firing_says_when_the_detector_has_collapsed() -> None:
    def analysis(change_points: list[int]) -> VideoAnalysis:
        n = 11
        kl = np.where(np.isin(np.arange(n), change_points), 4.0, 0.02).astype(np.float32)
        rows = np.zeros((n, 3), np.float32)
        points = np.array(change_points, np.int64)
        edges, twos = np.arange(n + 1.0), np.full(n, 2, np.float32)
        pieces = np.array([[0, n]])
        return VideoAnalysis(pieces, np.zeros((1, 2), np.float32), rows[:, :2], rows, rows, points, edges, kl, twos)

    text = firing([analysis([5]), analysis([])])
    assert text == (
        "firing rate 0.050; D_static / D_change at 10, 50, 90 %: inside segments 0.01 0.01 0.01, at change-points 2 2 2"
    )
    assert "fires nowhere" in firing([analysis([])])
    assert "fires almost everywhere" in firing([analysis([1, 3, 5, 7, 9])])


def test_interrupted_run_keeps_its_state_and_exits_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ahlm.train", "--output-dir", str(run), "--classifier_optim.iterations=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (run / FILES["metrics"]).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert load_state(run / FILES["state"])["step"] == load_weights(run / FILES["weights"]).step >= 10


def test_sigterm_during_the_evaluation_exits_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("ahlm.train.score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert main([*SHORT, "--output-dir", run]) == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main(["--resume", run]) == 0
    assert (tmp_path / "run" / FILES["evaluation"]).is_file()


@pytest.mark.slow
def test_killed_anywhere_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL at 20 random moments, in the middle of files being written included."""
    settings = ["--save_every=3", "--detector_optim.iterations=30", "--classifier_optim.iterations=40"]
    whole = tmp_path / "whole"
    assert main([*settings, "--output-dir", str(whole)]) == 0
    expected = load_weights(whole / FILES["weights"]).model.state_dict()
    rng = np.random.default_rng(0)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills = 0
    for trial in range(100):
        run = tmp_path / f"run{trial}"
        arguments = [*settings, "--output-dir", str(run)]
        for attempt in range(5):
            command = [sys.executable, "-m", "ahlm.train", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            try:
                deadline = time.monotonic() + 60
                while not (run / FILES["state"]).exists() and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                # the last may end, however slow the machine
                process.wait(timeout=float(rng.uniform(0.0, 4.0)) if attempt < 4 else None)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                arguments = ["--resume", str(run)]
        assert process.returncode == 0
        resumed = load_weights(run / FILES["weights"]).model.state_dict()
        for name, value in expected.items():
            assert torch.equal(value, resumed[name]), (trial, name)
        steps = [record["step"] for record in read_metrics(run / FILES["metrics"])]
        assert steps == sorted(set(steps))
        if kills >= 20:
            return
    pytest.fail(f"only {kills} kills in 100 runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.root", "nowhere"], "nowhere: folder: expected a data set, got no such folder"),
        (["--resume", "nowhere"], "no such file"),
    ],
)
def test_missing_data_is_one_line_and_exit_3(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_absent_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda", "--output-dir", str(tmp_path / "run")]) == 3
    assert "CUDA" in capsys.readouterr().err


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    config = short_config()
    model = new_model(demo_dataset("train"), config)
    path = tmp_path / "model.safetensors"
    save_weights(path, Checkpoint(model, config, ("a", "b", "c", "d"), FeatureSpec(), 64, 40, 0))
    assert load_weights(path).classes == ("a", "b", "c", "d")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors: checkpoint"):
        load_weights(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.safetensors: checkpoint"):
        load_weights(path)


@pytest.mark.parametrize(("field", "value"), [("wings", 2), ("n_snippets", "many"), ("n_snippets", 0)])
def test_checkpoint_of_other_settings_is_refused(
    field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_config()
    model, mapping = new_model(demo_dataset("train"), config), config_mapping(config)
    mapping["classifier"][field] = value
    monkeypatch.setattr(ahlm.checkpoint, "config_mapping", lambda _config: mapping)
    path = tmp_path / "model.safetensors"
    save_weights(path, Checkpoint(model, config, ("a", "b", "c", "d"), FeatureSpec(), 64, 40, 0))
    with pytest.raises(DataError, match=rf"model\.safetensors: config: .*{field}.*another version"):
        load_weights(path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_multiply_and_nothing_else(precision: str) -> None:
    """Products round, so the losses move a little; scans, losses and weights stay float32."""
    dataset, records = demo_dataset("train"), {}
    for chosen in ("fp32", precision):
        config = short_config(precision=chosen)
        trainer = Trainer(new_model(dataset, config), dataset, config)
        scans = []
        trainer.model.detector.register_forward_hook(lambda _module, _inputs, output, scans=scans: scans.append(output))
        records[chosen] = trainer.train_step()
        assert all(value.dtype == torch.float32 for value in (*scans[0].scan[1:], scans[0].snippet_kl))
        assert all(value.dtype == torch.float32 for value in trainer.model.state_dict().values())
        assert trainer.scaler.is_enabled() == (chosen == "fp16")
    for name in ("loss_efc", "loss_dfc"):
        assert records[precision][name] != records["fp32"][name]
        assert records[precision][name] == pytest.approx(records["fp32"][name], rel=0.05)


def test_out_of_memory_names_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_trainer: Trainer) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "train_step", full)
    assert main([*SHORT, "--output-dir", str(tmp_path / "run"), "--detector.crop", "77"]) == 1
    error = capsys.readouterr().err
    assert "out of memory at step 0" in error
    assert "crops of up to 77" in error
    assert "--classifier_optim.batch_size" in error


def test_deterministic_mode_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert main([*SHORT, "--output-dir", str(tmp_path / "run"), "--deterministic", "true"]) == 0
    assert asked == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_batches_made_ahead_are_those_of_their_step() -> None:
    dataset, config = demo_dataset("train"), short_config()
    trainer = Trainer(new_model(dataset, config), dataset, config)
    for step in (0, 1, 5, 6):  # the detector is done at 6; a jump finds no batch made ahead
        trainer.step = step
        for found, expected in zip(trainer.batches(), trainer.prepare(step), strict=True):
            assert (found is None) == (expected is None)
            for one, other in zip(found or (), expected or (), strict=True):
                assert torch.equal(one, other)


def test_diverging_loss_stops_with_its_values() -> None:
    dataset = demo_dataset("train")
    config = short_config()
    trainer = Trainer(new_model(dataset, config), dataset, config)
    with torch.no_grad():
        trainer.model.classifier.classifier.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss at step 0"):
        trainer.train_step()


def test_data_on_disk_trains_like_the_demo_in_memory(tmp_path: Path) -> None:
    write_demo(tmp_path / "data")
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    assert main([*SHORT, "--output-dir", str(memory)]) == 0
    assert main([*SHORT, "--config", "demo", "--data.root", str(tmp_path / "data"), "--output-dir", str(disk)]) == 0
    results = [json.loads((run / FILES["predictions"]).read_text())["results"] for run in (memory, disk)]
    assert results[0] == results[1]


def test_features_and_a_table_of_tags_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = demo_dataset("train")
    rows = ["video,label"]
    for i, video in enumerate(dataset.videos):
        np.save(tmp_path / f"{video.id}.npy", dataset.features(i))
        rows += [f"{video.id},{label}" for label in video.labels]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    assert main([*SHORT, "--config", "demo", "--data.root", str(tmp_path), "--output-dir", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "train 40 videos (0 missing), no validation split, no test split, 4 classes" in printed
    assert "ahlm.infer --checkpoint" in printed
    assert ahlm.load(run).classes == dataset.classes
    memory = tmp_path / "memory"
    assert main([*SHORT, "--output-dir", str(memory)]) == 0
    pair = [load_weights(folder / FILES["weights"]).model.state_dict() for folder in (run, memory)]
    for name, value in pair[0].items():
        torch.testing.assert_close(value, pair[1][name], msg=name)


def test_runs_from_an_unrelated_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "ahlm.train", *SHORT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "eval.json").is_file()


def trained(dataset: FeatureDataset, config: Config) -> Predictor:
    trainer = Trainer(new_model(dataset, config), dataset, config)
    while trainer.step < trainer.total_steps:
        trainer.train_step()
    return Predictor(trainer.checkpoint())


def detector_config(**fields: object) -> Config:
    """Only the detector trains."""
    return Config(
        detector=DetectorConfig(width=256, state_size=128, latent_size=16, level1="simple", crop=40, **fields),  # type: ignore[arg-type]
        detector_optim=OptimConfig(300, 24, lr=2e-3, weight_decay=1e-5, warmup=50, decay_at=0.6, clip_norm=50),
        classifier=ClassifierConfig(width=4, n_snippets=8),
        classifier_optim=OptimConfig(iterations=0),
    )


@pytest.mark.parametrize("change_prior", ["state", "constant"])
def test_detector_finds_the_switches_of_piecewise_constant_sequences(change_prior: str) -> None:
    training, _ = piecewise_constant(60, seed=0)
    sequences, switches = piecewise_constant(20, seed=1)
    videos = [Video(str(i), sequence, ("any",)) for i, sequence in enumerate(training)]
    dataset = FeatureDataset(videos, ("any",), FeatureSpec())
    model = trained(dataset, detector_config(change_prior=change_prior)).model
    batch, lengths = collate(sequences)
    with torch.inference_mode():
        found = model.change_points(batch, lengths).change_points.numpy()
    detected = [np.flatnonzero(row) for row in found]
    scores = change_point_scores(detected, switches, lengths.tolist(), tolerance=1)
    assert scores.f1 >= 0.8, scores
    assert scores.rate <= 2 * scores.true_rate, scores


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_demo_learns_to_localise(seed: int) -> None:
    config = load_recipe("demo", seed=seed)
    training, testing = demo_dataset("train"), demo_dataset("test")
    untrained = Predictor(
        Checkpoint(new_model(training, config).eval(), config, training.classes, training.spec, 64, training.longest, 0)
    )
    averages = []
    for predictor in (untrained, trained(training, config)):
        result = evaluate(testing.ground_truth("test"), predict(predictor, testing), "thumos14")
        averages.append(100 * result.average["0.1:0.7"])
    assert averages[1] >= 60, averages
    assert averages[1] >= averages[0] + 30, averages


def test_names_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ahlm.nothing  # type: ignore[attr-defined]


def test_squash_is_by_the_training_statistics_and_reads_what_it_may_not_write() -> None:
    config = replaced(load_recipe("demo"), {"squash": True, "detector.standardise": "slow", "detector.slow_size": 4})
    demo, videos = demo_dataset("train"), []
    for i, video in enumerate(demo.videos):
        features = 3 * demo.features(i) + 2
        features.flags.writeable = False  # as memory-mapped files are
        videos.append(dataclasses.replace(video, source=features))
    dataset = FeatureDataset(videos, demo.classes, demo.spec)
    model = new_model(dataset, config)
    everything = np.concatenate([dataset.features(i) for i in range(len(dataset))])
    np.testing.assert_allclose(model.squash_mean, everything.mean(0), atol=1e-4)
    np.testing.assert_allclose(model.squash_scale, everything.std(0), rtol=5e-3)
    seen = model.read(torch.tensor(everything))
    assert seen.abs().max() <= 1
    # the detector's own centre is that of what it reads
    np.testing.assert_allclose(model.detector.feature_mean, seen.mean(0), atol=1e-4)
