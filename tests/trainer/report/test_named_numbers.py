"""The report says every number's full name, and what it shows at its top leads there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from tests.trainer.report.evaluated import BY, ERRORS, FID, OF, RFID, TOKENIZER
from tests.trainer.report.pages import EVALUATION, HOSTILE, Page, changed
from trainer.evaluation.naming.number_names import full_name
from trainer.evaluation.naming.numbers import Number
from trainer.report import build_report, collect
from trainer.report.named_numbers import number_groups

TEACHER = {"name": "teacher", "sha256": "dd" * 32}
DISTANCE = Number("frechet_distance", 5.678, 1000, BY | {"network": TEACHER}, OF)
CODES = tuple(
    Number("code_use", 0.1 * scale, 100, {"protocol": {"branch": branch, "scale": scale}}, TOKENIZER)
    for branch in ("detail", "semantic")
    for scale in (1, 2, 3)
)


def page(run: Path, *numbers: Number) -> str:
    record = EVALUATION | {"numbers": [number.to_json() for number in numbers]}
    (run / "evaluation.json").write_text(json.dumps(record))
    return build_report(collect(str(run)))


def test_every_number_stands_there_with_its_full_name(run: Path) -> None:
    numbers = (FID, DISTANCE, RFID, *ERRORS, *CODES)
    words = Page(page(run, *numbers)).words
    for number in numbers:
        assert " ".join(full_name(number).split()) in words


def test_of_many_prefixes_and_scales_the_last_is_shown_and_the_others_unfold() -> None:
    groups = {group["heading"]: group for group in number_groups((FID, *ERRORS, *CODES))}
    assert list(groups) == ["Samples", "Reconstructions", "Codes"]
    assert [each["head"] for each in groups["Reconstructions"]["shown"]] == ["squared error 0.004762"]
    assert [each["head"] for each in groups["Reconstructions"]["others"]] == [
        "squared error 0.1000",
        "squared error 0.02000",
    ]
    assert [each["head"] for each in groups["Codes"]["shown"]] == [
        "code use of detail, scale 3 0.3000",
        "code use of semantic, scale 3 0.3000",
    ]
    assert len(groups["Codes"]["others"]) == 4


def test_a_distance_at_the_top_leads_to_its_full_name(run: Path) -> None:
    html = page(run, FID, DISTANCE)
    card = html[html.index(">Fréchet distance of samples<") :]
    target = re.search(r'href="#([^"]+)"', card.partition("</div>")[0])
    assert target is not None
    item = html[html.index(f'id="{target[1]}"') :].partition("</li>")[0]
    assert "Fréchet distance (teacher) 5.678" in item


def test_fid_and_inception_score_stand_at_the_top_where_they_were_measured(run: Path) -> None:
    score = Number("inception_score", 295.0, 10_000, {"network": {"name": "inception-2015"}}, OF, 3.0)
    html = page(run, FID, RFID, score)
    top = Page(html[: html.index("</section>")]).words
    for expected in ("FID 12.34 ± 0.07 of 10,000 samples", "rFID 4.500 of 10,000 reconstructions", "IS 295 ± 3"):
        assert expected in top


def test_an_evaluation_without_names_is_shown_without_them(run: Path) -> None:
    html = build_report(collect(str(run)))
    assert 'id="numbers"' not in html
    assert "full name" not in html


def test_a_name_from_a_run_is_escaped(run: Path) -> None:
    html = page(run, Number("fid", 1.0, 2, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}))
    assert "script" not in {tag for tag, _ in Page(html).tags}


@pytest.mark.parametrize("wrong", [{"metric": "fid"}, 3, {"metric": "fid", "value": "1", "images": 1}])
def test_an_edited_number_is_refused_by_name(run: Path, wrong: Any) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"numbers": [wrong]}))
    with pytest.raises(UsageError, match=r"evaluation\.json is not what"):
        collect(str(run))


def test_of_many_classes_the_best_and_the_worst_are_shown(run: Path) -> None:
    shares = [None, *(place / 100 for place in range(1, 31))]
    record = json.loads(changed(EVALUATION, "generation", class_accuracy_per_class=shares))
    record["class_names"] = [f"class{place}" for place in range(31)]
    (run / "evaluation.json").write_text(json.dumps(record))
    words = Page(build_report(collect(str(run)))).words
    best = " ".join(f"class{place} {place} %" for place in range(30, 20, -1))
    worst = " ".join(f"class{place} {place} %" for place in range(1, 11))
    assert f"The 10 best of 31 classes {best} The 10 worst {worst}" in words
    assert "class15" not in words
