from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ahlm.config import DataConfig
from ahlm.data.dataset import FeatureDataset, open_dataset
from ahlm.data.layouts import affixes
from ahlm.data.synthetic import demo_dataset, write_demo
from ahlm.data.write import LAYOUTS, write_dataset
from ahlm.errors import DataError, NoSplit


@pytest.fixture(scope="module")
def demo() -> dict[str, FeatureDataset]:
    """A few videos of the demo: enough for all classes."""
    return {split: demo_dataset(split).subset(range(6)) for split in ("train", "test")}


@pytest.fixture
def written(tmp_path: Path, demo: dict[str, FeatureDataset]) -> Callable[[str], Path]:
    def write(layout: str) -> Path:
        write_dataset(tmp_path / layout, demo, layout, features="demo")
        return tmp_path / layout

    return write


def opened(root: Path, split: str = "train", **fields: str) -> FeatureDataset:
    # a timeline that no layout has: it must come from the files
    return open_dataset(DataConfig(root=str(root), fps=1, stride=1, window=1, **fields), split)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_layouts_hold_the_same_data(
    layout: str, written: Callable[[str], Path], demo: dict[str, FeatureDataset]
) -> None:
    root = written(layout)
    for split, expected in demo.items():
        dataset = opened(root, split)
        assert dataset.layout == layout
        assert dataset.spec_source == ("timestamps" if layout == "video_features" else "features.json")
        for name in ("fps", "stride", "window"):
            assert getattr(dataset.spec, name) == pytest.approx(getattr(expected.spec, name))
        assert set(dataset.classes) == {label for video in expected.videos for label in video.labels}
        assert dataset.feature_dim == expected.feature_dim
        for video, original in zip(dataset.videos, expected.videos, strict=True):
            assert (video.id, video.labels, video.duration_s) == (original.id, original.labels, original.duration_s)
            assert video.segments == original.segments  # JSON keeps doubles to the last digit
        for i in range(len(expected)):
            np.testing.assert_array_equal(dataset.features(i), expected.features(i))
        noted = [note for note in dataset.notes if "features are named v_ID" in note]
        assert list(dataset.notes) == noted
        assert len(noted) == (layout == "actionformer")


def test_demo_in_a_layout(tmp_path: Path) -> None:
    write_demo(tmp_path, "basnet")
    assert (tmp_path / "features" / "train" / "flow" / "train_000.npy").exists()
    with pytest.raises(ValueError, match="layout must be one of acmnet, basnet"):
        write_demo(tmp_path, "zip")


@pytest.mark.parametrize("layout", ["basnet", "video_features"])
def test_streams_one_snippet_apart_are_cut(layout: str, written: Callable[[str], Path]) -> None:
    root = written(layout)
    flow = next(root.rglob("*train_002*flow.npy" if layout == "video_features" else "train/flow/train_002.npy"))
    whole = opened(root).features(2)
    array = np.load(flow)
    np.save(flow, array[:-1])
    dataset = opened(root)
    np.testing.assert_array_equal(dataset.features(2), whole[:-1])
    assert dataset.n_snippets(2) == len(whole) - 1
    assert any("1 videos have streams one snippet apart, and the longer was cut" in note for note in dataset.notes)
    np.save(flow, array[:-2])
    with pytest.raises(DataError, match=rf"flow.*snippets: expected {len(array)} .* got {len(array) - 2}"):
        opened(root)


