from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.errors import DataError
from ahlm.evaluate import main
from ahlm.evaluation import PROTOCOLS, evaluate
from ahlm.evaluation.average_precision import BACKEND
from ahlm.evaluation.boundaries import change_point_scores, matches, split_at_boundaries, true_boundaries
from ahlm.evaluation.evaluate import read_ambiguous
from ahlm.evaluation.predictions import read_database, select_subset, truth_instances
from ahlm.evaluation.protocols import same_subset
from ahlm.timeline import FeatureSpec

# official algorithm, see the data sheet of the test data; percent, two decimals
CRNET_210 = [66.24, 60.23, 52.03, 42.99, 34.30, 23.08, 12.88]
CRNET_212 = [65.46, 59.54, 51.42, 42.45, 33.84, 22.75, 12.69]
STPN_210 = [52.12, 44.20, 34.70, 26.06, 17.70, 10.09, 4.99, 1.34, 0.10]
MMACTION2 = [0.71428571] * 3 + [0.6875] * 2 + [0.59722222] + [0.52083333] * 3 + [0.5]


def truth() -> dict[str, Any]:
    return {
        "database": {
            "a": {"subset": "Testing", "annotations": [{"label": "run", "segment": ["0", "10.0"]}]},
            "b": {"subset": "test", "duration": 30, "annotations": [{"label": "jump", "segment": [5, 9]}]},
            "c": {"subset": "validation", "annotations": [{"label": "run", "segment": [0, 1]}]},
        }
    }


def predictions() -> dict[str, Any]:
    return {"results": {"a": [{"label": "run", "score": "0.5", "segment": ["0", 10]}], "b": []}}


def percent(values: Any) -> list[float]:
    return [round(100 * value, 2) for value in values]


@pytest.mark.parametrize(
    ("ground_truth", "expected", "average", "n"), [("210", CRNET_210, 41.68, 3311), ("212", CRNET_212, 41.17, 3358)]
)
def test_published_crnet(real_data: Path, ground_truth: str, expected: list[float], average: float, n: int) -> None:
    result = evaluate(
        real_data / "thumos14" / f"gt_{ground_truth}_videos.json",
        real_data / "predictions" / "thumos14_crnet.json",
        ties="official",
    )
    assert percent(result.mAP.values()) == expected
    assert round(100 * result.average["0.1:0.7"], 2) == average
    assert result.counts["instances"] == n
    assert result.counts["videos"] == int(ground_truth)
    assert result.counts["predictions"] == 19827
    assert result.counts["missing_videos"] == int(ground_truth) - 210


def test_published_stpn(real_data: Path) -> None:
    result = evaluate(
        real_data / "thumos14" / "gt_210_videos.json",
        real_data / "predictions" / "thumos14_stpn.json",
        tious=[i / 10 for i in range(1, 10)],
        ties="official",
    )
    assert percent(result.mAP.values()) == STPN_210
    # the data sheet averages the rounded figures, 21.255...; its own page prints 21.3
    assert 100 * result.average["0.1:0.9"] == pytest.approx(21.26, abs=0.01)


def test_published_mmaction2_fixture(real_data: Path) -> None:
    folder = real_data / "predictions" / "mmaction2_fixture"
    result = evaluate(folder / "gt.json", folder / "result.json", "activitynet-1.3")
    np.testing.assert_allclose(list(result.mAP.values()), MMACTION2, atol=1e-8)
    assert result.average["0.5:0.95"] == pytest.approx(0.6177579, abs=1e-7)


def test_stable_ties_stay_close_to_the_official_ones(real_data: Path) -> None:
    """Two hundredths of a point on real detections: how far tie rules alone move a score."""
    arguments = (real_data / "thumos14" / "gt_210_videos.json", real_data / "predictions" / "thumos14_crnet.json")
    stable, official = (list(evaluate(*arguments, ties=ties).mAP.values()) for ties in ("stable", "official"))
    np.testing.assert_allclose(stable, official, atol=3e-4)


