"""What a generator's training shows: held-out tokens, drawn samples, rates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.report.pages import PNG, Page, charts_of
from trainer.report import build_report, collect
from trainer.report.generator import summary


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


def compared(step: int, value: float | None, images: int = 500, network: str = "ab") -> dict[str, Any]:
    measured_by = {
        "reference": {"images": "3f" * 32, "count": images},
        "network": {"name": "timm:x", "sha256": network * 32},
    }
    of = {"generator": {"step": step}, "weights": "ema", "sampling": {"guidance": 2.5}}
    found: dict[str, Any] = {"metric": "frechet_distance", "images": images, "measured_by": measured_by}
    found |= {"measured_of": of} | ({"left_out": "after 120 s 30 of 500 images were made"} if value is None else {})
    return {"event": "validation", "step": step, "distance": found | ({} if value is None else {"value": value})}


def test_small_sample_distances_are_a_curve_with_the_full_name_of_the_last(generated: Path) -> None:
    events = [
        compared(5, 99.0, 64),
        compared(6, 99.0, network="cd"),
        compared(10, 8.5),
        compared(20, None),
        compared(30, 2.25),
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (generated / "generator" / "events.jsonl").write_text(lines)
    html = build_report(collect(str(generated)))
    words = Page(html).words
    assert "Fréchet distance of 500 samples by step" in charts_of(html)
    assert "Fréchet distance (timm:x) 2.250 (500 samples, reference 3f3f3f3f of 500 images, timm:x abababab;" in words
    assert "generator at step 30, EMA weights, guidance 2.5)" in words
    assert "1 look has none: after 120 s 30 of 500 images were made." in words
    assert "Not shown: 2 looks that measured in another way." in words


def test_distances_of_another_kind_of_record_are_left_out(generated: Path) -> None:
    for wrong in ({"value": "many"}, {"metric": "<b>"}, {"measured_by": 3}, {"images": -1}):
        event = compared(30, 2.25)
        event["distance"] |= wrong
        (generated / "generator" / "events.jsonl").write_text(json.dumps(event) + "\n")
        assert "Fréchet distance of 500 samples by step" not in build_report(collect(str(generated)))
