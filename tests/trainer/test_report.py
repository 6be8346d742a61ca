"""The report: what it says, that it needs nothing else, and that nothing of a run can break out of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from trainer.report import ReportData, build_report, collect, write_report
from trainer.report.charts import (
    MOST_POINTS,
    Line,
    column_chart,
    line_chart,
    linear_ticks,
    log_ticks,
    number,
    smoothed,
    stacked_bar,
    thinned,
)
from trainer.report.collect import MOST_FRAMES
from trainer.report.data import Evaluation, StageConfig, StageRecords, StageTime
from trainer.report.generator import summary
from trainer.report.held_out import _points, looks, overfitting
from trainer.report.page import duration, flatten, fold_names

PNG = b"\x89PNG\r\n\x1a\n not decoded by the report"
EVALUATION: dict[str, Any] = {
    "reconstruction": {"prefixes": [1, 5, 21], "mse_of_prefixes": [0.2, 0.1, 0.05], "frechet_distance": 1.234},
    "generation": {
        "frechet_distance": 5.678,
        "samples": 1000,
        "class_accuracy": 0.8123,
        "class_accuracy_per_class": [0.9, 0.7246],
        "judge_accuracy_on_real": 0.866,
    },
    "codebook_use": [[0.25, 0.5, 1.0], [0.125, 0.5, 0.75]],
    "class_names": ["Coat", "Bag"],
    "fingerprints": {"tokenizer": "ab12", "generator": {"weights": "cd34"}},
    "sampling": {"guidance": 2.5, "classes": None, "seed": 0},
    "tokenizer": {"groups": [1, 4, 16], "vocabularies": [64, 64], "fold_names": ["detail", "semantic"]},
    "files": {"samples/reconstructions.png": hashlib.sha256(PNG + b"2").hexdigest()},
}
SAMPLES: dict[str, Any] = {
    "sampling": {"guidance": 2.5, "classes": None, "seed": 0},
    "fingerprints": {"tokenizer": "ab12", "generator": {"weights": "cd34"}},
    "files": {"samples/grid.png": hashlib.sha256(PNG).hexdigest()},
}
CONFIG = "seed: 0\ntokenizer:\n  trainer:\n    steps: 30\ngenerator: {trainer: {steps: 4711}}\n"
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=y>&{{ 7 * 7 }}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as the stages leave it."""
    folder = tmp_path / "runs" / "first"
    (folder / "samples").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "tokenizer" / "config.yaml").write_text(CONFIG)
    (folder / "samples" / "samples.json").write_text(json.dumps(SAMPLES))
    stages = [
        {"stage": "train-tokenizer", "seconds": 90.0, "items": 9000, "unit": "samples"},
        {"stage": "tokenize", "seconds": 10.0, "items": 500, "unit": "images"},
    ]
    (folder / "stages.json").write_text(json.dumps(stages))
    lines = [{"step": step, "loss": 1 / step, "semantic": 0.5, "samples_per_second": 123.0} for step in (10, 20, 30)]
    (folder / "tokenizer" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tokenizer" / "events.jsonl").write_text(
        '{"event": "start", "step": 0}\n{"event": "resume", "step": 9}\n'
    )
    (folder / "samples" / "grid.png").write_bytes(PNG)
    (folder / "samples" / "reconstructions.png").write_bytes(PNG + b"2")
    return folder


