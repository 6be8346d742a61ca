"""What a tokenizer's training shows: held-out images, the film strip, baselines, branches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.report.pages import EVALUATION, HOSTILE, PNG, Page
from trainer.report import build_report, collect
from trainer.report.collect import MOST_FRAMES
from trainer.report.held_out import _points, looks, overfitting


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


def test_small_sample_distances_of_reconstructions_are_shown_beside_the_errors(watched: Path) -> None:
    events = watched / "tokenizer" / "events.jsonl"
    by = {"reference": {"images": "3f" * 32, "count": 64}, "network": {"name": "classifier", "sha256": "ab" * 32}}
    found = {"metric": "frechet_distance", "value": 3.5, "images": 64, "measured_by": by}
    event = {"event": "validation", "step": 15, "distance": found | {"measured_of": {"tokenizer": {"step": 15}}}}
    events.write_text(events.read_text() + json.dumps(event) + "\n")
    words = Page(build_report(collect(str(watched)))).words
    assert "Fréchet distance of 64 reconstructions by step" in words
    assert "Fréchet distance (classifier) of reconstructions 3.500 (64 reconstructions, reference 3f3f3f3f" in words


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
