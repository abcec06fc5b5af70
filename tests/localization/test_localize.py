"""The whole step: known videos, every boundary accounted for, the plug-in's checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ahlm.config import LocalizationConfig, RefinementConfig
from ahlm.localization import Localization, localize
from ahlm.timeline import FeatureSpec

OFF = RefinementConfig(enabled=False)
ONE = LocalizationConfig(cas_thresholds=(0.5,), nms_tiou=1.0, oic_margin=0.5)
# 8 snippets of 0.64 s; class 0 acts in snippets 2-4, class 1 in snippets 5-6
CAS = np.array([[0.0, 0], [0.2, 0], [0.9, 0], [0.9, 0], [0.9, 0.1], [0.4, 0.8], [0.0, 0.8], [0.0, 0.2]], np.float32)
SCORES = np.array([0.6, 0.3])
POINTS = np.array([2, 5, 7])
EDGES = FeatureSpec().edges_s(8)


def run(config: LocalizationConfig = ONE, **changes: Any) -> Localization:
    arguments: dict[str, Any] = {
        "cas": CAS,
        "video_scores": SCORES,
        "attention": None,
        "change_points": POINTS,
        "edges_s": EDGES,
        "duration_s": 8 * 0.64,
        "refinement": OFF,
    }
    return localize(**{**arguments, **changes}, config=config)


def segments(found: Localization) -> list[tuple[int, float, float]]:
    return [
        (int(c), round(float(a) / 0.64, 9), round(float(b) / 0.64, 9))
        for c, a, b in zip(found.class_index, found.start_s, found.end_s, strict=True)
    ]


def test_by_hand() -> None:
    found = run()
    assert segments(found) == [(0, 2.0, 5.0), (1, 5.0, 7.0)]
    # outer means: snippets .5-2 and 5-6.5 of class 0 (0, .2, .4, 0 over 3), 4-5 and 7-8 of class 1
    assert found.score == pytest.approx([0.9 - (0.2 + 0.4) / 3, 0.8 - (0.1 + 0.2) / 2], abs=1e-6)
    assert found.foreground_change_points.tolist() == [2, 5, 7]
    assert found.change_points.tolist() == [2, 5, 7]
    assert (found.class_index.dtype, found.foreground_change_points.dtype) == (np.int64, np.int64)


def test_gamma_adds_the_video_score() -> None:
    plain, weighted = run(), run(replace(ONE, gamma=0.5))
    assert weighted.score == pytest.approx(plain.score + 0.5 * SCORES[plain.class_index])


def test_classes_that_pass_or_the_best_one() -> None:
    assert set(run(replace(ONE, class_threshold=0.5)).class_index) == {0}
    assert set(run(replace(ONE, class_threshold=0.9)).class_index) == {0}
    assert set(run(replace(ONE, class_threshold=0.2)).class_index) == {0, 1}


def test_relative_thresholds_are_shares_of_the_maximum() -> None:
    scaled = CAS * np.array([10.0, 0.1])
    assert segments(run(replace(ONE, relative_thresholds=True), cas=scaled)) == segments(run())
    assert len(run(replace(ONE, relative_thresholds=True), cas=CAS - 2).score) == 0


@pytest.mark.parametrize("proposals", ["thresholds", "change_points"])
def test_a_segment_that_several_thresholds_find_is_one_proposal(proposals: str) -> None:
    """Soft suppression keeps copies, at lower scores."""
    config = replace(ONE, proposals=proposals, suppression="soft", cas_thresholds=(0.5, 0.501))
    assert segments(run(config)) == segments(run(replace(config, cas_thresholds=(0.5,))))


def test_foreground_change_points_bound_a_run() -> None:
    found = run(change_points=np.array([1, 2, 3, 5, 7]), config=replace(ONE, class_threshold=0.5))
    assert segments(found) == [(0, 2.0, 5.0)]
    assert found.foreground_change_points.tolist() == [2, 5]
    assert found.change_points.tolist() == [1, 2, 3, 5, 7]


def test_without_change_points_the_video_is_one_segment() -> None:
    found = run(change_points=[], config=replace(ONE, cas_thresholds=(0.1,)))
    assert segments(found) == [(0, 0.0, 8.0), (1, 0.0, 8.0)]
    assert found.foreground_change_points.tolist() == []


def test_both_is_the_union() -> None:
    config = replace(ONE, cas_thresholds=(0.3, 0.5))
    alone = [set(segments(run(replace(config, proposals=name)))) for name in ("change_points", "thresholds")]
    both = segments(run(replace(config, proposals="both")))
    assert len(both) == len(set(both))
    assert set(both) == alone[0] | alone[1]
    assert alone[0] != alone[1]
    assert len(run(replace(config, proposals="thresholds")).foreground_change_points) == 0


def test_every_segment_against_its_neighbours() -> None:
    config = replace(ONE, max_segments=1, contrast="neighbours", class_threshold=0.5)
    found = run(config)  # class 0 alone, segments 0-2, 2-5, 5-7, 7-8
    assert segments(found)[0] == (0, 2.0, 5.0)
    assert sorted(segments(found)) == [(0, 0.0, 2.0), (0, 2.0, 5.0), (0, 5.0, 7.0), (0, 7.0, 8.0)]
    # outside 2-5 lie snippets 0, 1 and 5, 6; outside 0-2 the three of the action
    assert found.score[0] == pytest.approx(0.9 - (0.2 + 0.4) / 4, abs=1e-6)
    assert found.score[segments(found).index((0, 0.0, 2.0))] == pytest.approx(0.1 - 0.9, abs=1e-6)
    assert found.foreground_change_points.tolist() == [2, 5]  # selected by the threshold, as without max_segments
    pairs = run(replace(config, max_segments=2))
    assert sorted(set(segments(pairs)) - set(segments(found))) == [(0, 0.0, 5.0), (0, 2.0, 7.0), (0, 5.0, 8.0)]


def test_threshold_proposals_yield_where_both_compete() -> None:
    config = replace(ONE, max_segments=1, contrast="neighbours", cas_thresholds=(0.3,), gamma=0.2)
    alone = run(replace(config, proposals="thresholds"))
    both = run(replace(config, proposals="both", threshold_weight=0.25))
    weighted = dict(zip(segments(both), both.score, strict=True))
    for segment, score in zip(segments(alone), alone.score, strict=True):
        assert weighted[segment] == pytest.approx(0.25 * score)
    for segment, score in zip(segments(run(config)), run(config).score, strict=True):
        assert weighted[segment] == pytest.approx(score)


def test_segments_extend_beyond_change_points_alone() -> None:
    config = replace(ONE, max_segments=1, contrast="neighbours", class_threshold=0.5, proposals="both")
    plain, wide = run(config), run(replace(config, extend=0.75))
    by_threshold = segments(run(replace(config, proposals="thresholds")))
    assert sorted(segments(wide)) == sorted(
        [(0, 0.0, 2.75), (0, 1.25, 5.75), (0, 4.25, 7.75), (0, 6.25, 8.0), *by_threshold]
    )
    assert sorted(wide.score) == pytest.approx(sorted(plain.score))
    # neither before the video nor past its stated end, and its own ends are no change-points
    clamped = run(replace(config, extend=3.0, proposals="change_points"), duration_s=9 * 0.64)
    assert sorted(segments(clamped)) == [(0, 0.0, 5.0), (0, 0.0, 8.0), (0, 2.0, 9.0), (0, 4.0, 8.0)]


def test_the_lcs_step_is_part_of_it() -> None:
    features = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2, 2, 2]]
    found = run(change_points=np.array([2, 3, 5, 7]), refinement=RefinementConfig(), similarity_features=features)
    assert found.change_points.tolist() == [2, 5]
    # without proposals from change-points there is nothing to refine
    config = replace(ONE, proposals="thresholds")
    assert run(config, refinement=RefinementConfig()).change_points.tolist() == POINTS.tolist()


def test_attention_thresholds() -> None:
    attention = np.array([0, 0, 0, 0, 0, 1.0, 1.0, 0])
    found = run(replace(ONE, cas_thresholds=(), attention_thresholds=(0.5,)), attention=attention)
    assert sorted(segments(found)) == [(0, 5.0, 7.0), (1, 5.0, 7.0)]


def test_segments_are_clamped_to_the_duration() -> None:
    found = run(duration_s=6 * 0.64)
    assert segments(found) == [(0, 2.0, 5.0), (1, 5.0, 6.0)]
    assert segments(run(duration_s=4.5 * 0.64)) == [(0, 2.0, 4.5)]


def test_seconds_follow_the_edges_given() -> None:
    edges = np.array([0.5, 1, 2, 4, 8, 16, 32, 64, 128.0])
    found = run(edges_s=edges, duration_s=200.0, config=replace(ONE, class_threshold=0.5))
    assert (found.start_s.tolist(), found.end_s.tolist()) == ([2.0], [16.0])


def test_boundaries_move_what_change_points_bound_and_nothing_else() -> None:
    later = np.array([2.5, 5.25, 8]) * 0.64
    assert segments(run(boundaries_s=later)) == [(0, 2.5, 5.25), (1, 5.25, 8.0)]
    assert run(boundaries_s=later).score == pytest.approx(run().score)
    thresholds = replace(ONE, proposals="thresholds")
    assert segments(run(thresholds, boundaries_s=later)) == segments(run(thresholds))
    # what a boundary at the video's end leaves behind it is nothing
    assert segments(run(boundaries_s=[5 * 0.64, 8 * 0.64], change_points=[2, 6])) == [(0, 5.0, 8.0)]


@pytest.mark.parametrize("proposals", ["change_points", "both", "thresholds"])
@pytest.mark.parametrize("suppression", ["hard", "soft"])
def test_invariants(proposals: str, suppression: str) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 60))
        points = np.flatnonzero(rng.random(n) < 0.25)
        points = points[points > 0]
        edges, duration = FeatureSpec().edges_s(n), 0.6 * n
        config = LocalizationConfig(proposals=proposals, suppression=suppression)  # type: ignore[arg-type]
        found = localize(
            rng.random((n, 4)),
            rng.dirichlet(np.ones(4)),
            None,
            points,
            edges,
            duration,
            config=config,
            refinement=RefinementConfig(),
            similarity_features=rng.normal(size=(n, 3)),
        )
        assert (np.diff(found.score) <= 0).all()
        assert (found.start_s >= 0).all()
        assert (found.end_s > found.start_s).all()
        assert (found.end_s <= duration).all()
        assert set(found.foreground_change_points) <= set(found.change_points) <= set(points)
        if proposals == "change_points":
            allowed = {0.0, duration, *np.minimum(edges, duration)[[0, *found.change_points, n]]}
            assert set(found.start_s) | set(found.end_s) <= allowed


def test_one_snippet() -> None:
    found = localize(
        [[0.9]],
        [1.0],
        None,
        [],
        [0.0, 0.64],
        0.64,
        config=ONE,
        refinement=RefinementConfig(),
        similarity_features=[[1]],
    )
    assert segments(found) == [(0, 0.0, 1.0)]
    assert found.score == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cas": CAS[0]}, r"cas must be \[n >= 1, C >= 1\], got \[2\]"),
        ({"cas": CAS[:0]}, r"cas must be \[n >= 1, C >= 1\], got \[0, 2\]"),
        ({"cas": np.full_like(CAS, np.nan)}, "cas must be finite"),
        ({"video_scores": [1.0]}, r"video_scores must be \[2\], got \[1\]"),
        ({"video_scores": [np.inf, 0]}, "video_scores must be finite"),
        ({"attention": np.ones(7)}, r"attention must be \[8\], got \[7\]"),
        ({"edges_s": EDGES[:-1]}, r"edges_s must be \[9\], got \[8\]"),
        ({"edges_s": EDGES[::-1]}, "edges_s must increase"),
        ({"boundaries_s": EDGES}, r"boundaries_s must be \[3\], finite, and never fall"),
        ({"boundaries_s": [3.0, 2.0, 1.0]}, "and never fall"),
        ({"boundaries_s": np.full(3, np.nan)}, "finite"),
        ({"change_points": [5, 2]}, r"change_points must increase within 1 .. 7, got \[5, 2\]"),
        ({"change_points": [2, 2]}, "change_points must increase within 1 .. 7"),
        ({"change_points": [0, 2]}, "change_points must increase within 1 .. 7"),
        ({"change_points": [8]}, "change_points must increase within 1 .. 7"),
        ({"change_points": [2.5]}, r"change_points must be integers \[P\], got float64 \[1\]"),
        ({"change_points": [[2]]}, r"change_points must be integers \[P\], got int64 \[1, 1\]"),
        ({"duration_s": 0.0}, "duration_s must be a positive number of seconds, got 0.0"),
        ({"duration_s": np.nan}, "duration_s must be a positive number of seconds, got nan"),
        ({"refinement": RefinementConfig()}, r"similarity_features must be \[n, F\] for the LCS step"),
        (
            {"refinement": RefinementConfig(), "similarity_features": np.ones((7, 2))},
            r"similarity_features must be \[8, F\], got \[7, 2\]",
        ),
        (
            {"config": replace(ONE, proposals="all")},
            "one of change_points, both, thresholds, got 'all'",
        ),
        ({"config": replace(ONE, suppression="no")}, "suppression must be one of hard, soft, got 'no'"),
        ({"config": replace(ONE, cas_thresholds=())}, "must hold a threshold"),
        ({"config": replace(ONE, cas_thresholds=(np.nan,))}, "must be finite"),
        ({"config": replace(ONE, attention_thresholds=(0.5,))}, r"attention must be \[n\] where .* got None"),
        ({"config": replace(ONE, contrast="all")}, "contrast must be one of margin, neighbours, got 'all'"),
        ({"config": replace(ONE, max_segments=0)}, "max_segments must be at least 1, got 0"),
        ({"config": replace(ONE, threshold_weight=0.0)}, r"threshold_weight must be in \(0, 1\], got 0.0"),
        ({"config": replace(ONE, upsample=0)}, "upsample must be at least 1, got 0"),
        ({"config": replace(ONE, extend=-0.5)}, "extend must be at least 0, got -0.5"),
        ({"config": replace(ONE, oic_margin=-0.1)}, "oic_margin must be at least 0, got -0.1"),
        ({"config": replace(ONE, suppression="soft", soft_sigma=0.0)}, "soft_sigma must be a positive number, got 0.0"),
        ({"config": replace(ONE, nms_tiou=2.0)}, r"tiou must be in \[0, 1\], got 2.0"),
    ],
)
def test_rejects(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)
