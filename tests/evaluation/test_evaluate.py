from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.errors import DataError
from ahlm.evaluate import main
from ahlm.evaluation import PROTOCOLS, evaluate
from ahlm.evaluation.average_precision import temporal_iou
from ahlm.evaluation.boundaries import change_point_scores, matches, split_at_boundaries, true_boundaries
from ahlm.evaluation.predictions import read_database, select_subset, truth_instances
from ahlm.evaluation.protocols import same_subset
from ahlm.evaluation.scoring import read_ambiguous
from ahlm.kernels.core import choose_backend
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


# protocol, file: videos, instances, predictions of CRNet's that count; what was left out; the averages
PROTOCOL_FIGURES: dict[tuple[str, int], tuple[list[int], dict[str, int], list[float]]] = {
    ("thumos14", 212): ([212, 3358, 19827], {}, [50.55, 32.63, 41.17]),
    ("thumos14", 210): ([210, 3311, 19827], {}, [51.16, 33.05, 41.68]),
    ("thumos14-210", 212): ([210, 3311, 19827], {}, [51.16, 33.05, 41.68]),
    ("thumos14-210", 210): ([210, 3311, 19827], {}, [51.16, 33.05, 41.68]),
    ("thumos14-0.9", 212): ([212, 3358, 19827], {}, [41.17, 32.46]),
    ("thumos14-0.9", 210): ([210, 3311, 19827], {}, [41.68, 32.87]),
    ("thumos14-snippet", 212): ([212, 3358, 19304], {"empty_instances": 17, "ambiguous": 523}, [51.11, 32.69, 41.53]),
    ("thumos14-snippet-delu", 212): (
        [212, 3358, 15423],
        {"empty_instances": 17, "ambiguous": 523, "short": 3881},
        [51.49, 32.98, 41.85],
    ),
    ("thumos14-snippet-unfiltered", 212): ([212, 3358, 19827], {"empty_instances": 17}, [49.90, 31.91, 40.55]),
}


@pytest.mark.parametrize(("protocol", "file"), PROTOCOL_FIGURES, ids=str)
def test_protocols_on_the_real_ground_truth(real_data: Path, protocol: str, file: int) -> None:
    thumos = real_data / "thumos14"
    result = evaluate(
        thumos / f"gt_{file}_videos.json", real_data / "predictions" / "thumos14_crnet.json", protocol=protocol
    )
    counts, left_out, averages = PROTOCOL_FIGURES[protocol, file]
    assert [result.counts[name] for name in ("videos", "instances", "predictions")] == counts
    there = {name: n for name, n in result.counts.items() if name in ("empty_instances", "ambiguous", "short")}
    assert there == left_out
    assert percent(result.average.values()) == averages  # the table of docs/protocols.md
    assert result.counts["classes"] == 20


