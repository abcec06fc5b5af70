from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from ahlm.__main__ import main
from ahlm.arguments import load_recipe
from ahlm.checkpoint import save_weights
from ahlm.data.synthetic import demo_dataset
from ahlm.evaluation import evaluate
from ahlm.infer import Predictor, load, predict, score
from ahlm.report.histogram_svg import histogram_svg
from ahlm.report.html import MAX_BYTES, MAX_DETECTIONS, MAX_VIDEOS, curve, write_report
from ahlm.report.timeline_svg import Bar, Timeline, path_data, thinned, timeline_svg
from ahlm.train import Trainer, new_model

HOSTILE = "<script>window.hacked = 1</script>\"'&"
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
        np.array([1.28, 1.92, 2.56]),
        np.array([1.28, 1.92]),
        np.array([1.28]),
    )
    return timeline_svg(timeline)


def test_picture_is_xml_with_every_part() -> None:
    root = ET.fromstring(picture())
    paths = [path.get("class") for path in root.findall(f"{SVG}path")]
    assert paths.count("line") == 5  # three attentions, CAS, ratio
    assert [paths.count(kind) for kind in ("point", "pale", "gone")] == [1, 1, 1]
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == ["run 1.0-2.0 s", "run 1.1-2.0 s"]


def test_strings_from_data_are_escaped() -> None:
    root = ET.fromstring(picture(HOSTILE, HOSTILE))
    assert not list(root.iter(f"{SVG}script"))
    assert HOSTILE in [text.text for text in root.iter(f"{SVG}text")]


def test_long_videos_are_thinned() -> None:
    values = np.arange(6001, dtype=float)
    values[:19] = np.nan
    thin = thinned(values)
    assert len(thin) == 316  # groups of 19
    assert np.isnan(thin[0])
    np.testing.assert_allclose(thin[1:3], [28, 47])


def test_path_data_goes_through_its_points() -> None:
    x, y = np.array([1.0, 2.5, 2.6, 13.0]), np.array([4.0, 3.5, 3.5, 13.9])
    assert path_data(x, y) == "M1 4l1.5-.5 .1 0 10.4 10.4"
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(100, 900, 300)), rng.uniform(0, 50, 300)
    start, steps = path_data(x, y)[1:].split("l")
    walked = np.array([start.split(), *np.array(re.findall(r"-?[\d.]+", steps)).reshape(-1, 2)], float).cumsum(0)
    np.testing.assert_allclose(walked, np.stack([x, y], 1), atol=0.051)


