from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.config import DataConfig
from ahlm.data.dataset import FeatureDataset, Video, open_dataset
from ahlm.data.feature_store import check_features, load_features
from ahlm.data.sampling import collate, crop_start, sample_snippets_test, sample_snippets_train
from ahlm.data.synthetic import demo_dataset, piecewise_constant, write_demo
from ahlm.errors import DataError
from ahlm.timeline import FeatureSpec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training videos and one test video in ACM-Net's layout."""
    database = {}
    for name, split, label in (("a", "train", "run"), ("b", "train", "jump"), ("c", "test", "run")):
        (tmp_path / split).mkdir(exist_ok=True)
        np.save(tmp_path / split / f"{name}.npy", np.ones((10, 4), np.float16))
        annotations = [{"label": label, "segment": [0.64, 3.2]}]
        database[name] = {"subset": split, "duration": 6.4, "annotations": annotations}
    (tmp_path / "gt.json").write_text(json.dumps({"database": database}))
    (tmp_path / "split_train.txt").write_text("a\nb\n\n")
    (tmp_path / "split_test.txt").write_text("c\n")
    return tmp_path


def edit(root: Path, video: str, **fields: Any) -> None:
    content = json.loads((root / "gt.json").read_text())
    content["database"][video] |= fields
    (root / "gt.json").write_text(json.dumps(content))


def test_layout_classes_and_timeline(root: Path) -> None:
    dataset = open_dataset(DataConfig(root=str(root), fps=30, stride=15, window=15), "train")
    assert dataset.classes == ("jump", "run")
    assert dataset.feature_dim == 4
    assert (dataset.spec, dataset.spec_source) == (FeatureSpec(30, 15, 15), "settings")
    np.testing.assert_array_equal(dataset.label_matrix(), [[0, 1], [1, 0]])
    assert dataset.features(0).dtype == np.float32
    (root / "features.json").write_text('{"fps": 25, "stride": 16, "window": 32, "feature_dim": 4}')
    dataset = open_dataset(DataConfig(root=str(root)), "train")
    assert (dataset.spec, dataset.spec_source) == (FeatureSpec(25, 16, 32), "features.json")


def fails(root: Path, message: str, split: str = "train", **config: Any) -> None:
    def read_all() -> None:
        classes = None if split == "train" else ("jump", "run")
        dataset = open_dataset(DataConfig(root=str(root), **config), split, classes=classes)
        for i in range(len(dataset)):
            dataset.features(i)

    with pytest.raises(DataError, match=message) as error:
        read_all()
    assert "\n" not in str(error.value)