def test_every_protocol_is_in_the_page_with_its_figures(real_data: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in PROTOCOLS)
    for (protocol, file), (_, _, averages) in PROTOCOL_FIGURES.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{protocol}` | {file} "))
        assert all(f"{value:.2f}" in line for value in averages), line


def test_ground_truth_of_thumos14(real_data: Path) -> None:
    """Rounding costs, and instances with two labels keep both."""
    name, database = read_database(real_data / "thumos14" / "gt_212_videos.json")
    videos, _, truth = truth_instances(name, select_subset(name, database, "test"))
    assert len(read_ambiguous(real_data / "thumos14" / "Ambiguous_test.txt", videos)) == 96
    start, end = (np.round(column * 25 / 16) * 16 / 25 for column in (truth.start, truth.end))
    own = np.array(
        [
            temporal_iou(a, b, c, d)
            for a, b, c, d in zip(start, end, truth.start[:, None], truth.end[:, None], strict=True)
        ]
    )
    assert own.mean() == pytest.approx(0.877, abs=5e-4)
    assert (own < 0.7).mean() == pytest.approx(0.074, abs=5e-4)
    assert (own < 0.5).mean() == pytest.approx(0.014, abs=5e-4)
    segments = Counter(zip(truth.video, truth.start, truth.end, strict=True))
    assert sum(n == 2 for n in segments.values()) == 218


def test_the_list_of_ambiguous_segments_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(truth()))
    for ground_truth in (path, truth()):
        with pytest.raises(DataError, match="protocol thumos14-snippet: expected THUMOS14's list"):
            evaluate(ground_truth, predictions(), "thumos14-snippet")
    (tmp_path / "Ambiguous_test.txt").write_text("a 9.0 9.5\n")
    assert evaluate(path, predictions(), "thumos14-snippet").counts["ambiguous"] == 1
    assert evaluate(path, predictions(), "thumos14-snippet-unfiltered").counts["predictions"] == 1


def test_what_else_the_result_tells(real_data: Path) -> None:
    result = evaluate(
        real_data / "thumos14" / "gt_212_videos.json", real_data / "predictions" / "thumos14_crnet.json", "thumos14"
    )
    for tiou in PROTOCOLS["thumos14"].tious:
        pairs = result.matches(tiou)
        assert len({(m.video, m.label, *m.detection, m.score) for m in pairs}) <= len(pairs) <= 3358
        for match in pairs[::50]:
            assert temporal_iou(*match.detection, *map(np.array, match.instance)) >= tiou
    # of the best detections judged at 0.5 and the instances that none of them takes
    assert sum(result.errors.values()) - result.errors["missed"] <= 3358
    assert result.errors["correct"] + result.errors["missed"] == 3358
    assert len(result.matches(0.5)) >= result.errors["correct"]
    assert list(result.recall.values()) == sorted(result.recall.values())
    assert 0.9 < result.classification["mAP"] < result.classification["top1"] < result.classification["top3"] < 1
    with pytest.raises(KeyError, match=r"tiou 0\.55 was not evaluated"):
        result.matches(0.55)
    twin = evaluate(
        real_data / "thumos14" / "gt_212_videos.json",
        real_data / "predictions" / "thumos14_stpn.json",
        backend="numpy",
    )
    assert twin == evaluate(
        real_data / "thumos14" / "gt_212_videos.json", real_data / "predictions" / "thumos14_stpn.json"
    )


def test_other_labels_alone_are_an_error(tmp_path: Path) -> None:
    found = {"results": {"a": [{"label": "Run", "score": 0.5, "segment": [0, 10]}], "b": []}}
    found["results"]["elsewhere"] = [{"label": "run", "score": 0.5, "segment": [0, 10]}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    for source in (found, tmp_path / "found.json"):
        with pytest.raises(
            DataError, match=r"some of the 2 labels of the ground truth, 'jump' among them, got others alone: 'Run'"
        ):
            evaluate(truth(), source)
    assert evaluate(truth(), {"results": {"a": [], "b": []}}).headline == 0  # nothing found is no mistake


def test_matches_by_hand() -> None:
    result = evaluate(truth(), predictions())
    assert result.matches(0.5) == [("a", "run", 0.5, (0.0, 10.0), (0.0, 10.0))]
    assert result.errors == {
        "correct": 1, "double": 0, "wrong label": 0, "localisation": 0, "confusion": 0, "background": 0, "missed": 1
    }  # fmt: skip
    assert result.recall == {"1": 0.5, "5": 0.5, "10": 0.5, "100": 0.5}
    assert result.classification == {"mAP": 0.75, "top1": 0.5, "top3": 0.5}  # nothing is detected in one
    assert "best detections at tIoU 0.5 (%)  correct 100.0" in str(result)


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
    found["results"]["b"].append({"label": "jump", "score": 0.0, "segment": [9, 5]})
    with pytest.warns(UserWarning, match="left out|count as false") as notes:
        result = evaluate(truth(), found)
    assert [str(note.message) for note in notes] == [
        "predictions: 1 predictions with labels unknown to the ground truth were left out",
        "predictions: 1 videos that subset test does not have were left out",
        "predictions: 1 predictions end before they begin, and count as false",
    ]
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


def test_malformed_truth_and_lists(tmp_path: Path) -> None:
    given = truth()
    given["database"]["a"]["annotations"] = None
    with pytest.raises(DataError, match=r"a\.annotations: expected a list, got None"):
        evaluate(given, predictions())
    for database, message in (
        ({"a": {}}, "database: expected videos with annotations, got none"),
        ({"a": {"annotations": []}, "b": 3}, r"database\.b: expected a video with annotations, got int"),
    ):
        with pytest.raises(DataError, match=message):
            read_database({"database": database})
    path = tmp_path / "Ambiguous_test.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"Ambiguous_test\.txt: file: expected lines"):
        read_ambiguous(path, ["a"])


def test_videos_of_tags_alone_beside_others_with_segments() -> None:
    given = truth()
    given["database"] |= {"c": {"subset": "training", "labels": ["run"]}, "d": {"subset": None}}
    assert evaluate(given, predictions()).mAP == evaluate(truth(), predictions()).mAP


def test_a_foreign_block_of_that_name_is_not_ours() -> None:
    found = predictions() | {"ahlm": {"change_points": {"a": {"detected": []}}}}
    assert evaluate(truth(), found).change_points is None


def test_results_of_other_videos_alone_are_an_error() -> None:
    found = {"results": {"x": [], "y": []}}
    with pytest.raises(DataError, match=r"results: expected some of the 2 videos .* a among them, got others alone: x"):
        evaluate(truth(), found)
    assert evaluate(truth(), {"results": {}}).headline == 0


def test_files_in_the_wrong_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "gt.json"), str(tmp_path / "pred.json")]
    for file, content in zip(files, (truth(), predictions()), strict=True):
        Path(file).write_text(json.dumps(content))
    assert main(files[::-1]) == 3
    assert "expected ground truth, got results: predictions come second" in capsys.readouterr().err
    assert main([files[0], files[0]]) == 3
    assert "got ground truth: it comes first" in capsys.readouterr().err
    assert main([str(tmp_path), files[1]]) == 3
    assert "expected a JSON file, got a folder" in capsys.readouterr().err


def test_ground_truth_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, found = tmp_path / "labels.csv", tmp_path / "pred.json"
    found.write_text(json.dumps(predictions()))
    rows = ["a,run,0,10", "b,jump,5,9"]
    table.write_text("\n".join(["video,label,start,end", *rows]))
    assert main([str(table), str(found), "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["mAP"] == evaluate(truth(), predictions()).mAP
    table.write_text("video,label\na,run\nb,jump\n")
    assert main([str(table), str(found)]) == 3
    assert f"{table}: columns start, end: expected segments to score, got tags alone" in capsys.readouterr().err
    table.write_text("\n".join(["video,label,start,end,subset", *(f"{row},train" for row in rows)]))
    capsys.readouterr()
    assert main([str(table), str(found)]) == 3
    assert "got none; subsets in this file: train" in capsys.readouterr().err
    assert main([str(table), str(found), "--subset", "train"]) == 0


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
    assert (
        "expected videos with segments, got none; subsets in this file: Testing, test, validation"
        in capsys.readouterr().err
    )
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

    assert (choose_backend() == "c++") == (importlib.util.find_spec("ahlm._core") is not None)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("features", {"fps": 1}),
        ("features", {"fps": 1, "stride": 0, "window": 1}),
        ("n_snippets", {}),
        ("n_snippets", {"v": 10**400}),
        ("change_points", {"v": {}}),
        ("change_points", {"v": {"detected": None}}),
        ("change_points", {"v": {"detected": ["x"], "refined": [], "foreground": []}}),
        ("change_points", 3),
    ],
)
def test_a_broken_part_of_ours_is_named(field: str, value: Any) -> None:
    truth = {"database": {"v": {"subset": "test", "annotations": [{"label": "run", "segment": [3, 6]}]}}}
    extra = {
        "features": {"fps": 1, "stride": 1, "window": 1},
        "n_snippets": {"v": 10},
        "change_points": {"v": {"detected": [], "refined": [], "foreground": []}},
    }
    assert evaluate(truth, {"results": {"v": []}, "ahlm": extra}).change_points is not None
    with pytest.raises(DataError, match=r"predictions: ahlm: expected features, n_snippets and change_points"):
        evaluate(truth, {"results": {"v": []}, "ahlm": {**extra, field: value}})


def test_change_points_that_no_proposal_needed_have_one_stage() -> None:
    truth = {"database": {"v": {"subset": "test", "annotations": [{"label": "run", "segment": [3, 6]}]}}}
    extra = {
        "features": {"fps": 1, "stride": 1, "window": 1},
        "n_snippets": {"v": 10},
        "change_points": {"v": {"detected": [3.0]}},
    }
    result = evaluate(truth, {"results": {"v": []}, "ahlm": extra})
    assert result.change_points is not None
    assert list(result.change_points) == ["detected"]


def test_values_at_boundaries_and_elsewhere() -> None:
    values = np.array([9.0, 1, 5, 2, 3, 0, 0, 0, 7, 6])
    at, elsewhere = split_at_boundaries(values, [2.4, 9.6])
    assert at.tolist() == [5, 7]  # edges 1-3, edges 8-9; edge 0 is no edge
    assert elsewhere.tolist() == [3, 0, 7]  # around edges 5, 6, 7
    at, elsewhere = split_at_boundaries(values, [])
    assert len(at) == 0
    assert elsewhere.tolist() == [5, 5, 5, 3, 3, 0, 7, 7, 7]
    assert [len(side) for side in split_at_boundaries([1.0], [])] == [0, 0]
