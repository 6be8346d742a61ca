"""What the report shows of sweeps: curves, their optimum, and every number of every setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UsageError
from tests.trainer.report.evaluated import BY, OF
from tests.trainer.report.pages import HOSTILE, Page, charts_of
from trainer.evaluation.naming.numbers import Number
from trainer.report import build_report, collect
from trainer.report.sweeps import SweepPoint, best_of, curves_of, tradeoffs_of

INCEPTION: dict[str, Any] = {"network": {"name": "inception-2015"}}


def point(guidance: float, fid: float, score: float) -> SweepPoint:
    numbers = (Number("fid", fid, 100, BY, OF), Number("inception_score", score, 100, INCEPTION, OF))
    return SweepPoint({"guidance": guidance}, numbers)


POINTS = (point(2.0, 3.0, 200.0), point(1.0, 5.0, 100.0), point(3.0, 4.0, 250.0))


def write_sweep(run: Path, *points: SweepPoint, name: str = "sweep-aa") -> Path:
    file = run / "evaluation" / name / "sweep.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"version": 1, "points": [each.to_json() for each in points], "best": {}}))
    return file


def test_the_best_setting_has_the_least_distance_and_the_largest_score() -> None:
    assert best_of(POINTS) == {"FID": {"guidance": 2.0}, "IS": {"guidance": 3.0}}


def test_a_curve_goes_through_the_settings_in_their_order_and_marks_the_best() -> None:
    curve = next(iter(curves_of(POINTS)))
    line, best = curve.lines
    assert list(line.points) == [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0)]
    assert (best.label, list(best.points)) == ("best, at 2.0", [(2.0, 3.0)])


def test_distance_and_score_are_drawn_one_against_the_other() -> None:
    (curve,) = tradeoffs_of(POINTS)
    assert (curve.title, curve.x_label, curve.y_label) == ("FID by IS", "IS", "FID")
    assert np.array_equal(curve.lines[0].points, [(100, 5), (200, 3), (250, 4)])


def test_a_setting_without_one_of_both_numbers_is_no_point_of_the_tradeoff() -> None:
    lacking = SweepPoint({"guidance": 4.0}, POINTS[0].numbers[:1])
    (curve,) = tradeoffs_of((*POINTS, lacking))
    assert len(curve.lines[0].points) == 3


def test_two_settings_at_once_have_a_table_and_no_curve() -> None:
    points = [SweepPoint({"guidance": at, "top_k": 5}, POINTS[0].numbers) for at in (1.0, 2.0)]
    assert not list(curves_of(points))
    assert not list(tradeoffs_of(points))


def test_a_page_has_the_curves_the_table_and_the_optimum(run: Path) -> None:
    write_sweep(run, *POINTS)
    html = build_report(collect(str(run)))
    words = Page(html).words
    assert {"FID", "IS", "FID by IS"} <= set(charts_of(html).splitlines())
    assert "guidance 2.0 3.000 200.0 guidance 1.0 5.000 100.0 guidance 3.0 4.000 250.0" in words
    assert "Best FID : at guidance 2.0" in words.replace("FID:", "FID :")
    assert "<b>3.000</b>" in html
    assert "<b>5.000</b>" not in html
    assert "FID: 100 samples, reference aaaaaaaa, rounding nearest, inception-2015" in words


def test_a_sweep_that_is_not_finished_is_left_out(run: Path) -> None:
    write_sweep(run, *POINTS).unlink()
    assert collect(str(run)).sweeps == ()


@pytest.mark.parametrize("text", ["[]", '{"version": 1, "points": []}', '{"version": 1, "points": [{"settings": 3}]}'])
def test_an_edited_sweep_is_refused_by_name(run: Path, text: str) -> None:
    write_sweep(run, *POINTS).write_text(text)
    with pytest.raises(UsageError, match=r"sweep-aa/sweep\.json"):
        collect(str(run))


def test_settings_of_a_sweep_are_escaped(run: Path) -> None:
    write_sweep(run, SweepPoint({HOSTILE: HOSTILE}, POINTS[0].numbers))
    assert "script" not in {tag for tag, _ in Page(build_report(collect(str(run)))).tags}
