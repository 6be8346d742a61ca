"""The page of an evaluation of images or of a tokenizer, and the charts of perturbed tokens."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.trainer.report.evaluated import ERRORS, FID, RFID, TOKENIZER, by, of
from tests.trainer.report.pages import COMPUTED, HOSTILE, Page, charts_of
from trainer.evaluation.naming.number_names import full_name
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.rate_distortion import Curve, Point, RateDistortion
from trainer.report.evaluation_page import evaluation_page
from trainer.report.perturbation import perturbation_file

WHOLE = ERRORS[-1]
SVG = "{http://www.w3.org/2000/svg}"


def perturbed(number: Number, alpha: float, value: float) -> Number:
    found = of(number, perturbation={"alpha": alpha, "delta": 25, "seed": 0})
    return Number(**vars(found) | {"value": value})


PERTURBED = [RFID, *ERRORS, perturbed(RFID, 0.5, 9.0), perturbed(RFID, 1.0, 18.0), perturbed(WHOLE, 0.5, 0.2)]


def test_every_number_has_its_full_name() -> None:
    words = Page(evaluation_page("weights/vq", [FID, RFID, *ERRORS])).words
    for number in (FID, RFID, *ERRORS):
        assert full_name(number) in words
    assert "squared error first 5 positions 0.02000 100" in words
    assert "<h1>weights/vq</h1>" in evaluation_page("weights/vq", [FID])


def test_prefixes_have_a_chart_and_a_single_number_has_none() -> None:
    html = evaluation_page("x", [RFID, *ERRORS])
    assert charts_of(html) == "squared error by prefix"
    assert "<h3>squared error by prefix</h3>" in html
    assert charts_of(evaluation_page("x", [FID, WHOLE])) == ""


def test_the_distance_of_all_positions_ends_the_chart_of_prefixes() -> None:
    html = evaluation_page("x", [RFID, of(RFID, keep=1), *ERRORS])
    chart = html[html.index('aria-label="rFID by prefix"') :].partition("</svg>")[0]
    assert len(chart.partition('points="')[2].partition('"')[0].split()) == 2


def test_bits_against_error_are_drawn_where_they_were_measured() -> None:
    curve = Curve("tokenizer", (Point(8, 8, 0.5, {"network0": 9.0}), Point(40, 40, 0.25, {"network0": 4.5})))
    errors = evaluation_page("x", [FID], RateDistortion((curve,), {}))
    both = evaluation_page("x", [FID], RateDistortion((curve,), {}, {"network0": "rFID"}))
    assert charts_of(errors) == "Squared error by bits of an image"
    assert charts_of(both).splitlines() == ["Squared error by bits of an image", "rFID by bits of an image"]


def test_own_tokens_are_alpha_0_and_a_chart_has_a_line_for_each_tokenizer() -> None:
    root = ElementTree.fromstring(perturbation_file({"VQ": PERTURBED, "robust <VQ>": PERTURBED}))
    distance, error = root.findall(f"{SVG}svg")
    assert (distance.get("aria-label"), error.get("aria-label")) == (
        "pFID by perturbed tokens",
        "squared error by perturbed tokens",
    )
    assert [len((line.get("points") or "").split()) for line in distance.iter(f"{SVG}polyline")] == [3, 3]
    assert [len((line.get("points") or "").split()) for line in error.iter(f"{SVG}polyline")] == [2, 2]
    assert "robust <VQ>" in {text.text for text in distance.iter(f"{SVG}text")}


def test_a_point_lies_where_its_alpha_and_its_value_are() -> None:
    root = ElementTree.fromstring(perturbation_file({"VQ": PERTURBED}))
    (line,) = root.findall(f"{SVG}svg")[0].iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, at.split(","))) for at in (line.get("points") or "").split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y1 - y2) / (y0 - y1) == pytest.approx((18 - 9) / (9 - 4.5), abs=0.02)


def test_charts_stand_below_each_other() -> None:
    root = ElementTree.fromstring(perturbation_file({"VQ": PERTURBED}))
    heights = [(float(each.get("y") or 0), float(each.get("height") or 0)) for each in root.findall(f"{SVG}svg")]
    assert heights[1][0] == heights[0][1]
    assert float((root.get("viewBox") or "").split()[3]) == 2 * heights[0][1]


def test_distances_and_squared_error_are_drawn_and_no_other_number() -> None:
    samples, psnr = of(FID, perturbation={"alpha": 0.5}), Number("psnr", 20.0, 100, {}, WHOLE.measured_of)
    numbers = [psnr, perturbed(psnr, 0.5, 10.0), samples, *reversed(PERTURBED)]
    charts = charts_of(evaluation_page("x", numbers)).splitlines()
    assert charts[-2:] == ["pFID by perturbed tokens", "squared error by perturbed tokens"]
    assert "PSNR by perturbed tokens" not in charts


def test_nothing_perturbed_is_no_chart() -> None:
    assert "perturbed" not in charts_of(evaluation_page("x", [RFID, *ERRORS]))


def test_whatever_a_number_holds_stays_text() -> None:
    hostile = by(of(FID, **{HOSTILE: HOSTILE}), network={"name": HOSTILE})
    odd = Number("mse", 0.1, 10, {}, TOKENIZER | {"keep": HOSTILE, "perturbation": {"alpha": HOSTILE}})
    curve = Curve(HOSTILE, (Point(1, 1, 1, {HOSTILE: 2.0}), Point(2, 2, 2, {HOSTILE: 1.0})))
    html = evaluation_page(HOSTILE, [hostile, odd], RateDistortion((curve,), {}, {HOSTILE: HOSTILE}))
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert COMPUTED not in page.words
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
