from __future__ import annotations

from typing import Any

import pytest

from ahlm.ablate import share_of_gap
from ahlm.ablation.rows import FULL, ORACLE, THRESHOLDS, Row
from ahlm.ablation.tables import markdown, summarise


def result(samples: list[float], f1: list[float] | None = None) -> dict[str, Any]:
    """Figures of one seed; the first sample is that of the whole split."""
    scores = {"f1": f1[0], "rate": 0.2, "true_rate": 0.1} if f1 else {}
    points = {stage: scores for stage in ("detected", "foreground")}
    return {
        "mAP": {"0.1": samples[0] + 0.1, "0.7": samples[0] - 0.1},
        "average": samples[0],
        "resampled": samples,
        "points_settings": None,
    } | ({"change_points": points, "resampled_f1": dict.fromkeys(points, f1)} if f1 else {})


def test_means_deviations_and_paired_gains() -> None:
    rows = [Row("table3", THRESHOLDS, None), Row("table3", FULL, THRESHOLDS), Row("steps", "no reset")]
    results = {
        THRESHOLDS: [result([0.5, 0.4, 0.6]), result([0.7, 0.8, 0.6])],
        # better by 0.1 in every resample, however these differ: the pairing takes their spread away
        FULL: [result([0.6, 0.5, 0.7], [0.8, 0.7, 0.9]), result([0.8, 0.9, 0.7], [0.6, 0.5, 0.7])],
        "no reset": [result([0.5, 0.2, 0.4], [0.5, 0.5, 0.5]), result([0.5, 0.4, 0.6], [0.5, 0.5, 0.5])],
    }
    thresholds, full, reset = summarise(rows, results)
    assert thresholds["average"]["mean"] == pytest.approx(0.6)
    assert thresholds["average"]["deviation"] == pytest.approx(0.1 * 2**0.5)
    assert "gain" not in thresholds
    assert full["gain"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert "f1_gain" not in full, "thresholds have no change-points"
    assert reset["gain"]["value"] == pytest.approx(0.5 - 0.7)
    assert reset["gain"]["low"] == pytest.approx(-0.4, abs=0.01)
    assert reset["gain"]["high"] == pytest.approx(-0.2, abs=0.01)
    assert reset["f1_gain"]["detected"]["value"] == pytest.approx(0.5 - 0.7)
    text = markdown([thresholds, full, reset], "Title", ["A note."])
    over = f"+10.0 [+10.0, +10.0] | {THRESHOLDS}"
    assert f"| {FULL} | 70.0 ± 14.1 | 60.0 | {over} | 0.700 ± 0.141 | 0.200 (0.100) | 0.700 ± 0.141 |" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## table3", "## steps"]


def test_one_seed_has_no_deviation_and_a_row_may_stand_alone() -> None:
    (entry,) = summarise([Row("steps", "no reset")], {"no reset": [result([0.5, 0.4], [0.7, 0.7])]})
    assert entry["average"]["deviation"] is None
    assert entry["against"] is None
    assert "| no reset | 50.0 | 40.0 |  |  | 0.700 | 0.200 (0.100) | 0.700 |  |" in markdown([entry], "", [])


def test_share_of_the_gap() -> None:
    means = {THRESHOLDS: 0.5, FULL: 0.6, ORACLE: 0.9}
    summary = [{"name": name, "average": {"mean": mean}} for name, mean in means.items()]
    assert share_of_gap(summary) == pytest.approx(0.25)
    assert share_of_gap(summary[:2]) is None
