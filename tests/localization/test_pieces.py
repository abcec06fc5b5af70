from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ahlm.config import LocalizationConfig, RefinementConfig
from ahlm.localization import Localization, cut_in_pieces, localize, localize_pieces
from ahlm.timeline import FeatureSpec

OFF = RefinementConfig(enabled=False)
CONFIG = LocalizationConfig(cas_thresholds=(0.5,), class_threshold=0.3)
SPEC = FeatureSpec(fps=1, stride=1, window=1)  # seconds are snippets


def run(cut: np.ndarray, cas: np.ndarray, scores: Any, points: list[int], **changes: Any) -> Localization:
    n = len(cas)
    arguments: dict[str, Any] = {
        "attention": np.ones(n, np.float32),
        "change_points": np.array(points, np.int64),
        "edges_s": SPEC.edges_s(n),
        "duration_s": float(n),
        "config": CONFIG,
        "refinement": OFF,
        "similarity_features": np.ones((n, 1), np.float32),
        "boundaries_s": np.array(points, np.float64),
    }
    return localize_pieces(cut, cas, np.asarray(scores, np.float32), **{**arguments, **changes})


def segments(found: Localization) -> list[tuple[int, float, float]]:
    columns = (found.class_index.tolist(), found.start_s.tolist(), found.end_s.tolist())
    return sorted(zip(*columns, strict=True), key=lambda segment: segment[1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 63, 64, 65, 500])
def test_pieces_cover_a_video_and_share_half(n: int, size: int) -> None:
    cut = cut_in_pieces(n, size)
    assert cut[0, 0] == 0
    assert cut[-1, 1] == n
    if n <= size:
        assert cut.tolist() == [[0, n]]
        return
    assert set(np.diff(cut, axis=1).ravel()) == {size}
    assert 1 <= np.diff(cut[:, 0]).min() <= np.diff(cut[:, 0]).max() <= max(1, size // 2)


def test_without_a_window_a_video_is_one_piece() -> None:
    assert cut_in_pieces(9999, None).tolist() == [[0, 9999]]


def test_one_piece_is_what_localize_finds() -> None:
    rng = np.random.default_rng(0)
    for proposals in ("change_points", "thresholds", "both"):
        for suppression in ("hard", "soft"):
            n = int(rng.integers(2, 60))
            cas, scores = rng.random((n, 3)).astype(np.float32), rng.random(3).astype(np.float32)
            points = np.flatnonzero(rng.random(n) < 0.3)
            points = points[points > 0]
            features = rng.normal(size=(n, 4)).astype(np.float32)
            boundaries = points + rng.random(len(points)) / 2
            config = replace(CONFIG, proposals=proposals, suppression=suppression)
            common: dict[str, Any] = {"config": config, "refinement": RefinementConfig(lcs_ratio=0.4)}
            common |= {"similarity_features": features, "boundaries_s": boundaries}
            arguments = (np.ones(n), points, SPEC.edges_s(n), float(n) - 0.25)
            one = localize_pieces(cut_in_pieces(n, None), cas, scores[None], *arguments, **common)
            whole = localize(cas, scores, *arguments, **common)
            for mine, theirs in zip(one, whole, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_what_an_edge_cuts_comes_whole_from_the_next_piece() -> None:
    cas = np.zeros((30, 2), np.float32)
    cas[3:5, 0] = cas[8:12, 0] = cas[22:29, 1] = 0.9  # pieces end at 10 and 20, begin at 5, 10, 15 and 20
    cut = cut_in_pieces(30, 10)
    assert cut.tolist() == [[0, 10], [5, 15], [10, 20], [15, 25], [20, 30]]
    scores = [[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 2
    points = [3, 5, 8, 12, 22, 29]
    found = run(cut, cas, scores, points)
    assert segments(found) == [(0, 3.0, 5.0), (0, 8.0, 12.0), (1, 22.0, 29.0)]
    assert found.foreground_change_points.tolist() == points
    assert found.change_points.tolist() == points


def test_what_is_longer_than_half_a_piece_is_kept_as_it_is_cut() -> None:
    cas = np.zeros((30, 1), np.float32)
    cas[3:27, 0] = 0.9
    found = run(cut_in_pieces(30, 10), cas, [[1.0]] * 5, [3, 27])
    assert (0, 3.0, 10.0) in segments(found)
    assert (0, 20.0, 27.0) in segments(found)
    assert all(end - start >= 5 for _, start, end in segments(found))


def test_classes_are_those_of_the_piece() -> None:
    """An action that fills one of many pieces is a small part of the video."""
    cas = np.zeros((40, 2), np.float32)
    cas[2:6, 0] = cas[32:36, 1] = 0.9
    points = [2, 6, 32, 36]
    whole = run(cut_in_pieces(40, None), cas, [[0.35, 0.2]], points)
    assert segments(whole) == [(0, 2.0, 6.0)]
    cut = cut_in_pieces(40, 10)
    scores = [[0.9, 0.1] if end <= 20 else [0.1, 0.9] for _, end in cut]
    assert segments(run(cut, cas, scores, points)) == [(0, 2.0, 6.0), (1, 32.0, 36.0)]


def test_a_stated_end_is_no_cut() -> None:
    cas = np.zeros((30, 1), np.float32)
    cas[11:20, 0] = 0.9
    found = run(cut_in_pieces(30, 10), cas, [[1.0]] * 5, [11, 20], duration_s=13.0)
    assert segments(found) == [(0, 11.0, 13.0)]


def test_a_duration_beyond_the_features_cuts_nothing() -> None:
    cas = np.zeros((150, 1), np.float32)
    cas[50:, 0] = 0.9
    found, longer = (
        run(cut_in_pieces(150, 100), cas, [[1.0]] * 2, [50], duration_s=duration) for duration in (150.0, 300.0)
    )
    assert segments(found) == segments(longer)


def test_fragments_at_the_stated_end_are_left_out() -> None:
    cas = np.zeros((30, 1), np.float32)
    cas[4:8, 0] = 0.9
    config = replace(CONFIG, nms_tiou=0.9)
    found = run(cut_in_pieces(30, 10), cas, [[1.0]] * 5, [4, 8], duration_s=10.5, config=config)
    assert segments(found) == [(0, 4.0, 8.0)]


def test_change_points_are_refined_over_the_whole_video() -> None:
    cas = np.full((20, 1), 0.9, np.float32)
    found = run(
        cut_in_pieces(20, 10), cas, [[1.0]] * 3, [7, 9, 11], refinement=RefinementConfig()
    )  # all snippets are alike
    assert found.change_points.tolist() == []
