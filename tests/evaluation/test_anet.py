from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ahlm.evaluation import ANETdetection


def test_published_fixture(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    folder = real_data / "predictions" / "mmaction2_fixture"
    content = json.loads((folder / "gt.json").read_text())
    task = ANETdetection(folder / "gt.json", folder / "result.json", subset="validation", verbose=True)
    task.evaluate()
    assert task.average_mAP == pytest.approx(0.6177579, abs=1e-7)
    assert task.mAP is not None
    assert task.mAP[0] == pytest.approx(0.71428571, abs=1e-8)
    assert len(content.get("database", content)) >= len(set(task.ground_truth["video-id"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "[INIT] Loaded annotations from validation subset.",
        f"\tNumber of ground truth instances: {len(task.ground_truth)}",
        f"\tNumber of predictions: {len(task.prediction)}",
    ]
    assert lines[3].startswith("\tFixed threshold for tiou score: [0.5 ")
    assert lines[-2] == "[RESULTS] Performance on ActivityNet detection task."
    assert lines[-1] == f"\tAverage-mAP: {task.average_mAP}"


def test_classes_in_order_of_appearance(tmp_path: Path) -> None:
    annotations = [{"label": label, "segment": [i, i + 1]} for i, label in enumerate(["z", "a", "z", "m"])]
    (tmp_path / "gt.json").write_text(
        json.dumps({"database": {"v": {"subset": "validation", "annotations": annotations}}})
    )
    found = [{"label": "z", "score": 0.9, "segment": [0, 1]}, {"label": "m", "score": 0.8, "segment": [3, 4]}]
    (tmp_path / "pred.json").write_text(json.dumps({"results": {"v": found}}))
    task = ANETdetection(tmp_path / "gt.json", tmp_path / "pred.json", tiou_thresholds=[0.5])
    task.evaluate()
    assert task.activity_index == {"z": 0, "a": 1, "m": 2}
    assert task.ap is not None
    np.testing.assert_array_equal(task.ap, [[0.5, 0, 1]])
    assert (task.gt_fields, task.pred_fields) == (task.GROUND_TRUTH_FIELDS, task.PREDICTION_FIELDS)
    assert (task.check_status, task.blocked_videos, task.subset) == (True, [], "validation")
    pytest.importorskip("pandas")
    assert task.ground_truth.columns.tolist() == ["video-id", "t-start", "t-end", "label"]
    assert task.ground_truth["label"].tolist() == [0, 1, 0, 2]
    assert task.prediction["score"].tolist() == [0.9, 0.8]
    assert task.prediction["video-id"].tolist() == ["v", "v"]


def test_file_names_are_needed() -> None:
    with pytest.raises(OSError, match="valid ground truth file"):
        ANETdetection()
    with pytest.raises(OSError, match="valid prediction file"):
        ANETdetection("gt.json")


def test_published_crnet(real_data: Path) -> None:
    task = ANETdetection(
        real_data / "thumos14" / "gt_210_videos.json",
        real_data / "predictions" / "thumos14_crnet.json",
        subset="test",
        tiou_thresholds=np.linspace(0.1, 0.7, 7),
    )
    task.evaluate()
    assert task.mAP is not None
    assert np.round(100 * task.mAP, 2).tolist() == [66.24, 60.23, 52.03, 42.99, 34.30, 23.08, 12.88]
