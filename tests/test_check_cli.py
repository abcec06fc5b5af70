from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.check import main
from ahlm.config import DataConfig
from ahlm.data.dataset import open_dataset
from ahlm.data.synthetic import demo_dataset
from ahlm.data.write import LAYOUTS, write_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    splits = {split: demo_dataset(split).subset(range(8)) for split in ("train", "test")}
    write_dataset(tmp_path / "demo", splits, features="demo")
    return tmp_path / "demo"


def check(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON report."""
    code = main([str(root), "--json", *options])
    report = json.loads(capsys.readouterr().out)
    assert (code == 3) == bool(report["errors"])
    assert report["errors"] == sum(problem["level"] == "error" for problem in report["problems"])
    return code, report


def kinds(report: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted({(problem["level"], problem["kind"]) for problem in report["problems"]})


def texts(report: dict[str, Any], kind: str) -> list[str]:
    return [problem["text"] for problem in report["problems"] if problem["kind"] == kind]


def edit(root: Path, video: str, **fields: Any) -> None:
    content = json.loads((root / "gt.json").read_text())
    content["database"][video] |= fields
    (root / "gt.json").write_text(json.dumps(content))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_wrong(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {split: demo_dataset(split).subset(range(8)) for split in ("train", "test")}
    write_dataset(tmp_path, splits, layout, features="demo")
    code, report = check(tmp_path, capsys)
    assert (code, report["problems"], report["layout"]) == (0, [], layout)
    for split, dataset in splits.items():
        figures = report["splits"][split]
        lengths = [dataset.n_snippets(i) for i in range(8)]
        assert (figures["listed"], figures["with_features"], figures["missing"]) == (8, 8, 0)
        assert (figures["snippets"], figures["shortest"], figures["longest"]) == (sum(lengths), *_ends(lengths))
        assert figures["segments"] == sum(len(video.segments) for video in dataset.videos)
        assert figures["hours"] == pytest.approx(sum(lengths) * 0.64 / 3600)
        for label, counts in report["classes"].items():
            assert counts[f"{split}_videos"] == sum(label in video.labels for video in dataset.videos)
    assert main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert f"layout {layout}" in table
    assert table.endswith("0 errors, 0 warnings\n")


def _ends(lengths: list[int]) -> tuple[int, int]:
    return min(lengths), max(lengths)


def test_all_problems_in_one_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train" / "train_000.npy").unlink()
    np.save(root / "train" / "train_001.npy", np.ones((20, 63), np.float16))
    np.save(root / "train" / "train_002.npy", np.full((20, 64), np.nan, np.float16))
    (root / "train" / "train_003.npy").write_bytes(b"?")
    np.save(root / "train" / "nobody.npy", np.ones((20, 64), np.float16))
    shutil.copy(root / "train" / "train_004.npy", root / "train" / "train_005.npy")
    shutil.copy(root / "test" / "test_000.npy", root / "train" / "train_006.npy")
    np.savez(root / "train" / "train_007.npz", feats=np.load(root / "train" / "train_007.npy"))
    edit(root, "train_007", annotations=[])
    edit(root, "test_001", annotations=[{"label": "Swim", "segment": [0, 1]}])
    edit(root, "test_002", duration="long")
    edit(root, "test_003", annotations=[{"label": "Jump", "segment": [5, 5]}, {"label": "Jump", "segment": [-1, 999]}])
    edit(root, "test_004", annotations=[{"label": "Jump", "segment": [1, 2]}] * 2)
    edit(root, "test_005", annotations=[])
    with (root / "split_test.txt").open("a") as file:
        file.write("test_007\nnew\ntrain_004\n")
    code, report = check(root, capsys)
    assert code == 3
    assert kinds(report) == [
        ("error", "label unknown to training"),
        ("error", "malformed annotation"),
        ("error", "missing features"),
        ("error", "test features in training"),
        ("error", "training video without label"),
        ("error", "unreadable features"),
        ("error", "unusable features"),
        ("error", "video in both splits"),
        ("error", "video without annotation"),
        ("warning", "class without test video"),
        ("warning", "duration and snippets disagree"),
        ("warning", "file of no listed video"),
        ("warning", "repeated in a list"),
        ("warning", "repeated segment"),
        ("warning", "same features twice"),
        ("warning", "segment after the video's end"),
        ("warning", "segment before the video"),
        ("warning", "segment without length"),
        ("warning", "test video without segments"),
        ("warning", "two files of one video"),
    ]
    # test_002 is left out for its duration; train_004 has no features under test/
    expected = {"train_000", "new", "train_004"}
    assert {text.rsplit(" ", 1)[-1] for text in texts(report, "missing features")} == expected
    unusable = texts(report, "unusable features")
    assert len(unusable) == 2
    assert "train_001.npy: shape: expected [n >= 1, 64], got [20, 63]" in unusable[0]
    assert "train_002.npy: value [0, 0]: expected a finite number, got nan" in unusable[1]
    assert report["feature_dim"] == 64
    # the same in words
    assert main([str(root)]) == 3
    out = capsys.readouterr().out
    assert "error: missing features (3)" in out
    assert f"{report['errors']} errors, {report['warnings']} warnings" in out


def test_kinds_with_many_problems_are_cut_in_the_table_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "train").glob("*.npy"):
        path.unlink()
    _, report = check(root, capsys)
    assert len(texts(report, "missing features")) == 8
    assert main([str(root)]) == 3
    assert "  ... and 3 more (--json lists all)" in capsys.readouterr().out


def test_wrong_timeline(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "features.json").unlink()
    assert check(root, capsys)[0] == 0
    code, report = check(root, capsys, "--data.fps", "30")
    assert code == 3
    assert "disagree with 0.5333 s a snippet (settings); durations suggest 0.64 s" in texts(report, "wrong timeline")[0]
    assert report["timeline"] == {"fps": 30.0, "stride": 16, "window": 16}


def test_frames_instead_of_seconds_in_a_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((root / "gt.json").read_text())["database"]
    rows = [
        f"{name},{item['label']},{25 * item['segment'][0]},{25 * item['segment'][1]}"
        for name, entry in content.items()
        for item in entry["annotations"]
    ]
    (root / "gt.json").unlink()
    (root / "labels.csv").write_text("\n".join(["Video,Label,Start,End", *rows]))
    code, report = check(root, capsys)
    assert code == 3
    assert texts(report, "wrong timeline")[0].endswith("are segments in seconds?")
    shutil.move(root / "labels.csv", root / "frames.csv")
    for entry in content.values():
        for item in entry["annotations"]:
            item["segment"] = [25 * time for time in item["segment"]]
    (root / "gt.json").write_text(json.dumps({"database": content}))
    code, report = check(root, capsys)
    assert code == 3
    assert texts(report, "wrong timeline")[0].endswith("are segments in seconds?")
    assert "are they in seconds?" in open_dataset(DataConfig(root=str(root)), "train").notes[-1]
    (root / "gt.json").unlink()
    shutil.move(root / "frames.csv", root / "labels.csv")
    notes = open_dataset(DataConfig(root=str(root)), "train").notes
    assert any("segments end after their video's features" in note for note in notes)


def test_one_odd_duration_is_a_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root, "train_000", duration=500)
    code, report = check(root, capsys)
    assert (code, kinds(report)) == (0, [("warning", "duration and snippets disagree")])


def test_transposed_features(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "features.json").unlink()
    for path in root.rglob("*.npy"):
        np.save(path, np.load(path).T)
    code, report = check(root, capsys)
    assert code == 3
    assert kinds(report) == [("error", "transposed features")]
    assert "all have 64 rows and differ in columns" in report["problems"][0]["text"]


def test_constant_features_and_class_imbalance(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((root / "gt.json").read_text())
    shape = np.load(root / "train" / "train_000.npy").shape
    np.save(root / "train" / "train_000.npy", np.ones(shape, np.float16))
    for i in range(8, 20):  # ten and more videos of one class beside a single one of another
        name = f"train_{i:03d}"
        np.save(root / "train" / f"{name}.npy", np.random.default_rng(i).normal(size=(30, 64)).astype(np.float16))
        annotations = [{"label": "Jump", "segment": [0, 1]}]
        content["database"][name] = {"subset": "train", "annotations": annotations}
    content["database"]["train_000"]["annotations"] = [{"label": "Rare", "segment": [0, 1]}]
    (root / "gt.json").write_text(json.dumps(content))
    with (root / "split_train.txt").open("a") as file:
        file.writelines(f"train_{i:03d}\n" for i in range(8, 20))
    code, report = check(root, capsys)
    assert code == 0
    assert kinds(report) == [
        ("warning", "class imbalance"),
        ("warning", "class without test video"),
        ("warning", "constant features"),
    ]
    assert texts(report, "class imbalance")[0].startswith("Rare has 1 training videos, Jump has 1")


def test_tags_alone_are_no_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gt.json", "split_train.txt", "split_test.txt"):
        (root / name).unlink()
    shutil.rmtree(root / "test")
    (root / "labels.csv").write_text("video,label\n" + "".join(f"train_{i:03d},Jump\n" for i in range(8)))
    code, report = check(root, capsys)
    assert (code, kinds(report)) == (0, [("warning", "no test split")])


def test_labels_that_look_like_several(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root, "train_000", labels=["Jump; Spin"])
    edit(root, "train_001", labels=["Spin "])
    report = check(root, capsys)[1]
    assert "Jump; Spin; a line, or an entry, for each label" in texts(report, "label that looks like several")[0]
    assert texts(report, "labels that differ in case or spaces alone")[0].endswith("'Spin', 'Spin '")


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_features_of_an_unusual_scale(factor: float, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in root.glob("t*/*.npy"):
        np.save(path, factor * np.load(path).astype(np.float32))
    code, report = check(root, capsys)
    (text,) = texts(report, "unusual feature scale")
    assert code == 0
    assert "train with --squash true" in text


def test_labels_and_subsets_that_look_like_slips(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "split_test.txt").unlink()
    names = (root / "split_train.txt").read_text().split()
    content = json.loads((root / "gt.json").read_text())
    for name, entry in content["database"].items():
        entry["subset"] = "train" if name in names else "test"
    first = content["database"][names[0]]
    first["annotations"].append({"segment": [0, 1], "label": first["annotations"][0]["label"].upper()})
    content["database"]["test_000"]["subset"] = "tst"
    (root / "gt.json").write_text(json.dumps(content))
    report = check(root, capsys)[1]
    (same,) = texts(report, "labels that differ in case or spaces alone")
    assert same.endswith(f"{first['annotations'][-1]['label']!r}, {first['annotations'][0]['label']!r}")
    assert texts(report, "video of neither split") == [f"{root / 'gt.json'}: 1 labelled videos, subset tst: test_000"]


def test_empty_list_and_nothing_to_score(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((root / "gt.json").read_text())
    for name, entry in content["database"].items():
        if name.startswith("test"):
            entry |= {"labels": ["Jump"], "annotations": []}
    (root / "gt.json").write_text(json.dumps(content))
    code, report = check(root, capsys)
    assert (code, ("warning", "test video without segments") in kinds(report)) == (0, True)
    assert texts(report, "test video without segments")[0].endswith("; nothing can be scored")
    (root / "split_test.txt").write_text("\n")
    code, report = check(root, capsys)
    assert (code, texts(report, "empty split")) == (3, [f"{root / 'split_test.txt'}: no video"])


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = check(tmp_path / "no", capsys)
    assert code == 3
    assert texts(report, "unreadable data set") == [
        f"{tmp_path / 'no'}: folder: expected a data set, got no such folder"
    ]
    assert main([str(tmp_path / "no")]) == 3
    assert "1 errors, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["x", "--data.fps", "0"], ["x", "--data.stride", "nan"], ["x", "--nonsense"]])
def test_wrong_command_lines(options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(options)
    assert exit_.value.code == 2


def test_lists_that_cannot_be_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "missing_files.txt").write_bytes(b"\xff\xfe\x00")
    (root / "split_train.txt").write_text("\ufefftrain_000\ntrain_001\ntrain_000\n", encoding="utf-8")
    code, report = check(root, capsys)
    assert code == 3
    assert "missing_files.txt" in texts(report, "unreadable list")[0]
    assert "train_000" in texts(report, "repeated in a list")[0]  # the rest is looked at all the same


def test_interrupted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ahlm.data.inspection.load_features", interrupt)
    assert main([str(root)]) == 130


def test_real_data(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, classes in (("ucf15", 10), ("hapt", 9)):
        code, report = check(real_data / name, capsys)
        assert (code, report["problems"], len(report["classes"])) == (0, [], classes)
