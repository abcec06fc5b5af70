"""Rows of all seeds as a summary, a Markdown page and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ahlm.ablation.bootstrap import Interval, interval
from ahlm.ablation.experiment import STAGES
from ahlm.ablation.rows import Row
from ahlm.files import replacing

Results = Mapping[str, Sequence[Mapping[str, Any]]]
TIOUS = ("0.5", "0.7", "0.75", "0.95")


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (none for one value) and the values themselves."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "values": list(values)}


def gain(own: Sequence[Any], other: Sequence[Any]) -> Interval:
    """Gain of one row over another: means over the seeds on the same resampled videos."""
    return interval(np.mean(np.array(own, float), axis=0) - np.mean(np.array(other, float), axis=0))


def summarise(rows: Sequence[Row], results: Results) -> list[dict[str, Any]]:
    """A dictionary a row, in plain values; `results` holds for each row's name one result a seed."""
    summary = []
    for row in rows:
        mine, other = results[row.name], results.get(row.against or "")
        entry: dict[str, Any] = {
            "group": row.group,
            "name": row.name,
            "against": row.against if other else None,
            "settings": dict(row.settings),
            "points": row.points,
            "points_settings": mine[0]["points_settings"],
            "average": mean_and_deviation([r["average"] for r in mine]),
            "mAP": {tiou: mean_and_deviation([r["mAP"][tiou] for r in mine]) for tiou in mine[0]["mAP"]},
        }
        if other:
            entry["gain"] = gain([r["resampled"] for r in mine], [r["resampled"] for r in other])._asdict()
        if "change_points" in mine[0]:
            entry["change_points"] = {
                stage: {
                    name: mean_and_deviation([r["change_points"][stage][name] for r in mine])
                    for name in mine[0]["change_points"][stage]
                }
                for stage in STAGES
            }
            if other and "resampled_f1" in other[0]:
                entry["f1_gain"] = {
                    stage: gain(*([r["resampled_f1"][stage] for r in side] for side in (mine, other)))._asdict()
                    for stage in STAGES
                }
        summary.append(entry)
    return summary


def markdown(summary: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str]) -> str:
    """The tables, one a group; mAP and its gains in points of 100."""
    tious = [tiou for tiou in TIOUS if tiou in summary[0]["mAP"]]
    head = ["", "mAP", *(f"@{tiou}" for tiou in tious), "gain [95 %]", "over", "F1", "rate", "F1 foreground"]
    head += ["gain of F1 [95 %]"]
    lines = [f"# {title}", "", *(line for note in notes for line in (note, ""))]
    for group in dict.fromkeys(entry["group"] for entry in summary):
        lines += [f"## {group}", "", _line(head), _line(["---"] * len(head))]
        lines += [_line(_cells(entry, tious)) for entry in summary if entry["group"] == group]
        lines.append("")
    tuned = {entry["name"]: entry["points_settings"] for entry in summary if entry["points_settings"]}
    for name, settings in tuned.items():
        words = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())
        lines.append(f"- {name}: {words}")
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(entry: Mapping[str, Any], tious: Sequence[str]) -> list[str]:
    cells = [entry["name"], _spread(entry["average"], 100, 1)]
    cells += [f"{100 * entry['mAP'][tiou]['mean']:.1f}" for tiou in tious]
    cells += [_bounds(entry.get("gain"), 100, 1), entry["against"] or ""]
    points = entry.get("change_points")
    if points is None:
        return [*cells, "", "", "", ""]
    detected = points["detected"]
    cells += [_spread(detected["f1"], 1, 3), f"{detected['rate']['mean']:.3f} ({detected['true_rate']['mean']:.3f})"]
    return [*cells, _spread(points["foreground"]["f1"], 1, 3), _bounds(entry.get("f1_gain", {}).get("detected"), 1, 3)]


def _spread(value: Mapping[str, Any], scale: float, digits: int) -> str:
    deviation = "" if value["deviation"] is None else f" ± {scale * value['deviation']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{deviation}"


def _bounds(value: Mapping[str, float] | None, scale: float, digits: int) -> str:
    if value is None:
        return ""
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*(scale * value[k] for k in ("value", "low", "high")), d=digits)


def plot(path: Path, summary: Sequence[Mapping[str, Any]], title: str) -> None:
    """The mAP of every row and seed, and the gains with their intervals, as an SVG or whatever the suffix says.

    Raises:
        ModuleNotFoundError: no matplotlib; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the picture needs matplotlib: pip install 'ahlm[viz]'") from None
    rows = list(reversed(summary))
    y = np.arange(len(rows))
    figure = Figure(figsize=(11, 1.2 + 0.27 * len(rows)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    left.barh(y, [100 * row["average"]["mean"] for row in rows], color="#56b4e9")
    for i, row in enumerate(rows):
        left.plot(100 * np.array(row["average"]["values"]), np.full(len(row["average"]["values"]), i), "k.", ms=4)
        if "gain" in row:
            low, high = 100 * row["gain"]["low"], 100 * row["gain"]["high"]
            middle.plot([low, high], [i, i], color="#0072b2", lw=2)
            middle.plot(100 * row["gain"]["value"], i, "o", color="#0072b2", ms=5)
        if "change_points" in row:
            f1 = row["change_points"]["detected"]["f1"]
            right.plot(f1["values"], np.full(len(f1["values"]), i), "k.", ms=4)
            right.plot(f1["mean"], i, "o", color="#d55e00", ms=5)
    middle.axvline(0, color="0.6", lw=1)
    left.set_yticks(y, [f"{row['group']}: {row['name']}" for row in rows], fontsize=8)
    for axis, name in zip((left, middle, right), ("mAP (%)", "gain, 95 % interval", "change-point F1"), strict=True):
        axis.set_xlabel(name)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
