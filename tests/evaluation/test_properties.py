"""What must hold of average precision whatever the input."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ahlm.evaluation.average_precision import Instances, average_precision

TIOUS = np.array([0.1, 0.3, 0.5, 0.9, 1.0])
N_VIDEOS, N_CLASSES = 3, 3
rows = st.tuples(st.integers(0, N_VIDEOS - 1), st.integers(0, N_CLASSES - 1), st.integers(0, 12), st.integers(-1, 8))


def instances(drawn: list[tuple[int, int, int, int]]) -> Instances:
    """Scores fall in the order drawn, all distinct."""
    video, c, start, length = np.array(drawn, np.int64).reshape(-1, 4).T.copy()
    score = np.linspace(1, 0.5, len(drawn)) if drawn else np.zeros(0)
    return Instances(video, c, start.astype(float), (start + length).astype(float), score)


truths = st.lists(rows, min_size=1, max_size=15).map(instances)
detections = st.lists(rows, max_size=30).map(instances)


def ap(truth: Instances, found: Instances, **keywords: str) -> np.ndarray:
    return average_precision(truth, found, N_VIDEOS, N_CLASSES, TIOUS, **keywords).ap  # type: ignore[arg-type]


def with_one_more(found: Instances, video: int, c: int, start: float, end: float, score: float) -> Instances:
    return Instances._make(map(np.append, found, (video, c, start, end, score)))


@settings(deadline=None)
@given(truths, detections)
def test_a_fraction_or_nothing(truth: Instances, found: Instances) -> None:
    values = ap(truth, found)
    has = np.isin(np.arange(N_CLASSES), truth.class_index)
    assert ((values[:, has] >= 0) & (values[:, has] <= 1 + 1e-12)).all()
    assert np.isnan(values[:, ~has]).all()


@settings(deadline=None)
@given(truths, detections, st.randoms(use_true_random=False))
def test_order_of_the_input_does_not_matter(truth: Instances, found: Instances, random: object) -> None:
    shuffled = list(range(found.size))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for ties in ("stable", "official"):
        np.testing.assert_array_equal(
            ap(truth, found, ties=ties), ap(truth, found.where(np.array(shuffled, int)), ties=ties)
        )


@settings(deadline=None)
@given(truths, detections, st.integers(0, 14))
def test_a_perfect_detection_of_what_was_missed_never_lowers_ap(truth: Instances, found: Instances, g: int) -> None:
    g %= truth.size
    assume(truth.end[g] > truth.start[g])
    twins = sum((column == column[g]).astype(int) for column in truth[:4]) == 4
    assume(twins.sum() == 1)
    before = average_precision(truth, found, N_VIDEOS, N_CLASSES, TIOUS)
    assume((before.taken_by[:, g] < 0).all())
    c = truth.class_index[g]
    after = ap(truth, with_one_more(found, truth.video[g], c, truth.start[g], truth.end[g], 2.0))
    assert (after[:, c] >= before.ap[:, c] - 1e-12).all()
    others = np.arange(N_CLASSES) != c
    np.testing.assert_array_equal(after[:, others], before.ap[:, others])


@settings(deadline=None)
@given(truths, detections, rows)
def test_a_worst_detection_that_touches_nothing_changes_nothing(
    truth: Instances, found: Instances, row: tuple[int, int, int, int]
) -> None:
    more = with_one_more(found, row[0], row[1], 100.0, 101.0, 0.1)
    np.testing.assert_array_equal(ap(truth, more), ap(truth, found))


@settings(deadline=None)
@given(truths, detections)
def test_units_of_time_and_scale_of_scores_do_not_matter(truth: Instances, found: Instances) -> None:
    # powers of two: no rounding
    half = truth._replace(start=truth.start / 2, end=truth.end / 2)
    scaled = found._replace(start=found.start / 2, end=found.end / 2, score=8 * found.score - 16)
    np.testing.assert_array_equal(ap(half, scaled), ap(truth, found))


@settings(deadline=None)
@given(truths, detections, st.permutations(range(N_VIDEOS)), st.permutations(range(N_CLASSES)))
def test_names_do_not_matter(truth: Instances, found: Instances, videos: list[int], classes: list[int]) -> None:
    renamed = [
        s._replace(video=np.array(videos)[s.video], class_index=np.array(classes)[s.class_index])
        for s in (truth, found)
    ]
    np.testing.assert_array_equal(ap(renamed[0], renamed[1])[:, classes], ap(truth, found))


@settings(deadline=None)
@given(truths)
def test_the_ground_truth_finds_itself(truth: Instances) -> None:
    truth = truth._replace(end=np.maximum(truth.end, truth.start + 1))
    values = ap(truth, truth._replace(score=np.arange(truth.size) / truth.size))
    assert (values[:, np.unique(truth.class_index)] == 1).all()