def test_missing_pieces(root: Path) -> None:
    fails(root / "no", "folder: expected a data set, got no such folder")
    (root / "train" / "a.npy").unlink()
    fails(root, "feature files: expected 2 videos of split_train.txt, got 1 missing: a")
    skipping = open_dataset(DataConfig(root=str(root), missing="skip"), "train")
    assert ([video.id for video in skipping.videos], skipping.missing) == (["b"], ("a",))
    (root / "train" / "b.npy").unlink()
    fails(root, "videos: expected at least one video with features, got none", missing="skip")
    (root / "split_train.txt").write_text("\n")
    fails(root, "expected at least one video with features, got none")
    (root / "split_train.txt").unlink()  # the subset of gt.json takes its place
    fails(root, r"train: feature files: expected 2 videos of gt\.json, got 2 missing: a, b")
    (root / "gt.json").unlink()
    fails(root, r"gt\.json: file: expected annotations: gt\.json, labels\.csv or annotations/\*\.json, got none")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 10), np.float32), r"a\.npy: shape: expected \[n >= 1, 4\], got \[4, 10\] \(looks transposed"),
        (np.ones((10, 5), np.float32), r"a\.npy: shape: expected \[n >= 1, 4\], got \[10, 5\]"),
        (np.ones((0, 4), np.float32), r"a\.npy: shape: expected \[n >= 1, 4\], got \[0, 4\]"),
        (np.ones(4, np.float32), r"a\.npy: shape: expected \[n >= 1, 4\], got \[4\]"),
        (np.array([["x"]]), r"a\.npy: dtype: expected numbers, got <U1"),
        (np.array([[None]]), r"a\.npy: dtype: expected numbers, got object \(pickled objects are not loaded\)"),
        (np.full((10, 4), np.nan, np.float16), r"a\.npy: value \[0, 0\]: expected a finite number, got nan"),
        (np.full((10, 4), 1e300), r"a\.npy: value \[0, 0\]: expected a number of .* size, below 1e\+15, got 1e\+300"),
        (np.full((10, 4), -np.inf), r"a\.npy: value \[0, 0\]: expected a finite number, got -inf"),
        (np.full((10, 4), np.inf, np.float32), r"a\.npy: value \[0, 0\]: expected a finite number, got inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arrays(root: Path, array: np.ndarray, message: str) -> None:
    (root / "features.json").write_text('{"fps": 25, "stride": 16, "window": 16, "feature_dim": 4}')
    np.save(root / "train" / "a.npy", array)
    fails(root, message)


def test_truncated_file(root: Path) -> None:
    path = root / "train" / "a.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    fails(root, r"a\.npy: file: expected a complete array \[10, 4\] of float16, got 5 bytes too few")
    unclosed = whole.replace(b"(10, 4)", b"(10, 4 ")
    for content in (b"", b"not an array", whole[:40], unclosed):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy: file: expected a complete \.npy or \.npz array"):
            load_features(path)


def test_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, feats=np.random.default_rng(0).normal(size=(50, 40)))
    whole = bytearray(path.read_bytes())
    whole[200:260] = bytes(60)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.npz: file: expected a complete \.npy or \.npz array"):
        load_features(path)


def test_unknown_and_absent_labels(root: Path) -> None:
    edit(root, "c", annotations=[{"label": "swim", "segment": [0, 1]}])
    fails(root, r"database\.c: expected labels among 2 known classes, got swim", "test")
    edit(root, "a", annotations=[])
    fails(root, r"database\.a: expected at least one label, got none")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"annotations": [{"segment": [0, 1]}]}, r"database\.a\.annotations\[0\]\.label: expected a string"),
        ({"annotations": [{"label": "run", "segment": [0]}]}, r"annotations\[0\]\.segment: expected \[start, end\]"),
        ({"annotations": [{"label": "run", "segment": ["x", 1]}]}, r"segment: expected a number of seconds, got 'x'"),
        ({"duration": -1}, r"database\.a\.duration: expected a positive number"),
        ({"annotations": 3}, r"database\.a: expected an object with a list"),
    ],
)
def test_malformed_annotations(root: Path, fields: dict[str, Any], message: str) -> None:
    edit(root, "a", **fields)
    fails(root, message)


def test_wrong_features_json(root: Path) -> None:
    for content, message in (
        ('{"fps": 0}', "fps: expected a positive number, got 0"),
        ('{"fps": 9}', "stride: expected a positive number, got none"),
        ("{", "expected valid JSON"),
    ):
        (root / "features.json").write_text(content)
        fails(root, message)


def test_wrong_feature_dim_in_features_json(root: Path) -> None:
    spec = '{"fps": 25, "stride": 16, "window": 16, "feature_dim": %s}'
    for value in ("0", "4.0", "true"):
        (root / "features.json").write_text(spec % value)
        fails(root, r"features\.json: feature_dim: expected a positive integer")
    (root / "features.json").write_text(spec % "5")
    fails(root, r"a\.npy: shape: expected \[n >= 1, 5\], got \[10, 4\]")


def test_listed_video_without_annotation(root: Path) -> None:
    (root / "split_train.txt").write_text("a\nnew\n")
    fails(root, r"split_train\.txt: new: expected a video of gt\.json, got not annotated there", missing="skip")


def test_segments_beyond_the_end_are_said_and_kept(root: Path) -> None:
    edit(root, "a", annotations=[{"label": "run", "segment": [1, 99]}])
    dataset = open_dataset(DataConfig(root=str(root)), "train")
    # a score must be that of the annotation file, whose official evaluation cuts nothing
    assert dataset.videos[0].segments[0].end_s == 99
    assert dataset.notes == (
        f"{root / 'gt.json'}: 1 segments end after their video's duration, and stay as they are annotated; are they "
        "in seconds?",
    )


