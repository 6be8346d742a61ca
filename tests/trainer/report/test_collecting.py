"""What is read of a run, and what of it is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from tests.trainer.report.pages import EVALUATION
from trainer.report import collect, write_report


def test_a_report_is_written_into_the_run(run: Path) -> None:
    uri = write_report(str(run))
    assert uri == f"{run}/report.html"
    assert Path(uri).read_text().startswith("<!DOCTYPE html>")


def test_a_run_without_evaluation_is_told_to_evaluate_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.json is missing: run `foldtrain evaluate`"):
        collect(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", '{"reconstruction": {}}', '{"reconstruction": null, "generation": 1}'])
def test_an_evaluation_that_was_edited_is_refused_by_name(run: Path, content: str) -> None:
    (run / "evaluation.json").write_text(content)
    with pytest.raises(UsageError, match=r"evaluation\.json is not what"):
        collect(str(run))


def test_an_edited_list_of_stages_is_refused_by_name(run: Path) -> None:
    (run / "stages.json").write_text('[{"stage": "ingest"}]')
    with pytest.raises(UsageError, match=r"stages\.json"):
        collect(str(run))


def test_of_a_step_that_was_repeated_after_a_restart_the_last_record_counts(run: Path) -> None:
    with (run / "tokenizer" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 7.0}\n{"step": 25, "loss": 8.0}\n{"step": 40, "lo')
    tokenizer = next(records for records in collect(str(run)).records if records.stage == "tokenizer")
    assert list(zip(tokenizer.steps, tokenizer.metrics["loss"], strict=True)) == [
        (10, 0.1),
        (20, 7.0),
        (25, 8.0),
        (30, 1 / 30),
    ]


def test_the_layout_is_that_of_the_tokenizer_that_was_judged(run: Path) -> None:
    data = collect(f"file://{run}")
    assert (data.name, data.evaluation.groups, data.evaluation.vocabularies) == ("first", (1, 4, 16), (64, 64))


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": 1, "sampling": {}, "fingerprints": {}}'])
def test_a_record_of_samples_that_was_edited_is_refused_by_name(run: Path, content: str) -> None:
    (run / "samples/samples.json").write_text(content)
    with pytest.raises(UsageError, match=r"samples\.json is not what"):
        collect(str(run))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: &a [x]\nb: [*a" + ", *a" * 60_000 + "]", "a: !!timestamp 2026-99-99"]
)
def test_a_config_that_is_none_is_named_and_costs_little(run: Path, text: str) -> None:
    (run / "tokenizer" / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"tokenizer/config\.yaml is not valid YAML"):
        write_report(str(run))


@pytest.mark.parametrize(
    "wrong",
    [
        {"baselines": {"mean_image": "x", "square": 28, "components": []}},
        {"baselines": {"square": 28}},
        {"tokens": {"mutual_information": [{"folds": [0]}]}},
        {"probe": {"branches": 3, "pixels": 0.5}},
    ],
)
def test_an_edited_record_of_the_tokenizer_is_refused_by_name(run: Path, wrong: dict[str, Any]) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | wrong))
    with pytest.raises(UsageError, match=r"evaluation\.json is not what"):
        collect(str(run))