class Page(HTMLParser):
    """A page's tags, and its text without style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def minimal() -> ReportData:
    return ReportData(run="runs/empty", created="today", evaluation=Evaluation())


def test_a_report_is_written_into_the_run(run: Path) -> None:
    uri = write_report(str(run))
    assert uri == f"{run}/report.html"
    assert Path(uri).read_text().startswith("<!DOCTYPE html>")


def test_the_headline_numbers_are_those_of_the_evaluation(run: Path) -> None:
    words = Page(build_report(collect(str(run)))).words
    for expected in ("81.2 %", "86.6 %", "1.23", "5.68", "100 % / 75 %", "1 min 40 s", "of 1,000 samples"):
        assert expected in words


def test_the_error_of_every_prefix_is_shown_with_its_change(run: Path) -> None:
    words = Page(build_report(collect(str(run)))).words
    assert "1 0.2000 5 0.1000 −50.0 % 21 0.0500 −50.0 %" in words


def test_codebook_use_is_shown_per_group_and_fold_with_the_number_of_codes(run: Path) -> None:
    words = Page(build_report(collect(str(run)))).words
    assert "detail 25 % 16 codes 50 % 32 codes 100 % 64 codes semantic 12 % 8 codes" in words


def test_each_class_has_its_accuracy(run: Path) -> None:
    words = Page(build_report(collect(str(run)))).words
    assert "Coat 90 % Bag 72 %" in words


def test_each_stage_has_its_time_throughput_and_restarts(run: Path) -> None:
    words = Page(build_report(collect(str(run)))).words
    assert "train-tokenizer 1 min 30 s 90 % 9,000 samples 100 samples/s 123 samples/s 1 0" in words
    assert "tokenize 10 s 10 % 500 images 50 images/s" in words


def test_the_time_until_the_first_step_is_shown_of_all_starts_together(run: Path) -> None:
    happened = [{"event": "first_step", "seconds": 12.0}, {"event": "resume"}, {"event": "first_step", "seconds": 9.0}]
    events = [{"time": 100.0, "step": 1} | event for event in happened]
    (run / "tokenizer" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    words = Page(build_report(collect(str(run)))).words
    assert "while training restarts skipped steps train-tokenizer 1 min 30 s 90 % 21 s 9,000 samples" in words


def test_the_time_of_a_training_stage_is_shown_by_cause(run: Path) -> None:
    event = {"event": "start", "time": 100, "step": 0, "began": 90}
    (run / "tokenizer" / "events.jsonl").write_text(json.dumps(event) + "\n")
    record = {"time": 140, "step": 20, "window_steps": 20, "window_seconds": 30, "data_wait_share": 0.5, "loss": 1.0}
    (run / "tokenizer" / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    words = Page(build_report(collect(str(run)))).words
    assert "start up training data wait checkpoint blocked validation lost steps restart gap shutdown" in words
    assert "tokenizer 50 s 40.0 % 30.0 % 30.0 %" in words


def test_configuration_and_fingerprints_are_in_it(run: Path) -> None:
    words = Page(build_report(collect(str(run)))).words
    assert "What tokenizer was made with seed: 0 tokenizer: trainer: steps: 30" in words
    assert "4711" not in words
    assert "tokenizer ab12 generator.weights cd34" in words
    assert "guidance 2.5 classes all" in words


def test_losses_are_drawn_with_axes(run: Path) -> None:
    html = build_report(collect(str(run)))
    labels = [attrs.get("aria-label") for tag, attrs in Page(html).tags if tag == "svg"]
    assert "tokenizer: loss by step" in labels
    assert "tokenizer: what was recorded beside the loss" in labels


def test_the_page_asks_for_nothing_and_runs_nothing(run: Path) -> None:
    html = build_report(collect(str(run)))
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    targets = [
        attrs[key] or "" for _, attrs in page.tags for key in ("src", "href", "srcset", "action") if key in attrs
    ]
    assert len(targets) == 2
    assert all(target.startswith("data:image/png;base64,") for target in targets)
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "@import" not in html
    assert "url(" not in html
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_whatever_comes_from_a_run_is_escaped(run: Path) -> None:
    clean = collect(str(run))
    evaluation = dataclasses.replace(
        clean.evaluation,
        class_names=(HOSTILE, HOSTILE),
        fingerprints={HOSTILE: HOSTILE},
        sampling={HOSTILE: {HOSTILE: HOSTILE}},
    )
    metrics = ({"step": 1, "loss": 1.0, HOSTILE: 1.0, "b": 2.0}, {"step": 2, "loss": 1.0, HOSTILE: 1.0, "b": 2.0})
    hostile = dataclasses.replace(
        clean,
        run=HOSTILE,
        created=HOSTILE,
        evaluation=evaluation,
        stages=(StageTime(HOSTILE, 1.0, 1, HOSTILE),),
        records=(StageRecords.of(HOSTILE, metrics),),
        configs=(StageConfig(HOSTILE, HOSTILE, (HOSTILE,)),),
        notes=(HOSTILE,),
    )
    html = build_report(hostile)
    page = Page(html)
    assert "alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert [attrs.get("src", "")[:5] for tag, attrs in page.tags if tag == "img"] == ["data:", "data:"]
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


def test_every_tag_is_closed_where_it_was_opened(run: Path) -> None:
    html = build_report(collect(str(run)))
    body = re.sub(r"<(img|meta)\b[^>]*>", "", html.removeprefix("<!DOCTYPE html>"))
    ElementTree.fromstring(body.replace("&nbsp;", " "))


def test_a_run_that_recorded_nothing_else_says_so() -> None:
    words = Page(build_report(minimal())).words
    for missing in ("samples/grid.png", "samples/reconstructions.png", "metrics.jsonl", "stages.json"):
        assert f"No {missing} " in words
    assert "No stage has left its config.yaml" in words


def test_what_was_not_measured_is_a_dash() -> None:
    words = Page(build_report(minimal())).words
    assert "Samples of the asked class –" in words
    assert "Time of all stages –" in words


def test_values_that_are_not_finite_do_not_break_the_page(run: Path) -> None:
    clean = collect(str(run))
    metrics = ({"step": 1, "loss": math.nan}, {"step": 2, "loss": None}, {"step": 3, "loss": math.inf}, {"step": 4})
    evaluation = dataclasses.replace(
        clean.evaluation,
        mse_of_prefixes=(math.nan, 0.1, 0.0),
        generation_distance=math.nan,
        codebook_use=((math.nan,),),
    )
    data = dataclasses.replace(clean, records=(StageRecords.of("tokenizer", metrics),), evaluation=evaluation)
    html = build_report(data)
    assert "Nothing was recorded." in html
    assert not re.search(r'(?:points|d|x|y|cx|cy|width|height)="[^"]*(?:nan|inf)', html)


def test_a_run_without_evaluation_is_told_to_evaluate_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.json is missing: run `foldtrain evaluate`"):
        collect(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", '{"reconstruction": {}}', '{"reconstruction": null, "generation": 1}'])
def test_an_evaluation_that_was_edited_is_refused_by_name(run: Path, content: str) -> None:
    (run / "evaluation.json").write_text(content)
    with pytest.raises(UsageError, match=r"evaluation\.json is not what"):
        collect(str(run))


def test_an_edited_list_of_stages_is_refused_by_name(run: Path) -> None:
    (run / "stages.json").write_text('[{"stage": "ingest"}]')
    with pytest.raises(UsageError, match=r"stages\.json"):
        collect(str(run))


def test_of_a_step_that_was_repeated_after_a_restart_the_last_record_counts(run: Path) -> None:
    with (run / "tokenizer" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 7.0}\n{"step": 25, "loss": 8.0}\n{"step": 40, "lo')
    tokenizer = next(records for records in collect(str(run)).records if records.stage == "tokenizer")
    assert list(zip(tokenizer.steps, tokenizer.metrics["loss"], strict=True)) == [
        (10, 0.1),
        (20, 7.0),
        (25, 8.0),
        (30, 1 / 30),
    ]


def test_the_layout_is_that_of_the_tokenizer_that_was_judged(run: Path) -> None:
    data = collect(f"file://{run}")
    assert (data.name, data.evaluation.groups, data.evaluation.vocabularies) == ("first", (1, 4, 16), (64, 64))


def changed(record: dict[str, Any], section: str, **values: Any) -> str:
    return json.dumps(record | {section: record[section] | values})


def test_samples_and_evaluation_are_each_shown_with_their_own_settings_and_the_difference_is_said(run: Path) -> None:
    assert "does not belong together" not in Page(build_report(collect(str(run)))).words
    (run / "samples/samples.json").write_text(changed(SAMPLES, "sampling", guidance=5, samples_per_class=3))
    words = Page(build_report(collect(str(run)))).words
    assert "How the samples shown were drawn guidance 5" in words
    assert "How the samples that were judged were drawn guidance 2.5" in words
    assert "drawn otherwise than those that were judged: guidance 5 here, 2.5 there." in words


def test_samples_of_another_network_than_was_judged_are_said_to_be(run: Path) -> None:
    (run / "samples/samples.json").write_text(changed(SAMPLES, "fingerprints", generator="other"))
    words = Page(build_report(collect(str(run)))).words
    assert "The samples shown are of another generator than was judged: draw them again." in words


@pytest.mark.parametrize("name", ["samples/grid.png", "samples/reconstructions.png"])
def test_a_picture_that_is_not_the_one_of_its_record_is_not_shown(run: Path, name: str) -> None:
    (run / name).write_bytes(b"another")
    html = build_report(collect(str(run)))
    assert "YW5vdGhlcg==" not in html
    assert f"No {name}" in Page(html).words


def test_a_network_that_was_trained_again_since_it_was_judged_is_said_to_be(run: Path) -> None:
    card = {
        "version": 2,
        "classes": [],
        "kind": "tokenizer",
        "config": {},
        "files": {"model": "0" * 64},
        "lineage": {},
        "steps": 20,
    }
    (run / "tokenizer/export").mkdir()
    (run / "tokenizer/export/card.json").write_text(json.dumps(card))
    words = Page(build_report(collect(str(run)))).words
    assert "The tokenizer was trained again since it was judged: evaluate again." in words
    assert "The tokenizer is being trained further: the curves go to step 30, and the network" in words


def test_settings_that_were_changed_on_the_way_are_shown_with_the_config(run: Path) -> None:
    event = {"event": "settings_changed", "step": 20, "changes": ["section.trainer.learning_rate: 0.1 -> 0.2"]}
    (run / "tokenizer/events.jsonl").write_text(json.dumps(event) + "\n")
    words = Page(build_report(collect(str(run)))).words
    assert "steps: 30 changed at step 20: section.trainer.learning_rate: 0.1 -> 0.2" in words


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": 1, "sampling": {}, "fingerprints": {}}'])
def test_a_record_of_samples_that_was_edited_is_refused_by_name(run: Path, content: str) -> None:
    (run / "samples/samples.json").write_text(content)
    with pytest.raises(UsageError, match=r"samples\.json is not what"):
        collect(str(run))


def test_a_class_of_which_nothing_was_drawn_has_a_dash(run: Path) -> None:
    text = changed(EVALUATION, "generation", class_accuracy_per_class=[0.9, None])
    (run / "evaluation.json").write_text(text)
    assert "Coat 90 % Bag –" in Page(build_report(collect(str(run)))).words


# --- charts ---


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_linear_ticks_enclose_the_values_evenly_and_are_few(low: float, span: float) -> None:
    ticks = linear_ticks(low, low + span)
    slack = 1e-6 * max(abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 8
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)


@given(low=st.floats(1e-6, 1e3), ratio=st.floats(1.01, 1e6))
def test_log_ticks_enclose_the_values(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= low * ratio * (1 - 1e-9)
    assert ticks == sorted(set(ticks))


def test_a_constant_has_ticks_around_it() -> None:
    assert min(linear_ticks(3, 3)) < 3 < max(linear_ticks(3, 3))
    assert linear_ticks(0, 0)[0] < 0 < linear_ticks(0, 0)[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0549, "0.0549"), (0.5, "0.5"), (1234567, "1.2e6"), (1200, "1,200"), (86.64, "86.6"), (2e-5, "2.0e-5"),
     (-0.25, "-0.25"), (None, "–"), (math.nan, "–"), (100.0, "100")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_smoothing_keeps_a_line_and_both_ends() -> None:
    line = [(float(i), 2.0 * i) for i in range(100)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])
    noisy = [(float(i), float(i % 2)) for i in range(100)]
    middle = [y for _, y in smoothed(noisy, 0.2)][20:80]
    assert all(0.4 < y < 0.6 for y in middle)


def test_a_line_stays_inside_the_chart() -> None:
    chart = line_chart([Line("loss", [(10, 5.0), (500, 0.3), (990, 4.4)])], title="t", x_label="x", y_label="y")
    root = ElementTree.fromstring(str(chart))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    points = root.find("polyline")
    assert points is not None
    places = [tuple(map(float, pair.split(","))) for pair in points.attrib["points"].split()]
    assert len(places) == 3
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert places[0][1] < places[1][1]  # the page's y grows downwards


def test_a_legend_names_the_lines_once_there_are_two() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    one = line_chart([Line("a", points), Line("raw", points, faint=True)], title="t", x_label="x", y_label="y")
    two = line_chart([Line("a", points), Line("b", points, 1)], title="t", x_label="x", y_label="y")
    assert "legend" not in one
    assert ">a</span>" in two
    assert ">b</span>" in two


def test_a_logarithmic_chart_leaves_out_what_has_no_logarithm() -> None:
    chart = line_chart(
        [Line("a", [(0, 0.0), (1, 0.01), (2, 10.0), (3, -1.0)])], title="t", x_label="x", y_label="y", log_y=True
    )
    points = re.search(r'points="([^"]*)"', chart)
    assert points is not None
    assert len(points[1].split()) == 2


def test_columns_are_as_high_as_their_values() -> None:
    chart = column_chart(["1", "2"], [0.2, 0.1], title="t", x_label="x", y_label="y")
    heights = [float(rect.attrib["height"]) for rect in ElementTree.fromstring(str(chart)).findall("rect")]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)


def test_parts_of_a_bar_share_its_width() -> None:
    root = ElementTree.fromstring(str(stacked_bar([("a", 30.0), ("b", 90.0)], title="t")))
    first, second = (float(rect.attrib["width"]) + 1 for rect in root.findall("rect"))
    assert second == pytest.approx(3 * first, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (59.7, "1 min 00 s"), (822, "13 min 42 s"), (7500, "2 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_folds_are_called_as_their_tokenizer_calls_them_or_by_number() -> None:
    use = ((0.5,), (0.5,))
    assert fold_names(Evaluation(codebook_use=use, fold_names=("detail", "semantic"))) == ["detail", "semantic"]
    assert fold_names(Evaluation(codebook_use=use)) == ["fold 1", "fold 2"]


def test_nested_records_become_dotted_rows() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": "x"}}, "e": None}) == [("a.b", "1"), ("a.c.d", "x"), ("e", "all")]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: &a [x]\nb: [*a" + ", *a" * 60_000 + "]", "a: !!timestamp 2026-99-99"]
)
def test_a_config_that_is_none_is_named_and_costs_little(run: Path, text: str) -> None:
    (run / "tokenizer" / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"tokenizer/config\.yaml is not valid YAML"):
        write_report(str(run))


@pytest.mark.parametrize("prefixes", [[], [1, 5], [1, 5, 21, 22]])
def test_errors_of_other_prefixes_than_are_named_are_shown_without_them(run: Path, prefixes: list[int]) -> None:
    record = json.loads((run / "evaluation.json").read_text())
    record["reconstruction"]["prefixes"] = prefixes
    (run / "evaluation.json").write_text(json.dumps(record))
    assert "0.2000" in Page(build_report(collect(str(run)))).words


def spiky(count: int, at: int) -> np.ndarray:
    """A falling curve with one spike up at a point, and one down beside it."""
    x = np.arange(count, dtype=float)
    y = 5.0 / (1.0 + x)
    y[at], y[at + 1] = 99.0, -7.0
    return np.column_stack([x, y])


@pytest.mark.parametrize("at", [0, 1, 49_999, 50_000, 99_997])
def test_thinning_keeps_spikes_both_ends_and_the_order(at: int) -> None:
    points = spiky(100_000, at)
    found = thinned(points)
    assert len(found) <= MOST_POINTS
    assert found[[0, -1]].tolist() == points[[0, -1]].tolist()
    assert {(float(at), 99.0), (at + 1.0, -7.0)} <= {(x, y) for x, y in found.tolist()}
    assert np.all(np.diff(found[:, 0]) > 0)


@given(st.integers(0, 7000), st.integers(4, 2500))
def test_thinning_leaves_at_most_what_is_asked_for_and_each_stretch_its_extremes(count: int, most: int) -> None:
    points = np.column_stack([np.arange(count), np.random.default_rng(count).normal(size=count)])
    found = thinned(points, most)
    assert len(found) <= max(most, 0)
    if count <= most:
        assert found is points
    elif count:
        assert {points[:, 1].min(), points[:, 1].max()} <= set(found[:, 1])


@given(st.integers(0, 300), st.floats(0, 1))
def test_smoothing_is_the_mean_of_the_points_around(count: int, share: float) -> None:
    y = np.random.default_rng(count).normal(size=count) + 3.0
    reach = int(count * share / 2)
    sides = [min(reach, i, count - 1 - i) for i in range(count)]
    expected = [float(np.mean(y[i - side : i + side + 1])) for i, side in enumerate(sides)]
    found = smoothed(np.column_stack([np.arange(count), y]), share)
    assert found[:, 1].tolist() == pytest.approx(expected)


def test_a_page_of_many_records_is_small_and_shows_a_loss_spike(run: Path) -> None:
    lines = [{"step": step, "loss": 500.0 if step == 33_333 else 1.0, "term": 0.5} for step in range(1, 50_001)]
    (run / "tokenizer" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = build_report(collect(str(run)))
    assert len(html) < 200_000
    chart = next(part for part in html.split("<svg") if 'aria-label="tokenizer: loss by step"' in part)
    raw = re.search(r'class="c0 faint" points="([^"]*)"', chart)
    assert raw is not None
    places = [tuple(map(float, pair.split(","))) for pair in raw[1].split()]
    highest = min(places, key=lambda place: place[1])
    assert highest[1] < 15  # at the top of the chart
    assert (highest[0] - 58) / (538 - 58) == pytest.approx(33_333 / 50_000, abs=0.01)


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "ys", [(1e308, -1e308, 3.0), (5e-324, 1e-320, 2.0), (-1e-320, 0.0, 1.0), (math.inf, math.nan, 1.0)]
)
def test_numbers_at_the_ends_of_what_a_float_holds_break_no_chart(ys: tuple[float, ...], log_y: bool) -> None:
    chart = line_chart([Line("a", list(enumerate(ys)))], title="t", x_label="x", y_label="y", log_y=log_y)
    assert not re.search("nan|inf", re.sub("aria-label", "", str(chart)))
    assert "<svg" in chart


# ------------------------------------------------------------------------------ held-out images, baselines, branches


def look(step: int, errors: list[float], trained: float) -> dict[str, Any]:
    use = {"use": [0.25, 0.75], "attainable": [0.5, 1.0], "perplexity": [3.0, 40.0], "dead": 0.125}
    return {
        "event": "validation",
        "time": step,
        "step": step,
        "images": 500,
        "prefixes": [1, 5],
        "mse": errors,
        "psnr": [12.0, 21.5],
        "ssim": [0.4, 0.9],
        "perceptual": None,
        "training": {"mse": [0.3, trained]},
        "codes": {"detail": use, "semantic": use},
    }


@pytest.fixture
def watched(run: Path) -> Path:
    """A tokenizer that was looked at three times, the second time twice, with a frame of each look and one more."""
    events = [look(10, [0.4, 0.3], 0.29), look(20, [9, 9], 9), look(20, [0.2, 0.11], 0.1), look(30, [0.2, 0.125], 0.05)]
    (run / "tokenizer" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "tokenizer" / "pictures").mkdir()
    for step in (10, 20, 25, 30):
        (run / "tokenizer" / "pictures" / f"reconstructions-{step:09d}.png").write_bytes(PNG + str(step).encode())
    lines = [{"step": step, "loss": 1 / step, "epoch": step / 8, "validation_mse": 0.1} for step in (10, 20, 30)]
    (run / "tokenizer" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_looks_at_held_out_images_are_shown_with_those_of_training_images(watched: Path) -> None:
    data = collect(str(watched))
    words = Page(build_report(data)).words
    assert "Held-out images while the tokenizer trained" in words
    assert "500 images that nothing was trained on" in words
    assert "Held-out images have 2.5 times the error of training images" in words
    assert "their error was least at step 20 (0.11) and is 0.125 at step 30." in words
    assert "positions kept squared error PSNR, dB SSIM 1 0.2 12 0.4 5 0.125 21.5 0.9" in words
    assert "25 % of at most 50 %, perplexity 3 75 % of at most 100 %, perplexity 40 12 %" in words
    assert "3.75 epochs" in words
    (records,) = [each for each in data.records if each.stage == "tokenizer"]
    assert [event["mse"][-1] for event in looks(records)] == [0.3, 0.11, 0.125]  # of a step done again, the last


def test_the_course_of_the_error_is_that_of_the_looks(watched: Path) -> None:
    data = collect(str(watched))
    (records,) = [each for each in data.records if each.stage == "tokenizer"]
    events = looks(records)
    assert _points(events, "mse").tolist() == [[10, 0.3], [20, 0.11], [30, 0.125]]
    assert _points(events, "mse", 0).tolist() == [[10, 0.4], [20, 0.2], [30, 0.2]]
    assert _points(events, "perceptual").tolist() == []
    assert overfitting(events[:2]).endswith("their error was never less than at the last look.")


def test_the_film_strip_has_a_frame_of_each_look_on_record_and_needs_no_script(watched: Path) -> None:
    data = collect(str(watched))
    assert [frame.step for frame in data.film] == [10, 20, 30]
    assert [frame.png for frame in data.film] == [PNG + step for step in (b"10", b"20", b"30")]
    page = Page(build_report(data))
    shown = [
        attributes["src"] for tag, attributes in page.tags if tag == "img" and "after" in (attributes["alt"] or "")
    ]
    assert len(shown) == 3
    chosen = [attributes for tag, attributes in page.tags if tag == "input"]
    assert ["checked" in each for each in chosen] == [False, False, True]
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_long_film_is_thinned_and_what_is_no_picture_is_left_out(watched: Path) -> None:
    events = [look(step, [0.2, 0.1], 0.1) for step in range(1, 101)]
    (watched / "tokenizer" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for step in range(1, 101):
        data = b"<script>" if step == 1 else PNG
        (watched / "tokenizer" / "pictures" / f"reconstructions-{step:09d}.png").write_bytes(data)
    film = collect(str(watched)).film
    assert len(film) == MOST_FRAMES - 1
    assert film[-1].step == 100


def test_an_error_stands_beside_that_of_principal_components_and_of_the_mean_image(run: Path) -> None:
    components = [
        {"bits": bits, "coefficients": bits // 8, "mse": mse} for bits, mse in ((16, 0.1), (80, 0.2), (96, 0.4))
    ]
    shared = {"folds": [0, 1], "plain": [0.5, 1.0, 2.0], "shuffled": [0.6, 0.25, 0.5], "entropy": [3.0, 4.0, 5.0]}
    more = {
        "baselines": {"mean_image": 0.349, "square": 28, "components": components, "key": "k"},
        "tokens": {"perplexity_of_positions": [[1.0] * 21, [2.0] * 20 + [8.0]], "mutual_information": [shared]},
        "probe": {"branches": {"detail": 0.5, "semantic": 0.85}, "pixels": 0.8, "images": 10},
    }
    quality = EVALUATION["reconstruction"] | {
        "psnr_of_prefixes": [10.0, 20.0, 30.0],
        "ssim_of_prefixes": [0.1, 0.2, 0.3],
    }
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | more | {"reconstruction": quality}))
    page = Page(build_report(collect(str(run))))
    assert "in squares of 28 pixels" in page.words
    assert "The mean image alone has an error of 0.349." in page.words
    assert "bits tokenizer components ratio 16 0.2 0.1 2 80 0.1 0.2 0.5 96 0.05 0.4 0.125" in page.words
    assert "0.0500 −50.0 % 30 0.3" in page.words
    assert "PSNR, dB SSIM" in page.words
    assert "detail and semantic 0.00 0.50 plain, 0.60 shuffled, of 3.00 0.75 1.00 plain, 0.25 shuffled" in page.words
    assert "detail 50.0 % semantic 85.0 % raw pixels 80.0 %" in page.words
    cells = [attributes for tag, attributes in page.tags if tag == "i" and "title" in attributes]
    assert len(cells) == 2 * 21
    assert [each["style"] for each in cells[-2:]] == ["--share: 0.25", "--share: 1.0"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"baselines": {"mean_image": "x", "square": 28, "components": []}},
        {"baselines": {"square": 28}},
        {"tokens": {"mutual_information": [{"folds": [0]}]}},
        {"probe": {"branches": 3, "pixels": 0.5}},
    ],
)
def test_an_edited_record_of_the_tokenizer_is_refused_by_name(run: Path, wrong: dict[str, Any]) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | wrong))
    with pytest.raises(UsageError, match=r"evaluation\.json is not what"):
        collect(str(run))


def test_nothing_of_a_look_can_break_out_of_the_page(watched: Path) -> None:
    hostile = look(30, [0.2, 0.1], 0.1) | {
        "images": HOSTILE,
        "codes": {HOSTILE: {"use": [HOSTILE, None]}},
        "psnr": HOSTILE,
    }
    (watched / "tokenizer" / "events.jsonl").write_text(json.dumps(hostile) + "\n")
    page = Page(build_report(collect(str(watched))))
    assert "script" not in {tag for tag, _ in page.tags}
    for broken in ({"mse": [], "training": 3, "codes": 7}, {"prefixes": []}, {"prefixes": "x"}, {"mse": ["a", None]}):
        (watched / "tokenizer" / "events.jsonl").write_text(json.dumps(look(30, [0.2, 0.1], 0.1) | broken) + "\n")
        assert build_report(collect(str(watched)))


# --------------------------------------------------------------------------------- what a generator's training shows


def token_look(step: int, loss: float | None, trained: float, *, accuracy: float = 0.25) -> dict[str, Any]:
    terms = {f"loss_group{group}_fold{fold}": 4.0 - group - fold / 2 for group in (0, 1) for fold in (0, 1)}
    terms |= {f"accuracy_group{group}_fold{fold}": accuracy for group in (0, 1) for fold in (0, 1)}
    found = {"samples": 500, "tokens_per_sample": 20, "held_out": {"loss": loss} | terms, "training": {"loss": trained}}
    return {"event": "validation", "step": step, "seconds": 1.0, "pictures_seconds": 0.5} | found


@pytest.fixture
def generated(run: Path) -> Path:
    """A run whose generator has looked at held-out tokens, and drawn, after steps 10, 20 and 30."""
    folder = run / "generator"
    (folder / "pictures").mkdir(parents=True)
    looked = [token_look(10, 5.0, 4.9), token_look(20, 3.0, 2.5), token_look(30, 3.2, 2.0)]
    (folder / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in looked))
    lines = [
        {"step": step, "loss": 6 - step / 10, "learning_rate": step / 1e4, "grad_norm": 0.7, "samples_per_second": 9.0}
        | {f"loss_group{group}_fold{fold}": 4.0 - group for group in (0, 1) for fold in (0, 1)}
        | {"epoch": 2.0, "crop_epoch": 0.2, "loss_scale": 1.0, "validation_loss": 3.0}
        for step in (10, 20, 30)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (10, 20, 30):
        (folder / "pictures" / f"samples-{step:09d}.png").write_bytes(PNG + str(step).encode())
    return run


def charts_of(html: str) -> str:
    """What charts are called, for screen readers."""
    return "\n".join(re.findall(r"aria-label=\"([^\"]*)\"", html))


def test_held_out_and_training_loss_of_a_generator_are_drawn_together_and_told(generated: Path) -> None:
    html = build_report(collect(str(generated)))
    words = Page(html).words
    assert "Loss of tokens of held-out and of training images by step" in charts_of(html)
    assert "Loss of held-out tokens of each group by step" in charts_of(html)
    assert "After step 30 a held-out token costs 3.2 nats, an image 64" in words
    assert "tokens of training images cost 2, 1.2 less" in words
    assert "the held-out loss was least after step 20 (3): what came later overfits" in words


def test_the_loss_of_masked_tokens_is_not_called_a_likelihood(generated: Path) -> None:
    looked = token_look(30, 3.2, 2.0)
    looked["held_out"]["masked_loss"] = 3.2
    (generated / "generator" / "events.jsonl").write_text(json.dumps(looked) + "\n")
    html = build_report(collect(str(generated)))
    words = Page(html).words
    assert "After step 30 a masked token of a held-out image costs 3.2 nats, given the others" in words
    assert "no likelihood of images" in words
    assert "an image 64" not in words
    assert "nats per masked token (no likelihood)" in html


def test_a_held_out_loss_that_still_falls_is_said_to(generated: Path) -> None:
    assert "never less than at this last look" in summary([token_look(10, 5.0, 4.0), token_look(20, 4.0, 3.9)])
    assert summary([token_look(10, None, 4.0)]) == ""


def test_the_last_look_has_a_row_for_each_group_and_columns_for_each_fold(generated: Path) -> None:
    words = Page(build_report(collect(str(generated)))).words
    assert "group loss, fold 1 loss, fold 2 right, fold 1 right, fold 2" in words
    assert "1 4 3.5 25.0 % 25.0 % 2 3 2.5 25.0 % 25.0 %" in words


def test_what_a_generator_drew_is_a_film_strip_over_the_steps(generated: Path) -> None:
    data = collect(str(generated))
    assert [(frame.stage, frame.step, frame.png) for frame in data.film] == [
        ("generator", step, PNG + str(step).encode()) for step in (10, 20, 30)
    ]
    html = build_report(data)
    assert "<script" not in html
    shown = [
        tag for tag, attributes in Page(html).tags if tag == "input" and attributes.get("name") == "film-generator"
    ]
    assert len(shown) == 3
    assert "One worker drew each in 0.5 s (median), for which the others waited" in Page(html).words


def test_pictures_alone_have_a_section_of_their_own(generated: Path) -> None:
    only = [{"event": "validation", "step": step, "seconds": 0.2, "pictures_seconds": 0.0} for step in (10, 20)]
    (generated / "generator" / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in only))
    data = collect(str(generated))
    assert [frame.step for frame in data.film] == [10, 20]
    words = Page(build_report(data)).words
    assert "Samples while the generator trained" in words
    assert "Held-out tokens" not in words


def test_rate_norm_and_throughput_are_drawn_over_the_steps(generated: Path) -> None:
    charts = charts_of(build_report(collect(str(generated))))
    for name in ("learning rate", "gradient norm", "samples/s"):
        assert f"generator: {name} by step" in charts
    assert "tokenizer: learning rate by step" not in charts, "it is not on record there"


def test_losses_of_groups_have_a_chart_of_their_own_and_no_place_among_other_terms(generated: Path) -> None:
    html = build_report(collect(str(generated)))
    assert "generator: loss of each group by step" in charts_of(html)
    assert "generator: what was recorded beside the loss" not in charts_of(html), "there is nothing else"
    assert "loss scale" not in Page(html).words


def test_terms_that_are_not_drawn_are_named(generated: Path) -> None:
    many = {f"term_{number}": 1.0 for number in range(10)}
    (generated / "generator" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0} | many) + "\n")
    assert "not drawn: term_8, term_9" in Page(build_report(collect(str(generated)))).words


def test_epochs_are_told_in_images_and_in_crops(generated: Path) -> None:
    assert "30 steps, 2 epochs, 0.2 of all crops, last loss 3" in Page(build_report(collect(str(generated)))).words


@pytest.mark.parametrize("broken", [{"held_out": []}, {"held_out": {"loss": "low"}}, {"held_out": {"loss": math.inf}}])
def test_a_look_that_was_edited_is_left_out(generated: Path, broken: dict[str, Any]) -> None:
    event = {"event": "validation", "step": 10, "training": 7} | broken
    (generated / "generator" / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert "Held-out tokens" not in Page(build_report(collect(str(generated)))).words


@pytest.mark.parametrize(
    ("real", "words"),
    [
        ({"samples": 500, "held_out": True}, "500 held-out images decoded"),
        ({"samples": 12, "held_out": False}, "12 training images (none were held out) decoded"),
        (None, "about it: held-out images decoded"),
    ],
)
def test_images_that_were_trained_on_are_not_called_held_out(
    run: Path, real: dict[str, Any] | None, words: str
) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"real_images": real}))
    text = Page(build_report(collect(str(run)))).words
    assert words in text
    assert real is None or real["held_out"] or "held-out images" not in text


def test_samples_that_were_drawn_with_any_other_setting_are_noted(run: Path) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        return {"guidance": 2.5, "temperature": 1.0, "batch": 10, "classes": None, "samples_per_class": 4} | changes

    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"sampling": settings()}))
    shown = SAMPLES | {"sampling": settings(temperature=0.5, batch=3, classes=[1], samples_per_class=1)}
    (run / "samples" / "samples.json").write_text(json.dumps(shown))
    (note,) = collect(str(run)).notes
    assert note.endswith("than those that were judged: temperature 0.5 here, 1.0 there.")
