from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from ahlm.arguments import load_recipe
from ahlm.checkpoint import Checkpoint, save_weights
from ahlm.cli import main
from ahlm.data.synthetic import demo_dataset
from ahlm.report.timeline_svg import Bar, Timeline, timeline_svg
from ahlm.train import new_model

SVG = "{http://www.w3.org/2000/svg}"


def picture(title: str = "video", label: str = "run") -> str:
    n = 8
    timeline = Timeline(
        title,
        np.arange(n + 1) * 0.64,
        [Bar(label, 1.0, 2.0)],
        [Bar(label, 1.1, 2.0, 0.5)],
        np.full((n, 3), 1 / 3, np.float32),
        np.linspace(0, 1, n, dtype=np.float32),
        label,
        np.array([np.nan, *np.linspace(-4, 0, n - 1)]),
        np.array([1.28, 1.92]),
        np.array([1.28]),
    )
    return timeline_svg(timeline)


def test_picture_is_xml_with_every_part() -> None:
    root = ET.fromstring(picture())
    assert len(root.findall(f"{SVG}polyline")) == 5  # three attentions, CAS, ratio
    lines = [line.get("class") for line in root.findall(f"{SVG}line")]
    assert lines.count("point") == 1
    assert lines.count("pale") == 1
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == ["run 1.0-2.0 s", "run 1.1-2.0 s"]


def test_strings_from_data_are_escaped() -> None:
    hostile = '<script>alert("1")</script>'
    root = ET.fromstring(picture(hostile, hostile))
    assert not list(root.iter(f"{SVG}script"))
    assert hostile in [text.text for text in root.iter(f"{SVG}text")]


def test_command_draws_a_test_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, dataset = load_recipe("demo"), demo_dataset("train")
    checkpoint = Checkpoint(new_model(dataset, config), config, dataset.classes, dataset.spec, 64, 0)
    save_weights(tmp_path / "last.safetensors", checkpoint)
    out = tmp_path / "video.svg"
    assert main(["report", str(tmp_path), "--picture", "test_003", str(out)]) == 0
    assert "test_003" in out.read_text()
    assert main(["report", str(tmp_path), "--picture", "nobody", str(out)]) == 3
    assert "video: expected one of test_000 .. test_019, got nobody" in capsys.readouterr().err


def test_console_script_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0
