"""The chart of bits against error, in a page and as a file."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from trainer.evaluation.tokenizers.rate_distortion import Curve, Point
from trainer.report.rate_distortion import distortion_chart, distortion_file

CURVES = [
    Curve("VQ <16>", (Point(10, 10, 0.5), Point(20, 20, 0.25), Point(40, 40, 0.125))),
    Curve("JPEG", (Point(10, None, None), Point(20, 18.5, 0.5), Point(40, 39.0, 0.25))),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_each_curve_is_a_line_of_the_points_that_are_there() -> None:
    chart = ElementTree.fromstring(str(distortion_chart(CURVES)).partition("</svg>")[0] + "</svg>")
    assert [len((line.get("points") or "").split()) for line in chart.iter("polyline")] == [3, 2]


def test_a_file_is_whole_with_colours_and_names() -> None:
    root = ElementTree.fromstring(distortion_file(CURVES))
    assert root.tag == f"{SVG}svg"
    assert len(list(root.iter(f"{SVG}polyline"))) == 2
    assert "--c0" in (root.findtext(f"{SVG}style") or "")
    assert {"VQ <16>", "JPEG"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_nothing_to_draw_is_no_file() -> None:
    with pytest.raises(ValueError, match="no point to draw"):
        distortion_file([Curve("JPEG", (Point(10, None, None),))])
