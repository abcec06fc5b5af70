from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.check import main as check
from ahlm.config import DataConfig
from ahlm.convert import main
from ahlm.data.dataset import open_dataset
from ahlm.data.hapt import snippet_features
from ahlm.data.safe_pickle import load_objects
from ahlm.data.synthetic import demo_dataset
from ahlm.data.write import LAYOUTS

# wtalc


def objects(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array


FEATURES = [np.random.default_rng(i).normal(size=(10 + i, 6)).astype(np.float32) for i in range(6)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A pack of six videos: two to train on, one without label, two to test, one without segments."""
    folder = tmp_path / "pack" / "Small-Annotations"
    folder.mkdir(parents=True)
    np.save(folder.parent / "Small-I3D-JOINTFeatures.npy", objects(list(FEATURES)), allow_pickle=True)
    save(folder, videoname=np.array([f"video_{i}".encode() for i in range(6)]))
    save(folder, subset=np.array([b"validation"] * 3 + [b"test"] * 3))
    save(folder, segments=objects([[[0.5, 2.0], [3.0, 4.0]], [], [], [["1", "2"]], [[0.0, 9.0]], []]))
    save(folder, labels=objects([["Run", "Jump"], [], [], [b"Run"], ["Jump"], []]))
    save(folder, labels_all=objects([["Run"], ["Jump"], [], ["Run"], ["Jump"], ["Run"]]))
    save(folder, duration=np.array([[7.0], [7.5], [8.0], [8.5], [np.nan], [9.0]]))
    (folder / "Ambiguous_test.txt").write_text("video_3 0.0 1.0\n")
    return folder.parent


def save(folder: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)


def test_wtalc(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["wtalc", str(source), str(out), "--fps", "30"]) == 0
    printed = capsys.readouterr().out
    assert f"4 videos (2 train, 2 test), 6 features a snippet, 4 files written -> {out}" in printed
    assert "note: 2 videos without labels (train) or segments (test) left out" in printed
    assert "labels_all.npy: differs from the segments' labels in 1 videos" in printed
    training, testing = (open_dataset(DataConfig(root=str(out)), split) for split in ("train", "test"))
    assert (training.layout, training.spec.fps, training.spec.stride, training.feature_dim) == ("acmnet", 30, 16, 6)
    assert [(v.id, v.labels, v.duration_s) for v in training.videos] == [
        ("video_0", ("Jump", "Run"), 7.0),
        ("video_1", ("Jump",), 7.5),
    ]
    assert training.videos[0].segments == ((0.5, 2.0, "Run"), (3.0, 4.0, "Jump"))
    assert [(v.id, v.segments, v.duration_s) for v in testing.videos] == [
        ("video_3", ((1.0, 2.0, "Run"),), 8.5),
        ("video_4", ((0.0, 9.0, "Jump"),), None),
    ]
    for dataset, numbers in ((training, (0, 1)), (testing, (3, 4))):
        for i, number in enumerate(numbers):
            np.testing.assert_array_equal(dataset.features(i), FEATURES[number])
    assert (out / "Ambiguous_test.txt").read_text() == "video_3 0.0 1.0\n"
    assert json.loads((out / "gt.json").read_text())["database"]["video_0"]["subset"] == "validation"


def test_wtalc_goes_on_where_it_stopped(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack, out = source / "Small-I3D-JOINTFeatures.npy", tmp_path / "out"
    whole = pack.read_bytes()
    pack.write_bytes(whole[: len(whole) // 2])
    assert main(["wtalc", str(source), str(out)]) == 3
    assert "error: " in capsys.readouterr().err
    first = sorted(out.rglob("*.npy"))
    assert 0 < len(first) < 4
    assert not (out / "gt.json").exists()
    written = [path.stat().st_mtime_ns for path in first]
    pack.write_bytes(whole)
    assert main(["wtalc", str(source), str(out)]) == 0
    assert f"{4 - len(first)} files written" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in first] == written
    with pytest.raises(SystemExit) as exit_:
        main(["wtalc", str(source), str(out)])
    assert exit_.value.code == 2
    assert main(["wtalc", str(source), str(out), "--overwrite"]) == 0
    assert "0 files written" in capsys.readouterr().out


def test_wtalc_leaves_nothing_of_another_pack(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["wtalc", str(source), str(out)]) == 0
    (out / "gt.json").unlink()  # as if it had been stopped
    other = out / "train" / "video_0.npy"
    np.save(other, np.load(other) + 1)  # of the same shape
    assert main(["wtalc", str(source), str(out)]) == 0
    assert "1 files written" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(other), FEATURES[0])


def test_a_table_of_tags_is_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.csv").write_text("video,label\na,run\n")
    with pytest.raises(SystemExit) as exit_:
        main(["demo", str(tmp_path)])
    assert exit_.value.code == 2
    assert "holds a labels.csv, a data set of its own" in capsys.readouterr().err


def test_wtalc_videos_of_one_length(source: Path, tmp_path: Path) -> None:
    array = np.arange(6 * 4 * 2, dtype=np.float32).reshape(6, 4, 2)
    np.save(source / "Small-I3D-JOINTFeatures.npy", array)
    out = tmp_path / "out"
    pack = source / "Small-I3D-JOINTFeatures.npy"
    assert main(["wtalc", str(pack), str(out), "--annotations", str(source / "Small-Annotations")]) == 0
    np.testing.assert_array_equal(np.load(out / "test" / "video_3.npy"), array[3])


def test_wtalc_takes_no_npz(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "pack.npz", a=np.ones((2, 3, 4)))
    options = ["--annotations", str(source / "Small-Annotations")]
    assert main(["wtalc", str(tmp_path / "pack.npz"), str(tmp_path / "out"), *options]) == 3
    assert "pack.npz: file: expected one array, .npy, got several, .npz" in capsys.readouterr().err


def test_wtalc_without_what_it_can_do_without(source: Path, tmp_path: Path) -> None:
    for name in ("labels_all.npy", "duration.npy", "Ambiguous_test.txt"):
        (source / "Small-Annotations" / name).unlink()
    out = tmp_path / "out"
    assert main(["wtalc", str(source), str(out)]) == 0
    videos = open_dataset(DataConfig(root=str(out)), "train").videos
    assert [(video.id, video.duration_s) for video in videos] == [("video_0", None)]
    assert not (out / "Ambiguous_test.txt").exists()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


@pytest.mark.parametrize("name", ["Small-I3D-JOINTFeatures.npy", "Small-Annotations/labels.npy"])
def test_wtalc_runs_no_pickled_code(
    source: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(source)
    items = list(load_objects(source / name))
    np.save(source / name, objects([*items[:-1], Evil()]), allow_pickle=True)
    assert main(["wtalc", str(source), "out"]) == 3
    assert "pickle: expected arrays, numbers, strings and containers, got " in capsys.readouterr().err
    assert not (source / "made").exists()
    assert not (source / "out" / "gt.json").exists()


@pytest.mark.parametrize(
    ("field", "array", "message"),
    [
        ("videoname", np.array([b"a"] * 6), "names: expected distinct ones, got 1 among 6"),
        ("videoname", np.array(["../a", "b", "c", "d", "e", "f"]), "name: expected one that can be a file's"),
        ("videoname", np.arange(6), "values: expected strings, got int64"),
        ("subset", np.array([b"test"] * 5), "videos: expected 6 as in videoname.npy, got"),
        ("subset", np.array([b"test"] * 6), "train videos: expected at least one with annotations, got"),
        ("labels", objects([["Run"], [], [], ["Run"], ["Jump"], []]), "video 0: expected 2 as in segments.npy, got 1"),
        ("labels", objects([["Run", 3], [], [], ["Run"], ["Jump"], []]), "video 0: expected strings, got int"),
        ("segments", objects([[[0, 1], [2]], [], [], [[1, 2]], [[0, 9]], []]), "video 0: expected pairs"),
        ("segments", objects([[["x", 1]] * 2, [], [], [[1, 2]], [[0, 9]], []]), "video 0: expected pairs"),
        ("segments", objects([[[0, np.inf]] * 2, [], [], [[1, 2]], [[0, 9]], []]), "video 0: expected pairs"),
        ("duration", objects([["long"]] * 6), "video 0: expected seconds, got"),
    ],
)
def test_wtalc_malformed_annotations(
    source: Path, tmp_path: Path, field: str, array: np.ndarray, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(source / "Small-Annotations", **{field: array})
    assert main(["wtalc", str(source), str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert f"{field}.npy: {message}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([*FEATURES[:5], FEATURES[5][:, :5]], r"[5]: shape: expected [n >= 1, 6], got [15, 5]"),
        ([*FEATURES, FEATURES[0]], "videos: expected 6 as in "),
        ([*FEATURES, FEATURES[0].copy()], "more than 6"),
        (FEATURES[:5], "videos: expected 6 as in "),
        ([FEATURES[0].tolist(), *FEATURES[1:]], "video 0: expected features [n, F] of its own, got list"),
        ([FEATURES[0], FEATURES[0], *FEATURES[2:]], "video 1: expected features [n, F] of its own, got another video"),
        ([*FEATURES[:5], np.full((3, 6), np.nan)], "[5]: value [0, 0]: expected a finite number, got nan"),
        (np.ones((6, 4)), "shape: expected [videos, n, F], got [6, 4]"),
    ],
)
def test_wtalc_malformed_features(
    source: Path, tmp_path: Path, features: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    array = features if isinstance(features, np.ndarray) else objects(features)
    np.save(source / "Small-I3D-JOINTFeatures.npy", array, allow_pickle=True)
    assert main(["wtalc", str(source), str(tmp_path / "out")]) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "gt.json").exists()


def test_wtalc_without_pack_or_annotations(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wtalc", str(tmp_path / "no"), str(tmp_path / "out")]) == 3
    assert "pack: expected one NAME-I3D-JOINTFeatures.npy, got no such folder" in capsys.readouterr().err
    assert main(["wtalc", str(source), str(tmp_path / "out"), "--annotations", str(tmp_path / "no")]) == 3
    assert "no such folder (name it: --annotations DIR)" in capsys.readouterr().err


# demo


@pytest.mark.parametrize("layout", LAYOUTS)
def test_demo(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path), "--layout", layout]) == 0
    assert f"the demo in layout {layout} -> {tmp_path}" in capsys.readouterr().out
    assert check([str(tmp_path)]) == 0
    dataset = open_dataset(DataConfig(root=str(tmp_path)), "test")
    np.testing.assert_array_equal(dataset.features(3), demo_dataset("test").features(3))
    with pytest.raises(SystemExit) as exit_:
        main(["demo", str(tmp_path), "--layout", layout])
    assert exit_.value.code == 2
    assert main(["demo", str(tmp_path), "--layout", layout, "--overwrite"]) == 0


def test_another_layout_is_not_written_into_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path)]) == 0
    assert main(["demo", str(tmp_path), "--layout", "video_features", "--overwrite"]) == 3
    assert "expected video_features, or an empty folder, got acmnet" in capsys.readouterr().err
    assert check([str(tmp_path)]) == 0


def test_a_stopped_overwrite_leaves_no_complete_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["demo", str(tmp_path)]) == 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ahlm.data.write.write_array", stop)
    assert main(["demo", str(tmp_path), "--overwrite"]) == 130
    assert not (tmp_path / "gt.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["zip", "x"],
        ["demo"],
        ["demo", "x", "--layout", "zip"],
        ["hapt", "a.zip", "x", "--test-users", "20", "25"],
        ["hapt", "a.zip", "x", "--test-users", "25", "21"],
        ["hapt", "a.zip", "x", "--seed", "-1"],
        ["wtalc", "a", "b", "--fps", "0"],
    ],
)
def test_wrong_command_lines(options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(options)
    assert exit_.value.code == 2


def test_unwritable_and_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", str(tmp_path / "file" / "x")]) == 1

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ahlm.data.synthetic.write_dataset", interrupt)
    assert main(["demo", str(tmp_path / "x")]) == 130


# hapt


RECORDINGS = ((1, 1, 160), (2, 20, 40), (3, 21, 230), (4, 26, 50))  # experiment, user, snippets
# experiment, user, activity, first and last sample; 5 is standing
LABELS = [
    (1, 1, 5, 0, 400),
    (1, 1, 7, 400, 500),
    (1, 1, 1, 1000, 4900),
    (2, 20, 12, 60, 180),
    (3, 21, 8, 100, 260),
    (3, 21, 2, 2000, 3000),
    (4, 26, 3, 0, 100),
]


def hapt_zip(path: Path, nested: bool = False, missing: int = 0, **changed: str) -> Path:
    rng = np.random.default_rng(0)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for experiment, user, snippets in RECORDINGS:
            for sensor in ("acc", "gyro"):
                samples = rng.normal(experiment, 2.0, size=(32 * snippets + 7, 3))[missing * (sensor == "gyro") :]
                text = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in samples)
                archive.writestr(f"RawData/{sensor}_exp{experiment:02d}_user{user:02d}.txt", text)
        labels = "\n".join(" ".join(map(str, row)) for row in LABELS)
        archive.writestr("RawData/labels.txt", changed.get("labels", labels))
        archive.writestr("README.txt", "about")
    if not nested:
        path.write_bytes(content.getvalue())
        return path
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("HAPT Data Set.zip", content.getvalue())
    return path


def samples_of(path: Path, experiment: int, user: int) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        halves = [
            np.loadtxt(io.BytesIO(archive.read(f"RawData/{sensor}_exp{experiment:02d}_user{user:02d}.txt")))
            for sensor in ("acc", "gyro")
        ]
    return np.concatenate(halves, axis=1)


@pytest.mark.parametrize("nested", [False, True])
def test_hapt(tmp_path: Path, nested: bool) -> None:
    out = tmp_path / "out"
    path = hapt_zip(tmp_path / "hapt.zip", nested)
    assert main(["hapt", str(path), str(out)]) == 0
    datasets = {split: open_dataset(DataConfig(root=str(out)), split) for split in ("train", "test")}
    spec = datasets["train"].spec
    assert (spec.fps, spec.stride, spec.window, spec.snippet_s) == (50, 32, 32, 0.64)
    # pieces are drawn for every recording of a split in turn, 60 to 140 snippets long
    rng, pieces = np.random.default_rng(5), []
    for experiment, _, snippets in RECORDINGS[:3]:
        first = 0
        while first < snippets - 30:
            last = min(snippets, first + int(rng.integers(60, 141)))
            pieces.append((experiment, first, last))
            first = last
    found = {video.id: (d, i) for d in datasets.values() for i, video in enumerate(d.videos)}
    expected: dict[str, list[tuple[str, float, float]]] = {}
    names = {1: "walking", 2: "walking_upstairs", 7: "stand_to_sit", 8: "sit_to_stand", 12: "lie_to_stand"}
    for experiment, first, last in pieces:
        for row in LABELS:
            if row[0] == experiment and row[2] in names:
                low, high = max(row[3], first * 32), min(row[4], last * 32)
                if high - low >= (row[4] - row[3]) / 2 or high - low > 100:
                    times = (round((low - first * 32) / 50, 3), round((high - first * 32) / 50, 3))
                    expected.setdefault(f"hapt_exp{experiment:02d}_{first:04d}", []).append((names[row[2]], *times))
    assert found.keys() == expected.keys()
    assert sum(map(len, expected.values())) > len(LABELS) - 2  # the long walk is in two pieces
    plain = hapt_zip(tmp_path / "plain.zip")
    signals = {experiment: samples_of(plain, experiment, user) for experiment, user, _ in RECORDINGS}
    training = np.concatenate([signals[1], signals[2]])
    for experiment, first, last in pieces:
        name = f"hapt_exp{experiment:02d}_{first:04d}"
        if name not in found:
            continue
        dataset, i = found[name]
        assert dataset.videos[i].duration_s == round((last - first) * 0.64, 3)
        assert [(s.label, s.start_s, s.end_s) for s in dataset.videos[i].segments] == expected[name]
        standardised = (signals[experiment] - training.mean(0)) / training.std(0)
        features = snippet_features(standardised)[first:last]
        np.testing.assert_array_equal(dataset.features(i), features.astype(np.float16).astype(np.float32))


def test_hapt_features_one_by_one() -> None:
    signal = np.random.default_rng(1).normal(size=(100, 6))
    features = snippet_features(signal)
    assert features.shape == (3, 264)
    window = signal[32:64]
    np.testing.assert_allclose(features[1, :192], window.ravel(), rtol=1e-6)
    for i, statistic in enumerate((np.mean, np.std, np.min, np.max)):
        np.testing.assert_allclose(features[1, 192 + 6 * i : 198 + 6 * i], statistic(window, axis=0), rtol=1e-5)
    time = np.arange(32)
    for frequency in range(1, 9):
        wave = np.exp(-2j * np.pi * frequency * time / 32)
        magnitude = np.abs(wave @ (window - window.mean(0))) / 32
        np.testing.assert_allclose(features[1, 216 + 6 * (frequency - 1) : 216 + 6 * frequency], magnitude, rtol=1e-5)


def test_hapt_other_users(tmp_path: Path) -> None:
    path = hapt_zip(tmp_path / "hapt.zip")
    assert main(["hapt", str(path), str(tmp_path / "out"), "--test-users", "26", "30", "--seed", "6"]) == 0
    test = open_dataset(DataConfig(root=str(tmp_path / "out")), "test", ("walking_downstairs",))
    assert [video.id for video in test.videos] == ["hapt_exp04_0000"]


def test_hapt_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(path: Path, message: str, *options: str) -> None:
        assert main(["hapt", str(path), str(tmp_path / "out"), *options]) == 3
        assert message in capsys.readouterr().err

    fails(tmp_path / "no.zip", "file: expected UCI's HAPT zip, got no such file")
    (tmp_path / "text.zip").write_text("text")
    fails(tmp_path / "text.zip", "file: expected UCI's HAPT zip, got File is not a zip file")
    fails(
        hapt_zip(tmp_path / "a.zip"),
        "test users: expected recordings of 29 to 30, got none",
        "--test-users",
        "29",
        "30",
    )
    fails(
        hapt_zip(tmp_path / "b.zip", labels="1 1 5 0"), "labels.txt: file: expected 5 finite numbers a line, got [1, 4]"
    )
    fails(hapt_zip(tmp_path / "c.zip", labels="1 1 x 0 1"), "labels.txt: file: expected 5 numbers a line")
    fails(hapt_zip(tmp_path / "e.zip", missing=1), "recording 1: expected as many samples of acc as of gyro")
    fails(hapt_zip(tmp_path / "d.zip", labels="9 1 1 0 1"), "expected one file of this name, got 0")
