from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ahlm.data.annotations import Annotation, read_annotations, read_split, subset_videos
from ahlm.errors import DataError


def test_real_annotation_files(real_data: Path) -> None:
    counts = {}
    for videos in (210, 212):
        annotations = read_annotations(real_data / "thumos14" / f"gt_{videos}_videos.json")
        test = [annotation for annotation in annotations.values() if annotation.subset == "test"]
        counts[videos] = (len(test), sum(len(annotation.segments) for annotation in test))
    assert counts == {210: (210, 3311), 212: (212, 3358)}
    test = [a for a in read_annotations(real_data / "thumos14" / "gt_212_videos.json").values() if a.subset == "test"]
    late = sum(s.end_s > a.duration_s for a in test for s in a.segments if a.duration_s is not None)
    assert late == 62


def test_csv_of_tags(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("video,label,start,end\na,run,,\na,jump,1,2.5\nb,run,,\n")
    annotations = read_annotations(path)
    assert annotations["a"].labels == ("jump", "run")
    assert annotations["a"].segments == ((1.0, 2.5, "jump"),)
    assert annotations["b"].segments == ()
    assert annotations["a"].subset == ""
    path.write_text("\ufeffvideo,label,subset\na,run,train\n", encoding="utf-8")
    assert read_annotations(path)["a"].subset == "train"


def test_columns_that_are_not_read_are_an_error(tmp_path: Path) -> None:
    """The split under another name would put test videos into training."""
    path = tmp_path / "labels.csv"
    path.write_text("video,label,t-start,split\na,run,1,test\n")
    with pytest.raises(DataError, match=r"header: expected the columns video,label.*, got also split, t-start"):
        read_annotations(path)
    path.write_text("video,label,\na,run,\n")  # an empty column is none
    assert read_annotations(path)["a"].labels == ("run",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,label\na\n", "line 2: expected a video and a label"),
        ("video,label\n ,run\n", "line 2: expected a video and a label"),
        ("video,label,start,end\na,run,1,\n", "line 2: expected a number of seconds, got ''"),
        ("video,label,start,end\na,run,1,soon\n", "line 2: expected a number of seconds, got 'soon'"),
        ("video,label,start,end\na,run,8.96,3.84\n", r"line 2: expected a start before its end, got .*\(swapped\?\)"),
        ("video,label,subset\na,run,train\na,run,test\n", "line 3: expected subset train, got test"),
        ("video,label\na,run,jump\n", r"line 2: expected 2 cells, as in the header, got also jump \(a line a label\)"),
    ],
)
def test_malformed_lines_of_a_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text + "b,run\n")
    with pytest.raises(DataError, match=message):
        read_annotations(path)
    problems: list[DataError] = []
    assert "b" in read_annotations(path, problems)
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,tag\na,run\n", r"header: expected the columns video,label.*got name,tag"),
        ('video,"label\na,run\n', "a CSV whose quotes are closed"),
        ("video;label\na;run\n", r"got video;label \(columns are parted by commas\)"),
        ("video,label\n", r"lines: expected a video and a label each, got none"),
        ('video,label\na,run\nb,"jump\nc,run\n', r"labels\.csv: line 3: expected a CSV whose quotes are closed"),
        ("video,label\na,L\u00e4ufer\n", r"labels\.csv: file: expected a CSV .* in UTF-8, got"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_annotations(path)


def test_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.csv: file: expected a CSV .* got no such file"):
        read_annotations(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"annotations": [{"segment": [0, 1]}]}, r"database\.a\.annotations\[0\]\.label: expected a string"),
        ({"annotations": [{"label": "run"}]}, r"annotations\[0\]\.segment: expected \[start, end\].* got None"),
        ({"annotations": [{"label": "run", "segment": ["0", "nan"]}]}, "expected a finite number of seconds, got nan"),
        ({"annotations": [{"label": "run", "segment": [0, True]}]}, "expected a finite number of seconds, got True"),
        ({"duration": 0}, r"database\.a\.duration: expected a positive number"),
        ({"labels": "run"}, r"database\.a\.labels: expected a list of strings, got run"),
        (3, r"database\.a: expected an object with a list of annotations, got int"),
    ],
)
def test_malformed_videos(tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({"database": {"a": entry, "b": {}}}))
    with pytest.raises(DataError, match=message):
        read_annotations(path)
    problems: list[DataError] = []
    assert list(read_annotations(path, problems)) == ["b"]
    assert len(problems) == 1


def test_not_an_annotation_file(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"gt\.json: database: expected an object of videos, got NoneType"):
        read_annotations(path)


def test_subsets_of_thumos_and_of_activitynet() -> None:
    def split(name: str, **subsets: str) -> list[str]:
        unlabelled = {"hidden"}
        annotations = {
            video: Annotation(subset, None, () if video in unlabelled else ("run",), ())
            for video, subset in subsets.items()
        }
        return subset_videos(annotations, name)

    thumos = {"a": "Validation", "b": "Test"}
    assert (split("train", **thumos), split("test", **thumos)) == (["a"], ["b"])
    activitynet = {"a": "training", "b": "validation", "hidden": "testing"}
    assert (split("train", **activitynet), split("test", **activitynet)) == (["a"], ["b"])
    assert split("val", **activitynet) == ["b"]
    # one subset never serves as both
    assert (split("train", a="validation"), split("test", a="validation")) == ([], ["a"])
    assert split("heldout", a="HeldOut") == ["a"]


def test_examples_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = dict(re.findall(r"```(json|)\n(.*?)```", text[text.index("## Annotations") :], flags=re.DOTALL)[:2])
    (tmp_path / "gt.json").write_text(blocks["json"])
    (tmp_path / "labels.csv").write_text(blocks[""])
    activitynet, table = read_annotations(tmp_path / "gt.json"), read_annotations(tmp_path / "labels.csv")
    assert activitynet == {"ID": Annotation("training", 120.5, ("Jump",), ((12.0, 15.5, "Jump"),))}
    assert table["ID"] == Annotation("train", None, ("Jump",), ((12.0, 15.5, "Jump"),))
    assert table["ID2"] == Annotation("train", None, ("Spin",), ())


def test_split_lists(tmp_path: Path) -> None:
    path = tmp_path / "split_train.txt"
    path.write_text("\ufeffb\n\n a \nb\n", encoding="utf-8")
    assert read_split(path) == ["b", "a"]
    with pytest.raises(DataError, match="file: expected a list of video names, one a line, got no such file"):
        read_split(tmp_path / "no.txt")
