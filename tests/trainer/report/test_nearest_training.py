"""What the report shows of the training images that are nearest to samples."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from tests.trainer.report.evaluated import BY, OF
from tests.trainer.report.pages import EVALUATION, PNG, Page
from trainer.evaluation.naming.numbers import Number
from trainer.report import build_report, collect

SHARE = Number("memorized_share", 0.125, 200, BY, OF)
FOUND = {
    "network": "teacher",
    "samples": 200,
    "held_out": 1000,
    "training_images": 9000,
    "threshold": 0.5,
    "share": 0.125,
    "quantiles_of_samples": [0.0, 1.0, 2.0],
    "quantiles_of_held_out": [1.0, 2.0, 4.0],
    "closest": [],
}


def write(run: Path, **changes: object) -> None:
    (run / "samples" / "nearest.png").write_bytes(PNG + b"3")
    files = EVALUATION["files"] | {"samples/nearest.png": hashlib.sha256(PNG + b"3").hexdigest()}
    record = EVALUATION | {"memorization": FOUND | changes, "numbers": [SHARE.to_json()], "files": files}
    (run / "evaluation.json").write_text(json.dumps(record))


def test_the_share_stands_beside_that_of_held_out_images(run: Path) -> None:
    write(run)
    page = Page(build_report(collect(str(run))))
    assert "Of 200 samples, by the features of teacher, among 9,000 training images" in page.words
    assert "Of 1,000 held-out images, which nothing was trained on, 1 % are within 0.5 of one" in page.words
    assert "of the samples, 12.5 %" in page.words
    assert any("closest to a training image" in (attrs.get("alt") or "") for tag, attrs in page.tags if tag == "img")


def test_both_distributions_rise_from_none_to_all(run: Path) -> None:
    write(run)
    html = build_report(collect(str(run)))
    chart = html[html.index("Share of images by distance") :].partition("</svg>")[0]
    lines = [points.split() for points in re.findall(r'points="([^"]*)"', chart)]
    assert [len(points) for points in lines] == [3, 3]
    starts, middles, ends = zip(*[[tuple(map(float, each.split(","))) for each in line] for line in lines], strict=True)
    assert starts[0][1] == starts[1][1] > middles[0][1] == middles[1][1] > ends[0][1] == ends[1][1]
    assert starts[0][0] < starts[1][0] == middles[0][0] < ends[0][0] == middles[1][0] < ends[1][0]


def test_a_picture_of_another_evaluation_is_not_shown(run: Path) -> None:
    write(run)
    (run / "samples" / "nearest.png").write_bytes(PNG + b"4")
    assert "closest to a training image" not in build_report(collect(str(run)))


def test_an_edited_record_is_refused_by_name(run: Path) -> None:
    write(run, threshold="near")
    with pytest.raises(UsageError, match=r"evaluation\.json is not what"):
        collect(str(run))