def test_streams_beyond_memory(written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ahlm.data.dataset.MEMORY_BUDGET", 0)
    dataset = opened(written("basnet"))
    np.testing.assert_array_equal(dataset.features(0), dataset.features(0))


def test_a_video_without_one_stream_is_missing(written: Callable[[str], Path]) -> None:
    root = written("basnet")
    (root / "features" / "train" / "flow" / "train_002.npy").unlink()
    with pytest.raises(DataError, match="1 missing: train_002"):
        opened(root)
    assert opened(root, missing="skip").missing == ("train_002",)


def test_one_stream_alone(written: Callable[[str], Path], demo: dict[str, FeatureDataset]) -> None:
    root = written("video_features")
    for path in root.rglob("*_flow.npy"):
        path.unlink()
    np.testing.assert_array_equal(opened(root).features(0), demo["train"].features(0)[:, :32])


def test_stream_dimensions_must_sum_to_those_of_the_others(written: Callable[[str], Path]) -> None:
    root = written("basnet")
    np.save(root / "features" / "train" / "rgb" / "train_001.npy", np.ones((20, 31), np.float16))
    np.save(root / "features" / "train" / "flow" / "train_001.npy", np.ones((20, 32), np.float16))
    with pytest.raises(DataError, match=r"train_001\.npy: shape: expected 64 dimensions in 2 streams together, got 63"):
        opened(root)


def test_npz_of_actionformer(written: Callable[[str], Path], demo: dict[str, FeatureDataset]) -> None:
    root = written("actionformer")
    path = root / "features" / "v_train_000.npy"
    np.savez(path.with_suffix(".npz"), feats=np.load(path))
    path.unlink()
    np.testing.assert_array_equal(opened(root).features(0), demo["train"].features(0))
    np.savez(path.with_suffix(".npz"), features=np.ones((3, 64)))
    with pytest.raises(DataError, match=r"v_train_000\.npz: feats: expected an array of this name, got features"):
        opened(root)
    path.with_suffix(".npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"v_train_000\.npz: file: expected a complete"):
        opened(root)


def test_upper_case_suffixes(written: Callable[[str], Path], demo: dict[str, FeatureDataset]) -> None:
    root = written("actionformer")
    for path in (root / "features").iterdir():
        path.rename(path.with_suffix(".NPY"))
    np.testing.assert_array_equal(opened(root).features(0), demo["train"].features(0))


def test_skip_list_of_opentad(written: Callable[[str], Path]) -> None:
    root = written("actionformer")
    (root / "features" / "v_train_003.npy").unlink()
    (root / "features" / "missing_files.txt").write_text("train_003\n")
    dataset = opened(root)
    assert [video.id for video in dataset.videos] == [f"train_00{i}" for i in (0, 1, 2, 4, 5)]
    assert dataset.missing == ()
    assert any("1 videos left out, as the list of missing files says" in note for note in dataset.notes)


def test_affixes() -> None:
    assert affixes(["a", "b"], ["a", "b", "v_a"]) == ("", "")
    assert affixes(["abc", "xyz"], ["v_abc_i3d", "v_xyz_i3d"]) == ("v_", "_i3d")
    # names within names do not mislead
    assert affixes(["1", "2", "11"], ["v1", "v2", "v11"]) == ("v", "")
    assert affixes(["abc"], []) == ("", "")


def test_a_video_never_has_the_features_of_another(tmp_path: Path) -> None:
    """`clip1` without features beside `clip10`: most names would fit with a 0 after them."""
    names = {"test": [f"clip{i}" for i in range(1, 10)], "train": [f"clip{i}" for i in range(10, 100)]}
    rows = [f"{name},run,0,1,{split}" for split, own in names.items() for name in own]
    (tmp_path / "labels.csv").write_text("\n".join(["video,label,start,end,subset", *rows]))
    for name in (*names["train"], "clip1"):
        np.save(tmp_path / f"{name}.npy", np.ones((3, 4), np.float32))
    with pytest.raises(DataError, match="8 missing: clip2, clip3"):
        opened(tmp_path, "test")
    (tmp_path / "clip50.npy").rename(tmp_path / "clip111.npy")  # of no video, and all that clip1 would need
    with pytest.raises(DataError, match="1 missing: clip50"):
        opened(tmp_path)
    dataset = open_dataset(DataConfig(root=str(tmp_path), missing="skip"), "test")
    assert [(video.id, video.source) for video in dataset.videos] == [("clip1", tmp_path / "clip1.npy")]


def test_lists_with_the_prefix_that_annotations_lack(written: Callable[[str], Path]) -> None:
    root = written("acmnet")
    listed = root / "split_train.txt"
    listed.write_text("".join(f"v_{line}\n" for line in listed.read_text().splitlines()))
    for path in (root / "train").glob("*.npy"):
        path.rename(path.with_name(f"v_{path.name}"))
    assert [video.id for video in opened(root).videos] == [f"train_{i:03d}" for i in range(6)]


def test_two_folders_of_features(written: Callable[[str], Path]) -> None:
    root = written("actionformer")
    shutil.copytree(root / "features", root / "other_features")
    with pytest.raises(DataError, match=r"expected one folder of feature files, got 2: features, other_features") as e:
        opened(root)
    assert "--data.features features" in str(e.value)
    assert len(opened(root, features="other_features")) == 6


def test_two_annotation_files(written: Callable[[str], Path]) -> None:
    root = written("actionformer")
    annotations = root / "annotations" / "annotations.json"
    (root / "annotations" / "classes.json").write_text("{}")  # no database: not annotations
    assert len(opened(root)) == 6
    shutil.copy(annotations, root / "annotations" / "more.json")
    with pytest.raises(DataError, match="annotations: expected one ActivityNet JSON, got annotations/annotations"):
        opened(root)
    assert len(opened(root, annotations="annotations/more.json")) == 6


def test_tags_in_a_csv_and_splits_by_folder(written: Callable[[str], Path]) -> None:
    root = written("acmnet")
    for name in ("gt.json", "split_train.txt", "split_test.txt"):
        (root / name).unlink()
    (root / "labels.csv").write_text("video,label\ntrain_000,Jump\ntrain_001,Spin\ntest_000,Jump\n")
    assert [(v.id, v.labels) for v in opened(root).videos] == [("train_000", ("Jump",)), ("train_001", ("Spin",))]
    assert [v.id for v in opened(root, "test").videos] == ["test_000"]
    with pytest.raises(DataError, match=r"split_dev\.txt: file: expected a list of video names, or a subset"):
        opened(root, "dev")


def test_names_with_a_suffix_are_explained(written: Callable[[str], Path]) -> None:
    root = written("actionformer")
    (root / "labels.csv").write_text("video,label\nv_train_000.npy,Jump\n")
    with pytest.raises(DataError, match=r"1 missing: v_train_000\.npy \(videos are named without \.npy\)"):
        opened(root)


def test_table_of_tags_beside_a_flat_folder(written: Callable[[str], Path]) -> None:
    root = written("actionformer")
    (root / "annotations" / "annotations.json").unlink()
    (root / "labels.csv").write_text("video,label\ntrain_000,Jump\ntrain_001,Spin\n")
    assert [video.id for video in opened(root).videos] == ["train_000", "train_001"]
    with pytest.raises(NoSplit):
        opened(root, "test")
    (root / "split_test.txt").write_text("train_001\n")
    assert [video.id for video in opened(root, "test").videos] == ["train_001"]


def test_null_names_no_subset(written: Callable[[str], Path]) -> None:
    root = written("acmnet")
    for name in ("split_train.txt", "split_test.txt"):
        (root / name).unlink()
    truth = json.loads((root / "gt.json").read_text())
    for entry in truth["database"].values():
        entry["subset"] = None
    (root / "gt.json").write_text(json.dumps(truth))
    assert len(opened(root, "test")) > 0
    # all are for training by their subset, whatever lies in the folder of the test split
    for entry in truth["database"].values():
        entry["subset"] = "training"
    (root / "gt.json").write_text(json.dumps(truth))
    with pytest.raises(NoSplit):
        opened(root, "test")
    (root / "split_test.txt").write_bytes(b"\xff\xfe")  # a broken list is no missing one
    with pytest.raises(DataError) as broken:
        opened(root, "test")
    assert not isinstance(broken.value, NoSplit)
    (root / "split_test.txt").unlink()
    truth["database"]["train_000"]["duration"] = 10**400
    (root / "gt.json").write_text(json.dumps(truth))
    with pytest.raises(DataError, match=r"database\.train_000\.duration: expected a number of seconds"):
        opened(root)
    (root / "features.json").write_text('{"fps": 1' + 400 * "0" + ', "stride": 1, "window": 1}')
    with pytest.raises(DataError, match=r"(fps|duration): expected a"):
        opened(root)


def test_empty_folders_of_splits(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "gt.json").write_text('{"database": {"a": {"subset": "train", "annotations": []}}}')
    with pytest.raises(DataError, match=r"train: feature files: expected 1 videos of gt\.json, got 1 missing: a"):
        opened(tmp_path)


def test_how_deep_features_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text('{"database": {"a": {"subset": "train", "labels": ["Jump"]}}}')
    (tmp_path / "1" / "2" / "3").mkdir(parents=True)
    np.save(tmp_path / "1" / "2" / "3" / "a.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match=r"features: expected train/ID\.npy"):
        opened(tmp_path)
    assert len(opened(tmp_path, features="1/2/3")) == 1
    np.save(tmp_path / "1" / "2" / "a.npy", np.ones((5, 2)))
    assert opened(tmp_path).n_snippets(0) == 5
    # a folder that was named counts alone, whatever is below it
    assert opened(tmp_path, features="1/2").n_snippets(0) == 5


def test_no_features_at_all(tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text('{"database": {}}')
    with pytest.raises(DataError, match=r"features: expected train/ID\.npy.* got no \.npy or \.npz"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"no: features: expected"):
        opened(tmp_path, features="no")
    np.save(tmp_path / "Thumos14reduced-I3D-JOINTFeatures.npy", np.ones(3))
    with pytest.raises(DataError, match=r"JOINTFeatures\.npy: layout: expected one feature file.*ahlm\.convert wtalc"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("timestamps_ms", np.array([640.0, 640.0]), "timestamps: expected rising milliseconds"),
        ("timestamps_ms", np.array([800.0, 1600.0]), r"expected snippets of 0\.640 s every 0\.640 s as in test_000"),
        ("timestamps_ms", np.array([None]), r"file: expected a \.npy of numbers"),
        ("timestamps_ms", np.array(["x"]), "dtype: expected numbers, got <U1"),
        ("fps", np.array([25.0, 25.0]), r"fps: expected one positive number, got \[25\.0, 25\.0\]"),
        ("fps", np.array(0.0), r"fps: expected one positive number, got 0\.0"),
    ],
)
def test_wrong_timestamps(written: Callable[[str], Path], name: str, array: np.ndarray, message: str) -> None:
    root = written("video_features")
    np.save(root / "i3d" / f"train_001_{name}.npy", array)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_videos_without_timestamps_or_of_one_snippet(written: Callable[[str], Path]) -> None:
    root = written("video_features")
    np.save(root / "i3d" / "test_000_timestamps_ms.npy", np.array([640.0]))  # says nothing of the stride
    (root / "i3d" / "test_001_timestamps_ms.npy").unlink()
    dataset = opened(root)
    assert (dataset.spec.fps, dataset.spec.stride, dataset.spec_source) == (25, 16, "timestamps")
    for path in root.rglob("*_fps.npy"):
        path.unlink()
    assert opened(root).spec_source == "settings"


def test_features_json_wins_over_timestamps(written: Callable[[str], Path]) -> None:
    root = written("video_features")
    (root / "features.json").write_text('{"fps": 30, "stride": 4, "window": 16}')
    dataset = opened(root)
    assert (dataset.spec.fps, dataset.spec.stride, dataset.spec_source) == (30, 4, "features.json")


def test_basnet_annotations_as_published(real_data: Path, tmp_path: Path) -> None:
    """Segments as strings, no durations: BaSNet's gt.json with features made up."""
    shutil.copy(real_data / "thumos14" / "gt_210_videos.json", tmp_path / "gt.json")
    database = json.loads((tmp_path / "gt.json").read_text())["database"]
    for split in ("train", "test"):
        names = (real_data / "thumos14" / f"split_{split}_acmnet.txt").read_text().split()
        names = [name for name in names if name in database]
        (tmp_path / f"split_{split}.txt").write_text("\n".join(names))
        for stream in ("rgb", "flow"):
            (tmp_path / "features" / split / stream).mkdir(parents=True)
            for name in names:
                np.save(tmp_path / "features" / split / stream / f"{name}.npy", np.ones((3, 2), np.float16))
    training, testing = opened(tmp_path), opened(tmp_path, "test")
    assert (len(training), len(testing), len(training.classes)) == (200, 210, 20)
    assert testing.classes == training.classes
    assert sum(len(video.segments) for video in testing.videos) == 3311
    assert all(video.duration_s is None for video in testing.videos)
    assert all(isinstance(s.start_s, float) for video in testing.videos for s in video.segments)


def test_late_segments_of_thumos_count_as_annotated(real_data: Path, tmp_path: Path) -> None:
    """62 test segments of ACM-Net's gt.json end after their video's duration; cutting them would change every score."""
    shutil.copy(real_data / "thumos14" / "gt_212_videos.json", tmp_path / "gt.json")
    database = json.loads((tmp_path / "gt.json").read_text())["database"]
    names = [name for name, entry in database.items() if entry["subset"] == "test"]
    (tmp_path / "split_test.txt").write_text("\n".join(names))
    (tmp_path / "test").mkdir()
    for name in names:
        snippets = int(database[name]["duration"] / 0.64)
        np.save(tmp_path / "test" / f"{name}.npy", np.ones((snippets, 1), np.float16))
    dataset = open_dataset(DataConfig(root=str(tmp_path)), "test")
    note = "62 segments end after their video's duration, and stay as they are annotated"
    assert dataset.notes == (f"{tmp_path / 'gt.json'}: {note}",)
    for video in dataset.videos:
        assert [list(segment[:2]) for segment in video.segments] == [
            annotation["segment"] for annotation in database[video.id]["annotations"]
        ]
