"""What is compared with what: the paper's Tables 3 and 4, the reading of eqs. 4-8 field by field, other detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ahlm.config import Config
from ahlm.kernels.change_point_scan import ScanRules

Points = Literal[
    "detected", "oracle", "every_third", "random", "uniform",
    "difference", "slow_features", "kernel_linear", "kernel_rbf", "kernel_cosine",
]  # fmt: skip

# rows that others are compared with
FULL, THRESHOLDS, ORACLE = "AHLM", "thresholds alone", "true boundaries (oracle)"
# eqs. 4-6 as printed, see docs/method.md
LITERAL: Mapping[str, Any] = {
    "detector.static_belief": "prior",
    "detector.change_prior": "full",
    "detector.evidence": "transition",
    "detector.belief_weight": 0.0,
    "detector.evidence_weight": 1.0,
    "detector.decode": "segment",
    "detector.refractory": 0,
    "detector.posterior_width": "per_snippet",
    "detector.both_directions": False,
}
# arXiv 2104.02967, section 4.1, and its official code
ACM_NET: Mapping[str, Any] = {
    "classifier.guide_weight": 2e-3,
    "classifier.feature_weight": 5e-5,
    "classifier.sparsity_weight": 2e-4,
}

# no change-points as EFC's teachers; none at test either
UNTAUGHT: Mapping[str, Any] = {"classifier.segment_weight": 0.0}
WITHOUT: Mapping[str, Any] = {**UNTAUGHT, "localization.proposals": "thresholds"}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Which settings need a training of their own is not said here: `Trainings` finds it from the settings themselves.

    Attributes:
        group: table it stands in.
        name: unique over all tables.
        against: row whose figures are taken off for the gain; none: no gain is given.
        settings: dotted fields of `Config` and the values that replace the recipe's.
        points: where the change-points come from; all but the oracle's go through the recipe's LCS step.
        plain_mil: the classifier is plain multiple-instance learning, without attention (Table 4).
    """

    group: str
    name: str
    against: str | None = FULL
    settings: Mapping[str, Any] = field(default_factory=dict)
    points: Points = "detected"
    plain_mil: bool = False


