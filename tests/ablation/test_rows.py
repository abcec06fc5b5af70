from __future__ import annotations

import dataclasses

import pytest

from ahlm.ablation.rows import FULL, LITERAL, THRESHOLDS, all_rows, chosen_rows, replaced
from ahlm.arguments import load_recipe
from ahlm.config import Config


def test_fields_are_named_as_on_the_command_line() -> None:
    config = replaced(Config(), {"seed": 7, "detector.reset": False, "refinement.enabled": False})
    assert (config.seed, config.detector.reset, config.refinement.enabled) == (7, False, False)
    assert dataclasses.replace(config, seed=0, detector=Config().detector, refinement=Config().refinement) == Config()
    with pytest.raises(TypeError, match="rest"):
        replaced(Config(), {"detector.rest": False})


@pytest.mark.parametrize("recipe", ["ucf15", "hapt", "demo", "thumos14"])
def test_every_row_changes_the_recipe_and_no_two_are_the_same(recipe: str) -> None:
    config = load_recipe(recipe)
    rows = all_rows(config)
    assert len({row.name for row in rows}) == len(rows)
    made = {row.name: (replaced(config, row.settings), row.points, row.plain_mil) for row in rows}
    # the paper's Table 3 is whole, with the branches that the recipe has
    others = [row.name for row in rows if row.group != "table3"]
    assert all(made[a] != made[b] for i, a in enumerate(others) for b in others[:i])
    assert [name for name in others if made[name] == (config, "detected", False)] == [FULL]
    branches = [row.name for row in rows if row.group == "table3" and made[row.name] == made[FULL]]
    assert branches == ["fg + bg + context, DFC"]


def test_rows_without_change_points_in_training() -> None:
    config = load_recipe("hapt")
    rows = all_rows(config)
    taught = {row.name for row in rows if replaced(config, row.settings).classifier.segment_weight}
    assert {row.name for row in rows} - taught == {
        THRESHOLDS, "change-points at test alone", "fg", "fg + bg", "fg + bg + context",
        "plain MIL", "plain MIL, change-points plugged in", "ACM-Net",
    }  # fmt: skip
    assert "change-points in training alone" in taught
    assert not {row.name for row in all_rows(load_recipe("ucf15"))} & {"change-points at test alone"}


def test_one_field_at_a_time_and_all_at_once() -> None:
    config = load_recipe("demo")
    rows = [row for row in all_rows(config) if row.group == "reading"]
    every = {name for row in rows for name in row.settings}
    assert every == set(LITERAL)
    for row in rows[:-1]:
        changed = {name for name, value in row.settings.items() if replaced(config, {name: value}) != config}
        # the two weights of the filter are one choice
        assert len({name.replace("evidence_weight", "belief_weight") for name in changed}) == 1, row.name
    assert replaced(config, rows[-1].settings).detector.static_belief == "prior"


def test_a_row_that_repeats_the_recipe_is_left_out() -> None:
    config = load_recipe("demo")
    names = [row.name for row in all_rows(config)]
    assert "evidence: start" not in names
    assert "evidence: transition" in names
    other = replaced(config, {"detector.evidence": "transition"})
    assert "evidence: start" in [row.name for row in all_rows(other)]


def test_a_row_that_does_not_go_with_the_recipe_is_left_out() -> None:
    shared = replaced(load_recipe("demo"), {"detector.shared_embedding": True, "detector.standardise": "global"})
    names = [row.name for row in all_rows(shared)]
    assert "features: per_dimension" in names
    assert "features: slow" not in names


def test_a_detector_without_a_state_has_no_reset_to_leave_out() -> None:
    config = replaced(load_recipe("demo"), {"detector.change_prior": "constant"})
    assert "no reset" not in [row.name for row in all_rows(config)]
    config = replaced(config, {"detector.evidence": "transition"})
    assert "no reset" in [row.name for row in all_rows(config)]


def test_fields_are_replaced_at_once() -> None:
    """Belief 0 alone and evidence 0 would be refused."""
    config = replaced(load_recipe("demo"), {"detector.belief_weight": 1.0, "detector.evidence_weight": 0.0})
    names = [row.name for row in all_rows(config)]
    assert {"literal reading", "filter: none"} <= set(names)


def test_rows_bring_what_they_are_compared_with() -> None:
    rows = all_rows(load_recipe("demo"))
    assert {row.name for row in chosen_rows(rows, ["no reset"])} == {"no reset", FULL, THRESHOLDS}
    assert {row.group for row in chosen_rows(rows, ["table4"])} == {"table4"}
    assert chosen_rows(rows, []) == rows
    with pytest.raises(ValueError, match=r"groups \(recipe, table3, table4, .*, got 'table5'"):
        chosen_rows(rows, ["table5"])
