"""What does not belong together is said: samples, networks and settings of different times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.report.pages import EVALUATION, SAMPLES, Page, changed
from trainer.report import build_report, collect


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


def test_samples_that_were_drawn_with_any_other_setting_are_noted(run: Path) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        return {"guidance": 2.5, "temperature": 1.0, "batch": 10, "classes": None, "samples_per_class": 4} | changes

    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"sampling": settings()}))
    shown = SAMPLES | {"sampling": settings(temperature=0.5, batch=3, classes=[1], samples_per_class=1)}
    (run / "samples" / "samples.json").write_text(json.dumps(shown))
    (note,) = collect(str(run)).notes
    assert note.endswith("than those that were judged: temperature 0.5 here, 1.0 there.")