def test_snippet_protocol_counts(real_data: Path) -> None:
    thumos = real_data / "thumos14"
    name, database = read_database(thumos / "gt_212_videos.json")
    database = select_subset(name, database, "test")
    videos, classes, instances = truth_instances(name, database)
    assert (len(videos), len(classes), instances.size) == (212, 20, 3358)
    snippet_s = PROTOCOLS["thumos14-snippet"].snippet_s
    assert snippet_s is not None
    rounded = np.round(instances.end / snippet_s) - np.round(instances.start / snippet_s)
    assert (rounded == 0).sum() == 17
    assert len(read_ambiguous(thumos / "Ambiguous_test.txt", videos)) > 0
    crnet = real_data / "predictions" / "thumos14_crnet.json"
    plain = evaluate(thumos / "gt_212_videos.json", crnet, "thumos14-snippet")
    filtered = evaluate(
        thumos / "gt_212_videos.json", crnet, "thumos14-snippet", ambiguous=thumos / "Ambiguous_test.txt"
    )
    # the table of docs/protocols.md
    assert (plain.counts["predictions"], filtered.counts["predictions"]) == (15849, 15419)
    assert percent(plain.mAP.values()) == [65.31, 59.69, 50.98, 42.34, 33.00, 22.59, 12.10]
    assert percent(plain.average.values()) == [50.27, 32.20, 40.86]
    assert percent(filtered.average.values()) == [51.49, 33.00, 41.86]


def test_files_as_others_write_them() -> None:
    result = evaluate(truth(), predictions())
    assert result.mAP["0.5"] == 0.5  # one class found, one missed
    assert result.per_class["run"]["0.7"] == 1
    assert result.counts["videos"] == 2
    assert result.counts["missing_videos"] == 0


@pytest.mark.parametrize(
    ("a", "b"), [("test", "Testing"), ("val", "validation"), ("TRAIN", "training"), ("odd", "odd")]
)
def test_subset_aliases(a: str, b: str) -> None:
    assert same_subset(a, b)
    assert not same_subset(a, "other")


def test_exact_thresholds() -> None:
    assert PROTOCOLS["thumos14"].tious == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert PROTOCOLS["activitynet-1.3"].tious[-1] == 0.95


def test_unknown_labels_are_left_out_and_counted() -> None:
    found = predictions()
    found["results"]["a"].append({"label": "fly", "score": 1.0, "segment": [0, 10]})
    found["results"]["z"] = [{"label": "run", "score": 1.0, "segment": [0, 10]}]
    with pytest.warns(UserWarning, match="1 predictions with labels"):
        result = evaluate(truth(), found)
    assert result.mAP == evaluate(truth(), predictions()).mAP
    assert (result.counts["unknown_labels"], result.counts["unknown_videos"]) == (1, 1)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("results", "a", 0, "score"), float("nan"), r"results\.a\[0\]\.score: expected a finite number, got nan"),
        (("results", "a", 0, "segment"), [1], r"results\.a\[0\]\.segment: expected \[start, end\]"),
        (("results", "a", 0, "segment"), ["x", 2], r"results\.a\[0\]\.segment: expected a number, got 'x'"),
        (("results", "a", 0, "label"), 3, r"results\.a\[0\]\.label: expected a string"),
        (("results", "a"), 3, r"results\.a: expected a list"),
        (("results",), [], "results: expected an object"),
    ],
)
def test_malformed_predictions(path: tuple[Any, ...], value: Any, message: str) -> None:
    found = copy.deepcopy(predictions())
    target: Any = found
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(DataError, match=message):
        evaluate(truth(), found)


