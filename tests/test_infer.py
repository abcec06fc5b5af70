from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ahlm
from ahlm.ablation.rows import replaced
from ahlm.arguments import load_recipe
from ahlm.checkpoint import Checkpoint, save_weights
from ahlm.config import DataConfig, LocalizationConfig, RefinementConfig
from ahlm.data.dataset import open_dataset
from ahlm.data.synthetic import demo_dataset, write_demo
from ahlm.infer import Predictor, at_every_snippet, length_batches, main, moved, predict, score, true_edges
from ahlm.localization import cut_in_pieces, localize
from ahlm.timeline import FeatureSpec
from ahlm.train import Trainer, new_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that has seen a few steps, so that its outputs differ between videos."""
    config, dataset = load_recipe("demo"), demo_dataset("train")
    trainer = Trainer(new_model(dataset, config), dataset, config)
    for _ in range(100):
        trainer.train_step()
    folder = tmp_path_factory.mktemp("run")
    save_weights(folder / "last.safetensors", trainer.checkpoint())
    return folder


@pytest.fixture
def video() -> np.ndarray:
    return demo_dataset("test").features(0)


def test_localize_from_python(run: Path, video: np.ndarray) -> None:
    predictor = ahlm.load(run)
    detections = predictor.localize(video)
    assert detections
    assert [d.score for d in detections] == sorted((d.score for d in detections), reverse=True)
    for detection in detections:
        assert detection.label in predictor.classes
        assert 0 <= detection.start_s < detection.end_s <= predictor.spec.duration_s(len(video))
    assert all(d.end_s <= 9.0 for d in predictor.localize(video, duration_s=9.0))
    assert predictor.localize(video, proposals="thresholds") != detections
    assert predictor.localize(video.astype(np.float64)) == detections


def test_the_embedding_is_kept_where_the_lcs_step_compares_it(run: Path, video: np.ndarray) -> None:
    predictor = ahlm.load(run)
    (plain,) = predictor.analyse([video])
    assert plain.embedding.shape == (len(video), 0)
    predictor.config = replaced(predictor.config, {"refinement.similarity": "embedding"})
    (analysis,) = predictor.analyse([video])
    assert analysis.embedding.shape == (len(video), 128)
    np.testing.assert_array_equal(analysis.attention, plain.attention)
    assert len(predictor.localize_analysis(video, analysis, None, predictor.config).score)
    with pytest.raises(ValueError, match=r"features must be \[n, F >= 1\], got \[\d+, 0\]"):
        predictor.localize_analysis(video, plain, None, predictor.config)


def test_a_long_video_is_taken_in_pieces(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, plain, predictor = demo_dataset("test"), ahlm.load(run), ahlm.load(run, window=60)
    long = np.concatenate([dataset.features(i) for i in range(6)])
    (analysis,), (whole,) = predictor.analyse([long]), plain.analyse([long])
    assert analysis.pieces.tolist() == cut_in_pieces(len(long), 60).tolist()
    assert analysis.video_scores.shape == (len(analysis.pieces), 4)
    # what is said of a snippet is the mean of the two pieces that it lies in
    alone = plain.analyse([long[first:end] for first, end in analysis.pieces])
    shared = range(analysis.pieces[1, 0], min(analysis.pieces[0, 1], analysis.pieces[2, 0]))
    for name in ("cas", "attention"):
        expected = [(getattr(alone[0], name)[t] + getattr(alone[1], name)[t - shared[0]]) / 2 for t in shared]
        np.testing.assert_allclose(getattr(analysis, name)[shared[0] : shared[-1] + 1], expected, atol=1e-6)
    np.testing.assert_allclose(analysis.video_scores[3], alone[3].video_scores[0], atol=1e-6)
    # change-points are those of the whole video
    np.testing.assert_array_equal(analysis.change_points, whole.change_points)
    assert predictor.localize(long) != plain.localize(long)

    np.save(tmp_path / "long.npy", long)
    longest = plain.checkpoint.longest
    assert len(long) > 2 * longest
    command = ["--checkpoint", str(run), str(tmp_path / "long.npy"), "--output", str(tmp_path / "out.json")]
    assert main(command) == 0
    note = f"1 videos are more than 2 times as long as any in training ({longest} snippets), up to {len(long)}"
    assert f"note: {note}" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--window", "60"]) == 0
    assert "times as long" not in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["results"]["long"]
    assert [d["score"] for d in found] == [d.score for d in predictor.localize(long)]


def test_names_within_a_data_set_follow_it_where_they_are(tmp_path: Path) -> None:
    trained = DataConfig(root="elsewhere", features="i3d", annotations="a.json")
    assert moved(trained, str(tmp_path)) == DataConfig(root=str(tmp_path))
    (tmp_path / "i3d").mkdir()
    assert moved(trained, str(tmp_path), annotations="b.json") == DataConfig(
        root=str(tmp_path), features="i3d", annotations="b.json"
    )


def test_a_first_detection_does_not_wait_for_torchs_compiler(run: Path) -> None:
    code = (
        "import sys, ahlm; from ahlm.data.synthetic import demo_dataset\n"
        f"assert ahlm.load({str(run)!r}).localize(demo_dataset('test').features(0))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((5, 63), np.float32), r"features must be \[n >= 1, 64\], got \[5, 63\]"),
        (np.zeros((0, 64), np.float32), r"got \[0, 64\]"),
        (np.zeros(64, np.float32), r"got \[64\]"),
        (np.full((5, 64), np.nan, np.float32), "finite"),
        (np.zeros((64, 5), np.float32), "got \\[64, 5\\]; transposed"),
        ("a.npy", "features must be numbers, got <U5; np.load reads"),
    ],
)
def test_localize_refuses(run: Path, features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ahlm.load(run).localize(features)


def test_one_snippet_is_a_video(run: Path, video: np.ndarray) -> None:
    detections = ahlm.load(run).localize(video[:1])
    assert all((d.start_s, d.end_s) == (0.0, 0.64) for d in detections)


def test_batches_change_nothing(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    together = predictor.analyse_dataset(dataset, progress=False)
    for i in (0, 7, 19):
        (alone,) = predictor.analyse([dataset.features(i)])
        np.testing.assert_array_equal(alone.change_points, together[i].change_points)
        np.testing.assert_allclose(alone.cas, together[i].cas, atol=1e-6)
        np.testing.assert_allclose(alone.kl_static, together[i].kl_static, rtol=1e-4, atol=1e-5)


def test_long_videos_are_sampled_for_efc_and_scanned_whole(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    video = np.concatenate([dataset.features(0), dataset.features(1)])
    assert len(video) > predictor.config.classifier.n_snippets
    (analysis,) = predictor.analyse([video])
    assert analysis.cas.shape == (len(video), 4)
    assert analysis.kl_static.shape == (len(video),)
    assert analysis.change_points.max() > len(dataset.features(0))


def test_passes_are_averaged(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    predictor.config = replaced(predictor.config, {"classifier.n_snippets": 30, "classifier.passes": 3})
    videos = [np.tile(dataset.features(0), (2, 1)), dataset.features(1)[:20]]  # sampled; read whole
    found = predictor.analyse(videos)

    for video, analysis in zip(videos, found, strict=True):
        outputs = []
        for turn in range(3):
            index = np.floor((np.arange(30) + turn / 3) * len(video) / 30).astype(int)
            index = index if len(video) > 30 else np.arange(len(video))
            with torch.no_grad():
                output = predictor.model.classify(torch.tensor(video[index])[None], torch.tensor([len(index)]))
            cas = output.foreground_cas()[0].numpy()
            spread = [np.interp(np.arange(len(video)), index, cas[:, c]) for c in range(cas.shape[1])]
            outputs.append((np.stack(spread, 1), output.video_scores()[0].numpy()))
        np.testing.assert_allclose(analysis.cas, np.mean([cas for cas, _ in outputs], 0), atol=1e-6)
        np.testing.assert_allclose(analysis.video_scores[0], np.mean([scores for _, scores in outputs], 0), atol=1e-6)
    assert not np.allclose(found[0].cas, ahlm.load(run).analyse(videos)[0].cas, atol=1e-3)


def test_at_every_snippet_interpolates() -> None:
    values = np.array([[0.0], [2.0], [8.0]], np.float32)
    spread = at_every_snippet(values, np.array([0, 2, 5]), 7)
    np.testing.assert_allclose(spread[:, 0], [0, 1, 2, 4, 6, 8, 8])


def test_one_sample_is_known_everywhere() -> None:
    np.testing.assert_array_equal(at_every_snippet(np.array([[2.0, 3.0]], np.float32), np.array([0]), 3), [[2, 3]] * 3)


def test_other_dimensions_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "data")
    (tmp_path / "data" / "features.json").unlink()
    for path in (tmp_path / "data").rglob("*.npy"):
        np.save(path, np.load(path)[:, :32])
    command = ["--checkpoint", str(run), "--data.root", str(tmp_path / "data"), "--output", str(tmp_path / "out.json")]
    assert main(command) == 3
    assert f"{tmp_path / 'data'}: feature_dim: expected 64 as in training, got 32" in capsys.readouterr().err


def test_length_batches_hold_every_video_once() -> None:
    lengths = [5, 40_000, 7, 9_000, 9_000, 9_000, 1]
    batches = list(length_batches(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert [1] in batches


def test_command_writes_activitynet_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "data")
    output = tmp_path / "predictions.json"
    command = ["--checkpoint", str(run), "--data.root", str(tmp_path / "data"), "--output", str(output)]
    assert main([*command, "--split", "test"]) == 0
    predictions = json.loads(output.read_text())
    assert predictions["version"] == "VERSION 1.3"
    assert len(predictions["results"]) == 20
    points = predictions["ahlm"]["change_points"]
    for stages in points.values():
        assert set(stages["foreground"]) <= set(stages["refined"]) <= set(stages["detected"])
    with pytest.raises(SystemExit) as existing:
        main(command)
    assert existing.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    lowest = str(tmp_path / "lowest.json")
    scores = sorted(d["score"] for found in predictions["results"].values() for d in found)
    middle = scores[len(scores) // 2]
    assert main([*command[:-1], lowest, "--min-score", str(middle)]) == 0
    assert json.loads(Path(lowest).read_text())["results"] == {
        name: [d for d in found if d["score"] >= middle] for name, found in predictions["results"].items()
    }
    # separate files give the same detections, named by their stems
    files = sorted(str(path) for path in (tmp_path / "data" / "test").glob("*.npy"))[:3]
    assert main(["--checkpoint", str(run), *files, "--output", str(tmp_path / "files.json")]) == 0
    single = json.loads((tmp_path / "files.json").read_text())
    for name, detections in single["results"].items():
        for a, b in zip(detections, predictions["results"][name], strict=True):
            assert a["label"] == b["label"]
            np.testing.assert_allclose([a["score"], *a["segment"]], [b["score"], *b["segment"]], atol=1e-5)


def test_oracle_takes_true_boundaries(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    analyses = predictor.analyse_dataset(dataset, progress=False)
    predictions = predict(predictor, dataset, analyses, oracle=True)
    assert "oracle" in predictions["ahlm"]["change_point_source"]
    for i, video in enumerate(dataset.videos):
        points = predictions["ahlm"]["change_points"][video.id]
        expected = predictor.spec.edges_s(dataset.n_snippets(i))[true_edges(dataset, i)]
        np.testing.assert_allclose(points["detected"], expected)
        assert points["refined"] == points["detected"]


def test_change_points_of_a_detector_that_looks_ahead_stand_half_a_snippet_later(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    detector = predictor.model.detector
    detector.config = dataclasses.replace(detector.config, look_ahead=2)
    analyses = predictor.analyse_dataset(dataset, progress=False)
    assert sum(len(a.change_points) for a in analyses) > 20
    found = predict(predictor, dataset, analyses)
    for video, analysis in zip(dataset.videos, analyses, strict=True):
        positions = dataset.spec.edge_position(np.array(found["ahlm"]["change_points"][video.id]["detected"]))
        np.testing.assert_allclose(positions, analysis.change_points + 0.5)


@pytest.mark.parametrize("lone_ratio", [0.0, 0.2, 0.3, 1e9])
def test_both_directions_are_the_same_from_either_end(run: Path, lone_ratio: float) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    predictor.config = replaced(predictor.config, {"detector.both_directions": True, "detector.lone_ratio": lone_ratio})
    videos = [dataset.features(i) for i in range(len(dataset))]
    forward = ahlm.load(run).analyse(videos)
    turned = predictor.analyse([np.ascontiguousarray(video[::-1]) for video in videos])
    for video, one, both, mirrored in zip(videos, forward, predictor.analyse(videos), turned, strict=True):
        positions = predictor.spec.edge_position(both.boundaries_s)
        mirror = len(video) - predictor.spec.edge_position(mirrored.boundaries_s)[::-1]
        np.testing.assert_allclose(positions, mirror, atol=1e-6)
        # all of both directions, or those alone on which they agree
        assert lone_ratio > 0 or 0 < len(one.change_points) <= len(both.change_points)
        assert lone_ratio < 1e9 or len(both.change_points) <= len(one.change_points)
        np.testing.assert_allclose(both.cas, one.cas)


def test_unconfirmed_change_points_teach_but_do_not_count(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    counts = {}
    for lone_ratio in (0.0, 0.5, 1e9):
        predictor.config = replaced(
            predictor.config, {"detector.both_directions": True, "detector.lone_ratio": lone_ratio}
        )
        analyses = predictor.analyse_dataset(dataset, progress=False)
        counts[lone_ratio] = sum(len(analysis.change_points) for analysis in analyses)
        teachers = predictor.change_points(dataset)
        assert sum(map(len, teachers)) == counts[0.0]
    assert counts[0.0] > counts[0.5] > counts[1e9] > 0


def test_wrong_dimension_and_nan_in_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out.json")]
    np.save(tmp_path / "wide.npy", np.zeros((5, 65), np.float32))
    assert main(["--checkpoint", str(run), str(tmp_path / "wide.npy"), *output]) == 3
    assert "wide.npy: shape: expected [n >= 1, 64], got [5, 65]" in capsys.readouterr().err
    np.save(tmp_path / "nan.npy", np.full((5, 64), np.nan, np.float32))
    assert main(["--checkpoint", str(run), str(tmp_path / "nan.npy"), *output]) == 3
    assert "nan.npy: value [0, 0]: expected a finite number" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_values_beyond_the_model_name_their_video(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "huge.npy", np.full((9, 64), 3e38, np.float32))
    output = ["--output", str(tmp_path / "out.json")]
    assert main(["--checkpoint", str(run), str(tmp_path / "huge.npy"), *output]) == 3
    assert "huge.npy: value [0, 0]: expected a number of a feature's size, below 1e+15" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["--checkpoint", str(run), str(tmp_path / "huge.npy"), "--output", str(tmp_path), "--overwrite"])
    assert usage.value.code == 2


def test_a_split_without_the_classes_that_are_found_scores_nothing(run: Path) -> None:
    predictor, dataset = ahlm.load(run), demo_dataset("test").subset([0])
    found = {d.label for d in predictor.localize(dataset.features(0))}
    other = next(label for label in predictor.classes if label not in found)
    segment = dataset.videos[0].segments[0]._replace(label=other)
    dataset.videos = (dataclasses.replace(dataset.videos[0], labels=(other,), segments=(segment,)),)
    predictions, result = score(predictor, dataset, predictor.analyse_dataset(dataset, progress=False))
    assert result.headline == 0
    assert {d["label"] for d in predictions["results"]["test_000"]} == found


def test_timestamps_beside_a_file_are_its_timeline(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = demo_dataset("test").features(0)
    np.save(tmp_path / "a.npy", features)
    np.save(tmp_path / "a_fps.npy", np.array(50.0))
    np.save(tmp_path / "a_timestamps_ms.npy", 320.0 * np.arange(1, len(features) + 1))
    output = ["--output", str(tmp_path / "out.json"), "--overwrite"]
    np.save(tmp_path / "gopro_60_fps.npy", features)  # a video of its own
    for source, names in ((tmp_path / "a.npy", ["a"]), (tmp_path, ["a", "gopro_60_fps"])):
        assert main(["--checkpoint", str(run), str(source), *output]) == 0
        assert "50 fps, stride 16, window 16: 0.32 s a snippet (from timestamps)" in capsys.readouterr().out
        assert list(json.loads((tmp_path / "out.json").read_text())["results"]) == names


def test_true_boundaries_must_be_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path)
    truth = json.loads((tmp_path / "gt.json").read_text())
    for entry in truth["database"].values():
        entry["labels"] = sorted({item["label"] for item in entry.pop("annotations")})
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    command = ["--checkpoint", str(run), "--data.root", str(tmp_path), "--output", str(tmp_path / "out.json")]
    assert main([*command, "--oracle"]) == 3
    assert "segments: expected true boundaries for --oracle, got none" in capsys.readouterr().err


def test_data_that_say_no_timeline_have_that_of_training(run: Path, tmp_path: Path) -> None:
    predictor, videos = ahlm.load(run), demo_dataset("test")
    spec = FeatureSpec(30.0, 15, 15)
    save_weights(tmp_path / "run.safetensors", dataclasses.replace(predictor.checkpoint, spec=spec))
    write_demo(tmp_path / "data")
    (tmp_path / "data" / "features.json").unlink()
    output = tmp_path / "out.json"
    root = ["--data.root", str(tmp_path / "data"), "--output", str(output)]
    assert main(["--checkpoint", str(tmp_path / "run.safetensors"), *root]) == 0
    found = json.loads(output.read_text())
    assert found["ahlm"]["features"] == vars(spec)
    assert len(found["results"]) == len(videos)
    np.save(tmp_path / "a.npy", videos.features(0))
    files = [str(tmp_path / "a.npy"), "--output", str(output), "--overwrite"]
    assert main(["--checkpoint", str(tmp_path / "run.safetensors"), *files]) == 0
    assert json.loads(output.read_text())["ahlm"]["features"] == vars(spec)


def test_files_have_the_timeline_that_lies_beside_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FeatureSpec(30.0, 15, 10)
    clips, output = tmp_path / "root" / "features" / "clips", tmp_path / "out.json"
    clips.mkdir(parents=True)
    for i in range(2):
        np.save(clips / f"{i}.npy", demo_dataset("test").features(i))
    command = ["--checkpoint", str(run), str(clips), "--output", str(output), "--overwrite"]
    assert main(command) == 0
    assert "25 fps, stride 16, window 16: 0.64 s a snippet (from settings)" in capsys.readouterr().out
    (tmp_path / "root" / "features.json").write_text(json.dumps(vars(spec)))
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"30 fps, stride 15, window 10: 0.5 s a snippet (from {tmp_path / 'root' / 'features.json'})" in printed
    assert "note: trained on 25 fps" in printed
    found = json.loads(output.read_text())
    assert found["ahlm"]["features"] == vars(spec)
    assert found["results"].keys() == {"0", "1"}
    np.save(tmp_path / "2.npy", demo_dataset("test").features(2))
    assert main([*command, str(tmp_path / "2.npy")]) == 3
    assert "timeline: expected 30 fps, stride 15, window 10" in capsys.readouterr().err
    # what a folder is named by is not what is above it, and not every file of this name is a timeline
    (clips / "below").mkdir()
    (clips / "below" / "features.json").write_text(json.dumps(vars(FeatureSpec())))
    monkeypatch.chdir(clips / "below")
    (tmp_path / "root" / "features" / "features.json").write_text('{"dark_mode": true}')
    capsys.readouterr()
    assert main(["--checkpoint", str(run), "../0.npy", "--output", str(output), "--overwrite"]) == 0
    assert f"(from {tmp_path / 'root' / 'features.json'})" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([*command, str(tmp_path / "empty")]) == 3
    assert "empty: folder: expected feature files ID.npy or ID.npz, got none" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--split", "test"], ["--missing", "skip"], ["--oracle"], ["--data.features", "x"]])
def test_options_of_a_data_set_need_one(run: Path, tmp_path: Path, option: list[str]) -> None:
    with pytest.raises(SystemExit) as usage:
        main(["--checkpoint", str(run), "a.npy", "--output", str(tmp_path / "out.json"), *option])
    assert usage.value.code == 2


def test_plug_in_takes_anyones_activations(run: Path) -> None:
    """Table 4: the change-points of this model, the CAS and scores of another."""
    predictor, dataset = ahlm.load(run), demo_dataset("test")
    features = dataset.features(0)
    (analysis,) = predictor.analyse([features])
    points = np.array([10, 20, 31])
    cas = np.zeros((len(features), 2))
    cas[10:20, 1] = 0.9
    found = localize(
        cas,
        [0.1, 0.9],
        None,
        points,
        predictor.spec.edges_s(len(features)),
        predictor.spec.duration_s(len(features)),
        config=LocalizationConfig(),
        refinement=RefinementConfig(enabled=False),
    )
    assert found.class_index[0] == 1
    np.testing.assert_allclose([found.start_s[0], found.end_s[0]], [6.4, 12.8])
    assert found.foreground_change_points.tolist() == [10, 20]
    assert len(analysis.change_points) < len(features)


def test_real_splits_open(real_data: Path) -> None:
    for name, classes in (("ucf15", 10), ("hapt", 9)):
        config = DataConfig(root=str(real_data / name))
        training = open_dataset(config, "train")
        testing = open_dataset(config, "test", classes=training.classes)
        assert len(training.classes) == classes
        assert training.spec_source == "features.json"
        assert len(testing) == {"ucf15": 100, "hapt": 64}[name]


def test_untrained_predictor_can_be_built_by_hand() -> None:
    config, dataset = load_recipe("demo"), demo_dataset("train")
    model = new_model(dataset, config).eval()
    predictor = Predictor(Checkpoint(model, config, dataset.classes, dataset.spec, 64, dataset.longest, 0))
    assert isinstance(predictor.localize(dataset.features(0)), list)


def test_four_layouts_give_the_same_predictions(run: Path, tmp_path: Path) -> None:
    results = []
    for layout in ("acmnet", "basnet", "actionformer", "video_features"):
        write_demo(tmp_path / layout, layout)
        output = tmp_path / f"{layout}.json"
        command = ["--checkpoint", str(run), "--data.root", str(tmp_path / layout), "--output", str(output)]
        assert main(command) == 0
        results.append(json.loads(output.read_text())["results"])
    assert len(results[0]) == 20
    assert any(results[0].values())
    for other in results[1:]:
        assert other == results[0]
