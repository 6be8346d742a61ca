"""The page: what it says, that it needs nothing else, and that nothing of a run can break out of it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.trainer.report.pages import EVALUATION, HOSTILE, Page, changed
from trainer.report import ReportData, build_report, collect
from trainer.report.data import Evaluation, StageConfig, StageRecords, StageTime
from trainer.report.page import duration, flatten, fold_names


def minimal() -> ReportData:
    return ReportData(run="runs/empty", created="today", evaluation=Evaluation())


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
    assert "{{ 71 * 857 }}" in page.text
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


def test_a_class_of_which_nothing_was_drawn_has_a_dash(run: Path) -> None:
    text = changed(EVALUATION, "generation", class_accuracy_per_class=[0.9, None])
    (run / "evaluation.json").write_text(text)
    assert "Coat 90 % Bag –" in Page(build_report(collect(str(run)))).words


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


@pytest.mark.parametrize("prefixes", [[], [1, 5], [1, 5, 21, 22]])
def test_errors_of_other_prefixes_than_are_named_are_shown_without_them(run: Path, prefixes: list[int]) -> None:
    record = json.loads((run / "evaluation.json").read_text())
    record["reconstruction"]["prefixes"] = prefixes
    (run / "evaluation.json").write_text(json.dumps(record))
    assert "0.2000" in Page(build_report(collect(str(run)))).words


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