def replaced(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some of its fields, named as on the command line, replaced."""
    own: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        section, _, name = path.rpartition(".")
        (sections.setdefault(section, {}) if section else own)[name] = value
    # all at once: a configuration is checked as a whole
    changed = {section: dataclasses.replace(getattr(config, section), **fields) for section, fields in sections.items()}
    return dataclasses.replace(config, **own, **changed)


def all_rows(config: Config) -> list[Row]:
    """Every row for a recipe; one switched field that repeats the recipe, or does not go with it, is left out.

    Raises:
        ValueError: a recipe whose proposals use no change-points.
    """
    if config.localization.proposals == "thresholds":
        raise ValueError("localization.proposals must be change_points or both for an ablation, got thresholds")
    rows = [*_recipe(config), *_table3(config), *_table4(), *_reading(config), *_steps(config)]
    rows += [*_controls(), *_detectors()]

    def has_a_place(row: Row) -> bool:
        try:
            changed = replaced(config, row.settings)
        except ValueError:
            return False
        return row.group not in ("reading", "steps") or changed != config

    return [row for row in rows if has_a_place(row)]


def chosen_rows(rows: list[Row], only: Sequence[str]) -> list[Row]:
    """The rows of some groups or names, and those that their gains are against; all where `only` is empty.

    Raises:
        ValueError: a name that is neither.
    """
    for word in only:
        if not any(word in (row.group, row.name) for row in rows):
            known = ", ".join(dict.fromkeys(row.group for row in rows))
            raise ValueError(f"--only must name groups ({known}) or rows, got {word!r}")
    named = {row.name for row in rows if not only or row.group in only or row.name in only}
    while more := {row.against for row in rows if row.name in named and row.against} - named:
        named |= more
    return [row for row in rows if row.name in named]


def _recipe(config: Config) -> list[Row]:
    """The recipe as it is, without and with change-points: what every other row is compared with."""
    rows = [Row("recipe", THRESHOLDS, None, WITHOUT), Row("recipe", FULL, THRESHOLDS)]
    if config.classifier.segment_weight:
        rows.append(Row("recipe", "change-points at test alone", settings=UNTAUGHT))
        rows.append(Row("recipe", "change-points in training alone", settings={"localization.proposals": "thresholds"}))
    return rows


def _table3(config: Config) -> list[Row]:
    """Section 4.3, Table 3: branches of the classifier, without and with change-points; the recipe has one of them."""
    background, context = config.classifier.background_weight or 1.0, config.classifier.context_weight or 1.0
    branches = {"fg": (0.0, 0.0), "fg + bg": (background, 0.0), "fg + bg + context": (background, context)}
    rows = []
    for name, weights in branches.items():
        settings = dict(zip(("classifier.background_weight", "classifier.context_weight"), weights, strict=True))
        rows.append(Row("table3", name, None, {**settings, **WITHOUT}))
        rows.append(Row("table3", f"{name}, DFC", name, settings))
    return rows


def _table4() -> list[Row]:
    """Section 4.3, Table 4: the change-points plugged into a plain model."""
    return [
        Row("table4", "plain MIL", None, WITHOUT, plain_mil=True),
        Row("table4", "plain MIL, change-points plugged in", "plain MIL", UNTAUGHT, plain_mil=True),
    ]


def _reading(config: Config) -> list[Row]:
    """Eqs. 4-6: every field that differs between the two readings, one at a time, then all of them."""
    rho = config.detector.belief_weight or 0.7
    choices: dict[str, dict[str, Any]] = {
        **{f"static belief: {v}": {"detector.static_belief": v} for v in ("held", "prior")},
        **{f"change prior: {v}": {"detector.change_prior": v} for v in ("state", "constant", "full")},
        **{f"evidence: {v}": {"detector.evidence": v} for v in ("start", "transition")},
        **{
            f"filter: {name}": {"detector.belief_weight": belief, "detector.evidence_weight": evidence}
            for name, belief, evidence in (
                ("geometric", rho, round(1 - rho, 9)), ("product of experts", rho, 1.0), ("none", 0.0, 1.0),
            )
        },
        **{f"decode: {v}": {"detector.decode": v} for v in ("current", "segment")},
        **{f"refractory: {v}": {"detector.refractory": v} for v in (0, 1, 2)},
        **{f"posterior width: {v}": {"detector.posterior_width": v} for v in ("per_snippet", "shared")},
        "literal reading": dict(LITERAL),
    }  # fmt: skip
    return [Row("reading", name, settings=settings) for name, settings in choices.items()]


def _steps(config: Config) -> list[Row]:
    """The other parts of the method, switched one at a time."""
    detector = config.detector
    # else there is no state that a reset could start afresh
    has_state = ScanRules(detector.static_belief, detector.change_prior, detector.evidence).uses_state
    choices: dict[str, dict[str, Any]] = {
        "one direction": {"detector.both_directions": False},
        "both directions": {"detector.both_directions": True},
        "beta constant": {"detector.alpha": 0.0, "detector.alpha_down": None},
        **({"no reset": {"detector.reset": False}} if has_state else {}),
        "no LCS step": {"refinement.enabled": False},
        "LCS step": {"refinement.enabled": True},
        **{f"features: {v}": {"detector.standardise": v} for v in ("per_dimension", "global", "slow")},
        **{f"features: {name}": {"squash": v} for v, name in ((False, "as they are"), (True, "squashed"))},
        **{f"proposals: {v}": {"localization.proposals": v} for v in ("change_points", "both")},
    }
    return [Row("steps", name, settings=settings) for name, settings in choices.items()]


def _controls() -> list[Row]:
    """Change-points that know nothing, or everything, and another model's losses."""
    choices: dict[str, Points] = {
        ORACLE: "oracle",
        "every third edge": "every_third",
        "random, detector's rate": "random",
        "uniform, detector's rate": "uniform",
    }
    rows = [Row("controls", name, points=points) for name, points in choices.items()]
    return [*rows, Row("controls", "ACM-Net", settings={**ACM_NET, **WITHOUT})]


def _detectors() -> list[Row]:
    """Change-points of other detectors, in the place of DFC's."""
    choices: dict[str, Points] = {
        "feature difference": "difference",
        "slow-feature difference": "slow_features",
        "KernelCPD, linear": "kernel_linear",
        "KernelCPD, rbf": "kernel_rbf",
        "KernelCPD, cosine": "kernel_cosine",
    }
    return [Row("detectors", name, points=points) for name, points in choices.items()]
