"""The charts of bits against error and distances, in a page and as a file."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from trainer.evaluation.tokenizers.rate_distortion import Curve, Point, RateDistortion
from trainer.report.rate_distortion import distortion_charts, distortion_file

CURVES = (
    Curve("VQ <16>", (Point(10, 10, 0.5), Point(20, 20, 0.25), Point(40, 40, 0.125, {"network0": 3.0}))),
    Curve("JPEG", (Point(10, None, None), Point(20, 18.5, 0.5), Point(40, 39.0, 0.25, {"network0": 4.0}))),
)
ERRORS = RateDistortion(CURVES, {})
DISTANCES = RateDistortion(CURVES, {}, {"network0": "rFID"})
SVG = "{http://www.w3.org/2000/svg}"


def points_of(root: ElementTree.Element, name: str) -> list[int]:
    return [len((line.get("points") or "").split()) for line in root.iter(name)]


def test_each_curve_is_a_line_of_the_points_that_are_there() -> None:
    (one,) = distortion_charts(ERRORS)
    chart = ElementTree.fromstring(str(one[1]).partition("</svg>")[0] + "</svg>")
    assert points_of(chart, "polyline") == [3, 2]


def test_distances_of_a_network_have_a_chart_of_their_own() -> None:
    (_, _), (title, chart) = distortion_charts(DISTANCES)
    assert title == "rFID by bits of an image"
    drawn = ElementTree.fromstring(str(chart).partition("</svg>")[0] + "</svg>")
    assert len(list(drawn.iter("circle"))) + len(list(drawn.iter("polyline"))) == 2


def test_a_file_is_whole_with_colours_and_names() -> None:
    root = ElementTree.fromstring(distortion_file(ERRORS))
    assert root.tag == f"{SVG}svg"
    assert len(list(root.iter(f"{SVG}polyline"))) == 2
    assert "--c0" in ("".join(each.text or "" for each in root.iter(f"{SVG}style")))
    assert {"VQ <16>", "JPEG"} <= {text.text for text in root.iter(f"{SVG}text")}
    assert len(ElementTree.fromstring(distortion_file(DISTANCES)).findall(f"{SVG}svg")) == 2


def test_nothing_to_draw_is_no_file() -> None:
    with pytest.raises(ValueError, match="no point to draw"):
        distortion_file(RateDistortion((Curve("JPEG", (Point(10, None, None),)),), {}))