def test_command_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "gt.json", tmp_path / "pred.json"]
    for file, content in zip(files, (truth(), predictions()), strict=True):
        file.write_text(json.dumps(content))
    out = tmp_path / "out.json"
    assert main([*map(str, files), "--json", str(out)]) == 0
    assert "subset test" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["mAP"]["0.5"] == 0.5
    assert set(written["average"]) == {"0.1:0.5", "0.3:0.7", "0.1:0.7"}
    assert {"videos", "instances", "predictions", "missing_videos"} <= written["counts"].keys()
    assert main([*map(str, files), "--subset", "train"]) == 3
    assert "expected ground truth, got none; subsets in this file: Testing, test, validation" in capsys.readouterr().err
    files[1].write_text('{"results": {')
    assert main([*map(str, files)]) == 3
    assert "pred.json: line 1: expected valid JSON" in capsys.readouterr().err
    assert main([str(tmp_path / "none.json"), str(files[1])]) == 3
    for wrong in (["--protocol", "unknown", *map(str, files)], [*map(str, files), "--json", str(out)]):
        with pytest.raises(SystemExit) as usage:
            main(wrong)
        assert usage.value.code == 2


def test_help_starts_without_torch() -> None:
    code = (
        "import sys, ahlm.evaluate\n"
        "try: ahlm.evaluate.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numba'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_compiled_core_is_in_use_where_it_was_built() -> None:
    import importlib.util

    assert (BACKEND == "c++") == (importlib.util.find_spec("ahlm._core") is not None)


def test_matches_are_one_to_one() -> None:
    assert matches([1, 2, 3], [2], 1) == 1
    assert matches([1, 2, 3], [1, 2, 3], 0) == 3
    assert matches([4], [2, 6], 1) == 0
    assert matches([], [2], 1) == 0


def test_boundaries_at_the_edges_and_twins_are_left_out() -> None:
    spec = FeatureSpec(fps=1, stride=1, window=1)
    segments = [(0.0, 5.0), (5.1, 9.8), (0.4, 3.0)]
    np.testing.assert_allclose(true_boundaries(segments, spec, 10), [3.0, 5.0])


def test_change_point_scores_by_hand() -> None:
    scores = change_point_scores([[3, 8], []], [[4.0], [2.0]], [11, 11], tolerance=1)
    assert scores == (0.5, 0.5, 0.5, 0.1, 0.1)
    assert change_point_scores([[]], [[]], [1]) == (0, 0, 0, 0, 0)


def test_change_points_in_a_file_are_scored() -> None:
    truth_with_times = {
        "database": {"v": {"subset": "test", "duration": 10.0, "annotations": [{"label": "run", "segment": [3, 6]}]}}
    }
    extra = {
        "features": {"fps": 1, "stride": 1, "window": 1},
        "n_snippets": {"v": 10},
        "change_points": {"v": {"detected": [3.0, 5.0, 8.0], "refined": [3.0, 8.0], "foreground": [3.0]}},
    }
    result = evaluate(truth_with_times, {"results": {"v": []}, "ahlm": extra})
    assert result.change_points is not None
    assert result.change_points["detected"]["1"]["recall"] == 1
    assert result.change_points["refined"]["1"]["precision"] == 0.5
    assert result.change_points["foreground"]["2"]["precision"] == 1
    assert "change-points foreground" in str(result)


def test_values_at_boundaries_and_elsewhere() -> None:
    values = np.array([9.0, 1, 5, 2, 3, 0, 0, 0, 7, 6])
    at, elsewhere = split_at_boundaries(values, [2.4, 9.6])
    assert at.tolist() == [5, 7]  # edges 1-3, edges 8-9; edge 0 is no edge
    assert elsewhere.tolist() == [3, 0, 7]  # around edges 5, 6, 7
    at, elsewhere = split_at_boundaries(values, [])
    assert len(at) == 0
    assert elsewhere.tolist() == [5, 5, 5, 3, 3, 0, 7, 7, 7]
    assert [len(side) for side in split_at_boundaries([1.0], [])] == [0, 0]