def test_strings_without_durations(root: Path) -> None:
    edit(root, "a", annotations=[{"label": "run", "segment": ["1.5", "2"]}], duration=None)
    video = open_dataset(DataConfig(root=str(root)), "train").videos[0]
    assert video.segments[0][:2] == (1.5, 2.0)
    assert video.duration_s is None


def test_validation_split_keeps_what_was_found(root: Path) -> None:
    edit(root, "a", duration=60)
    edit(root, "b", annotations=[{"label": "run", "segment": [0, 1]}])
    dataset = open_dataset(DataConfig(root=str(root)), "train")
    training, validation = dataset.split_validation(0.5)
    assert (training.notes, training.missing) == (dataset.notes, dataset.missing)
    assert validation.notes == ()
    assert (training.videos, validation.videos) == (dataset.videos[:1], dataset.videos[1:])


def test_validation_split_is_the_end_of_the_list() -> None:
    training, validation = demo_dataset("train").split_validation(0.25)
    assert [video.id for video in validation.videos] == [f"train_{i:03d}" for i in range(30, 40)]
    assert len(training) == 30
    assert training.notes == ()
    with pytest.raises(DataError, match="both sides"):
        demo_dataset("train").split_validation(1.0)


def test_validation_split_of_a_list_that_goes_class_by_class() -> None:
    def split(labels: list[str], share: float) -> tuple[list[str], tuple[str, ...]]:
        videos = [Video(str(i), np.zeros((3, 2), np.float32), tuple(sorted(own))) for i, own in enumerate(labels)]
        classes = tuple(sorted(set("".join(labels))))
        training, validation = FeatureDataset(videos, classes, FeatureSpec()).split_validation(share)
        assert training.label_matrix().any(axis=0).all(), "every class is trained"
        assert len(training) + len(validation) == len(videos)
        return [video.id for video in validation.videos], training.notes

    held, notes = split([label for label in "abcd" for _ in range(5)], 0.2)
    assert held == ["4", "9", "14", "19"]
    assert notes == ("the last 0.2 of the list holds most of a class: the last of every class validate",)
    assert split(list("abcde" * 4), 0.2) == (["16", "17", "18", "19"], ())
    # the last video alone has a class of its own
    assert split([*"abcde" * 3, *"abcd", "er"], 0.2)[0] == ["14", "15", "16", "17", "18"]
    assert split(list("ab" * 5), 0.5) == (["5", "6", "7", "8", "9"], ())
    assert split(["a"] * 10, 0.9)[0] == [str(i) for i in range(1, 10)]


def test_videos_without_an_action_are_tested(root: Path) -> None:
    edit(root, "b", subset="test", annotations=[])
    for split in ("train", "test"):
        (root / f"split_{split}.txt").unlink()
        (root / split).rename(root / f"{split}ing")
    (root / "all").mkdir()
    for path in root.glob("*ing/*.npy"):
        path.rename(root / "all" / path.name)
    config = DataConfig(root=str(root), features="all")
    assert [video.id for video in open_dataset(config, "test", classes=("run",)).videos] == ["b", "c"]


def test_what_is_tested_alone_is_not_trained_on(root: Path) -> None:
    (root / "all").mkdir()
    for path in root.glob("t*/*.npy"):
        path.rename(root / "all" / path.name)
    (root / "gt.json").unlink()
    (root / "split_train.txt").unlink()
    table = root / "labels.csv"
    config = DataConfig(root=str(root), features="all")

    def trained() -> list[str]:
        return [video.id for video in open_dataset(config, "train").videos]

    table.write_text("video,label\na,run\nb,jump\nc,run\n")
    assert trained() == ["a", "b"], "split_test.txt names c"
    (root / "split_test.txt").write_text("v_c\n")
    assert trained() == ["a", "b"], "as ActivityNet's lists name it"
    (root / "split_test.txt").rename(root / "split_val.txt")
    assert trained() == ["a", "b"], "nor is what any other list names"
    (root / "split_val.txt").unlink()
    assert trained() == ["a", "b", "c"]
    table.write_text("video,label,subset\na,run,\nb,jump,\nc,run,test\n")
    assert trained() == ["a", "b"]
    table.write_text("video,label,subset\na,run,train\nb,jump,tran\nc,run,test\n")
    assert open_dataset(config, "train").notes == (f"{table}: videos of subset tran are neither trained on nor tested",)