def test_200_videos_as_long_as_those_of_thumos_fit() -> None:
    n, rng = 750, np.random.default_rng(0)
    bars = [Bar("CleanAndJerk", 15.0 * i, 15.0 * i + 9, 0.5) for i in range(MAX_DETECTIONS)]
    changes = np.sort(rng.choice(n, n // 5, replace=False)) * 0.64
    noise = rng.random((n, 4), np.float32)
    test = Timeline(
        "video_test_0000001, 480 s", np.arange(n + 1) * 0.64, bars, bars, noise[:, :3], noise[:, 3], "CleanAndJerk",
        np.log(rng.random(n)), changes, changes[::2], changes[::4],
    )  # fmt: skip
    assert len(timeline_svg(test).encode()) * MAX_VIDEOS < MAX_BYTES


def test_histogram_has_the_shares_of_both_sides_and_says_so() -> None:
    rng = np.random.default_rng(0)
    boundaries = np.append(np.log(0.5) + 0.1 * rng.standard_normal(101), -np.inf)
    elsewhere = np.log(0.01) + 0.1 * rng.standard_normal(1001)
    root = ET.fromstring(histogram_svg(boundaries, elsewhere, (0.15, 0.9)))
    label = root.get("aria-label")
    assert label is not None
    assert re.search(r"median 0.5 at 101 true boundaries, 0.0\d+ at 1001 edges elsewhere; beta is 0.15 to 0.9", label)
    heaps = {
        path.get("class"): re.findall(r"V([\d.]+)H([\d.]+)", path.get("d", "")) for path in root.iter(f"{SVG}path")
    }
    band = next(rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "beta")
    left = float(band.get("x", 0))
    floor = max(float(y) for y, _ in heaps["at"])
    for kind, is_right in (("at", True), ("other", False)):
        rises = [float(x) for y, x in heaps[kind] if float(y) < floor]
        assert rises
        assert all((x > left) == is_right for x in rises), kind
    heights = {kind: sum(floor - float(y) for y, _ in steps) for kind, steps in heaps.items()}
    assert heights["at"] == pytest.approx(heights["other"], rel=0.01), "each heap is all of its side"
    alike = histogram_svg(np.zeros(3), np.zeros(2), (0.5, 0.5))
    assert "nan" not in alike
    assert "nan" not in histogram_svg(np.zeros(3), np.ones(2), (0.0, 0.9))
    assert "nan" not in histogram_svg(np.zeros(3), np.ones(2), (0.0, 0.0))


def test_curves_share_one_scale() -> None:
    metrics = [{"step": 10, "a": 0.0}, {"step": 20, "a": 1.0, "b": 2.0}, {"step": 30, "a": float("nan")}]
    drawn = curve(metrics, "both", {"a": "first", "b": "second", "c": "absent"})
    assert drawn is not None
    assert (drawn.low, drawn.high) == (0, 2)
    assert [line.name for line in drawn.lines] == ["first", "second"]
    assert drawn.lines[0].points == "0.0,80.0 300.0,40.0"
    assert drawn.lines[1].points == "0.0,0.0 300.0,0.0", "a single value is a level line"
    assert curve(metrics, "none", {"c": "absent"}) is None
    long = curve([{"step": s, "a": float(s)} for s in range(600)], "thinned", {"a": "a"})
    assert long is not None
    assert long.lines[0].last == 599


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a hostile class name, scored on a few demo videos, one of them with a hostile name."""
    folder = tmp_path_factory.mktemp("run")
    config, dataset = load_recipe("demo"), demo_dataset("train")
    trainer = Trainer(new_model(dataset, config), dataset, config)
    for _ in range(150):
        trainer.train_step()
    checkpoint = dataclasses.replace(trainer.checkpoint(), model=trainer.model.eval())
    save_weights(folder / "last.safetensors", checkpoint)
    hostile = dataclasses.replace(checkpoint, classes=(HOSTILE, *dataset.classes[1:]))
    predictor = Predictor(hostile)
    testing = demo_dataset("test").subset(range(6))
    testing.classes = hostile.classes
    testing.videos = tuple(
        dataclasses.replace(
            video,
            id=HOSTILE if i == 0 else video.id,
            segments=tuple(s._replace(label=s.label.replace("Cartwheel", HOSTILE)) for s in video.segments),
            labels=tuple(label.replace("Cartwheel", HOSTILE) for label in video.labels),
        )
        for i, video in enumerate(testing.videos)
    )
    analyses = predictor.analyse_dataset(testing, progress=False)
    result = score(predictor, testing, analyses)[1]
    metrics = [{"step": s, "loss_efc": 1 / s, "firing_rate": 0.1} for s in range(10, 1000, 10)]
    metrics += [{"step": 999, "validation_f1": 0.5, "validation_precision": 0.4, "validation_recall": 0.7}]
    write_report(folder / "report.html", predictor, testing, analyses, result, metrics)
    return folder


def test_page_is_self_contained_and_escaped(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert HOSTILE not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import""", page), "the page asks for something else"
    assert len(page.encode()) / 6 * 200 < 5e6, "200 videos must stay under 5 MB"
    assert page.count("<details") == 6
    assert "not drawn" not in page
    assert page.count("true boundaries,") == 1
    assert "change-points, validation over the steps" in page


def test_command_draws_a_test_video(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "video.svg"
    assert main(["report", str(run), "--picture", "test_003", str(out)]) == 0
    assert "test_003" in out.read_text()
    with pytest.raises(SystemExit):
        main(["report", str(run), "--picture", "train_003", str(out)])
    assert main(["report", str(run), "--picture", "train_003", str(out), "--overwrite"]) == 0
    assert "train_003" in out.read_text()
    assert main(["report", str(run), "--picture", "nobody", str(out), "--overwrite"]) == 3
    assert "video: expected one of test_000 .. train_039, got nobody" in capsys.readouterr().err


def test_command_writes_the_page_again(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.safetensors", tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text().count("<details") == 20


def test_page_names_the_checkpoints_and_takes_a_video_with_nothing_in_it(run: Path, tmp_path: Path) -> None:
    predictor, testing = load(run), demo_dataset("test").subset(range(3))
    testing.videos = (
        testing.videos[0],
        dataclasses.replace(testing.videos[1], segments=(), labels=()),
        testing.videos[2],
    )
    analyses = predictor.analyse_dataset(testing, progress=False)
    predictions = predict(predictor, testing, analyses)
    predictions["results"]["test_001"] = []
    result = evaluate(testing.ground_truth("test"), predictions, subset="test")
    best = {"step": 77, "average": {"0.1:0.7": 0.375}}
    write_report(tmp_path / "report.html", predictor, testing, analyses, result, best=best)
    page = (tmp_path / "report.html").read_text()
    assert "last checkpoint, step 150" in page
    assert "(step 77) reaches 37.5" in page
    assert page.count("<details") == 3
    assert 'data-name="test_001" data-labels="[]" data-kinds="" data-errors="0" data-missed="0"' in page


def test_page_says_what_it_left_out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ahlm.report.html.MAX_BYTES", 60_000)
    shutil.copy(run / "last.safetensors", tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    drawn = page.count("<details")
    assert 0 < drawn < 20
    assert f"{20 - drawn} more videos of this split" in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    """It renders, searches, filters and sorts without an error on the console, and runs no script from the data."""
    probe = """<script>
      const out = {}, visible = () => [...document.querySelectorAll("details")].filter(v => !v.hidden);
      const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
      out.hacked = typeof window.hacked !== "undefined";
      out.all = visible().length;
      set("search", "test_003"); out.search = visible().map(v => v.dataset.name);
      set("search", ""); set("label", "Jump");
      out.label = visible().every(v => JSON.parse(v.dataset.labels).includes("Jump")) && visible().length < 6;
      set("label", ""); set("kind", "missed"); out.missed = visible().every(v => v.dataset.missed > 0);
      set("kind", ""); set("order", "length"); out.lengths = visible().map(v => +v.dataset.length);
      document.querySelectorAll("#classes thead button")[5].click();
      out.sorted = document.querySelector("th[aria-sort]").getAttribute("aria-sort");
      out.column = [...$("classes").tBodies[0].rows].map(r => +r.cells[5].textContent);
      out.overflow = document.documentElement.scrollWidth > innerWidth;
      document.title = JSON.stringify(out);
    </script></body>"""
    page = tmp_path / "page.html"
    page.write_text((run / "report.html").read_text().replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900"]
    command = [str(CHROMIUM), *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    out = json.loads(html.unescape(title.group(1)))
    assert "CONSOLE" not in done.stderr, done.stderr
    assert out["hacked"] is False
    assert out["all"] == 6
    assert out["search"] == ["test_003"]
    assert out["label"]
    assert out["missed"]
    assert out["lengths"] == sorted(out["lengths"], reverse=True)
    assert out["column"] == sorted(out["column"], reverse=True)
    assert out["sorted"] == "descending"
    assert out["overflow"] is False, "the page scrolls sideways on a narrow screen"


def test_console_script_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0