def test_files_without_annotations(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float16))
    dataset = FeatureDataset.from_files([tmp_path / "a.npy"], ("run",), FeatureSpec(), 4)
    assert (dataset.videos[0].id, dataset.n_snippets(0), dataset.layout) == ("a", 3, "files")
    assert dataset.features(0).shape == (3, 4)
    with pytest.raises(DataError, match=r"expected \[n >= 1, 5\], got \[3, 4\]"):
        FeatureDataset.from_files([tmp_path / "a.npy"], ("run",), FeatureSpec(), 5).features(0)


def test_arrays_in_memory() -> None:
    videos = [Video("a", np.ones((3, 4), np.float32)), Video("b", np.ones((3, 5), np.float32))]
    assert FeatureDataset(videos, ("run",), FeatureSpec()).feature_dim == 4
    dataset = FeatureDataset(videos, ("run",), FeatureSpec())
    dataset.features(1)
    with pytest.raises(DataError, match=r"a: shape: expected \[n >= 1, 5\], got \[3, 4\]"):
        dataset.features(0)
    with pytest.raises(DataError, match="a: dtype: expected numbers, got list"):
        check_features([[1.0]], "a", None)


def test_files_need_distinct_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file name: expected one file a video"):
        FeatureDataset.from_files([tmp_path / "x" / "a.npy", tmp_path / "y" / "a.npy"], ("run",), FeatureSpec(), 4)


def test_dimensions_of_the_first_video_hold_for_all(root: Path) -> None:
    np.save(root / "train" / "b.npy", np.ones((10, 5), np.float32))
    fails(root, r"b\.npy: shape: expected \[n >= 1, 4\], got \[10, 5\]")


def test_large_splits_are_memory_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(40, dtype=np.float32).reshape(10, 4)
    np.save(root / "train" / "a.npy", array)
    kept = open_dataset(DataConfig(root=str(root)), "train")
    assert kept.features(0) is kept.features(0)
    monkeypatch.setattr("ahlm.data.dataset.MEMORY_BUDGET", 0)
    mapped = open_dataset(DataConfig(root=str(root)), "train")
    for _ in range(2):  # checked, then mapped
        np.testing.assert_array_equal(mapped.features(0), array)
    assert isinstance(mapped.features(0).base, np.memmap)
    assert mapped.n_snippets(0) == 10
    # what is wrong with a file is said when it is first read, mapped or not
    np.save(root / "train" / "b.npy", np.full((10, 4), np.nan, np.float32))
    with pytest.raises(DataError, match="finite"):
        open_dataset(DataConfig(root=str(root)), "train").features(1)


def test_durations_that_the_timeline_does_not_explain(root: Path) -> None:
    edit(root, "a", duration=7.8)  # two snippets of 0.64 s more than 6.4 s, and a little
    edit(root, "b", duration=4.0)
    dataset = open_dataset(DataConfig(root=str(root)), "train")
    assert dataset.notes == (
        f"{root / 'gt.json'}: 2 of 2 durations disagree with 0.64 s a snippet (settings) by more than 2 snippets, "
        "and the longer counts: a has 10 snippets and lasts 7.8 s",
    )
    assert [video.duration_s for video in dataset.videos] == [7.8, 6.4]
    edit(root, "a", duration=7.6)
    edit(root, "b", duration=5.2)
    dataset = open_dataset(DataConfig(root=str(root)), "train")
    assert dataset.notes == ()
    assert [video.duration_s for video in dataset.videos] == [7.6, 5.2]


def test_labels_without_segments(root: Path) -> None:
    edit(root, "a", annotations=[], labels=["swim", "run"])
    dataset = open_dataset(DataConfig(root=str(root)), "train")
    assert dataset.videos[0].labels == ("run", "swim")
    assert dataset.videos[0].segments == ()
    assert dataset.classes == ("jump", "run", "swim")


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 1000])
def test_sampling(n: int) -> None:
    rng = np.random.default_rng(0)
    index = sample_snippets_train(n, 10, rng)
    assert len(index) == 10
    assert (np.diff(index) >= 0).all()
    assert 0 <= index[0] <= index[-1] < n
    if n >= 10:  # one from each stratum
        np.testing.assert_array_equal(np.floor((index + 1e-9) * 10 / n) <= np.arange(10), True)
        assert (np.diff(index) > 0).all() or n == 10
    test = sample_snippets_test(n, 10)
    np.testing.assert_array_equal(test, np.arange(n) if n <= 10 else np.floor(np.arange(10) * n / 10))


@pytest.mark.parametrize("n", [11, 19, 40, 97])
def test_passes_begin_a_part_of_a_step_later(n: int) -> None:
    for turn in range(4):
        np.testing.assert_array_equal(
            sample_snippets_test(n, 10, turn, 4), np.floor((np.arange(10) + turn / 4) * n / 10)
        )
    assert (sample_snippets_test(7, 10, 3, 4) == np.arange(7)).all()


def test_sampling_stays_inside_the_video() -> None:
    class Highest(np.random.Generator):
        def random(self, size: int) -> np.ndarray:  # type: ignore[override]
            return np.full(size, np.nextafter(1, 0))

    # 749 + the largest number below 1 is 750 in double precision
    assert sample_snippets_train(2600, 750, Highest(np.random.PCG64(0)))[-1] == 2599


def test_crops_cover_the_video() -> None:
    rng = np.random.default_rng(0)
    starts = {crop_start(12, 10, rng) for _ in range(100)}
    assert starts == {0, 1, 2}
    assert crop_start(5, 10, rng) == 0


def test_collate_pads_with_zeros() -> None:
    batch, lengths = collate([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)])
    assert batch.shape == (2, 4, 3)
    assert lengths.tolist() == [2, 4]
    assert batch[0, 2:].abs().sum() == 0


def test_timeline() -> None:
    spec = FeatureSpec(25, 16, 16)
    np.testing.assert_allclose(spec.edges_s(3), [0, 0.64, 1.28, 1.92])
    np.testing.assert_allclose(spec.edge_position(spec.edges_s(5)), np.arange(6))
    assert spec.duration_s(3) == pytest.approx(1.92)
    overlapping = FeatureSpec(25, 4, 16)
    # snippet 0 is centred on frame 8, snippet 1 on frame 12: the edge between them is frame 10
    np.testing.assert_allclose(overlapping.edges_s(2)[1], 10 / 25)
    with pytest.raises(ValueError, match="fps must be a positive number"):
        FeatureSpec(fps=0)


def test_demo_is_frozen_and_written_as_it_is(tmp_path: Path) -> None:
    write_demo(tmp_path)
    for split, size in (("train", 40), ("test", 20)):
        memory, disk = demo_dataset(split), open_dataset(DataConfig(root=str(tmp_path)), split)
        assert len(memory) == len(disk) == size
        assert memory.classes == disk.classes
        for i in range(size):
            np.testing.assert_array_equal(memory.features(i), disk.features(i))
            assert memory.videos[i].labels == disk.videos[i].labels
    # RandomState's streams are frozen: these figures hold on every machine
    assert demo_dataset("train").n_snippets(0) == 172
    assert float(demo_dataset("test").features(3)[5, 6]) == pytest.approx(0.65380859375, abs=1e-6)


def test_piecewise_constant_switches_where_it_says() -> None:
    sequences, edges = piecewise_constant(3, seed=4, noise=0.0, drift=0.0)
    for sequence, switches in zip(sequences, edges, strict=True):
        jumps = np.flatnonzero(np.abs(np.diff(sequence, axis=0)).sum(1)) + 1
        np.testing.assert_array_equal(jumps, switches)
        assert (np.diff(switches) >= 4).all()
