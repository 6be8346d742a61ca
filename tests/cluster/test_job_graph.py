"""Which stages a job runs, and which of them it passes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.jobs.graph import chosen_stages, first_unfinished, standing
from cluster.stages import job_plan
from cluster.stages.job_plan import Forecast
from cluster.targets.opening import section_from
from data_pipeline.errors import UsageError

ORDER = ("ingest", "train-tokenizer", "tokenize", "train-generator", "evaluate", "sample", "report")


@pytest.fixture
def config(small_config: Path, tmp_path: Path) -> RunConfig:
    return load_config(small_config, [f"run={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("asked", "stages"),
    [
        (["ingest"], ("ingest",)),
        (["tokenize,ingest"], ("ingest", "tokenize")),
        (["tokenize", "ingest", "ingest"], ("ingest", "tokenize")),
        (["all"], ORDER),
        (["quickstart"], ORDER),
    ],
)
def test_stages_are_run_in_their_order_each_once(config: RunConfig, asked: list[str], stages: tuple[str, ...]) -> None:
    assert chosen_stages(asked, config) == stages


def test_all_stages_are_those_that_the_config_has_something_for(config: RunConfig, small_config: Path) -> None:
    teacher = "teacher={trainer: {steps: 1, global_batch: 8}}"
    assert "train-teacher" in chosen_stages(["all"], load_config(small_config, [teacher]))
    assert "train-teacher" not in chosen_stages(["all"], config)


@pytest.mark.parametrize("asked", [[""], [","], ["ingest,moon"], ["quickstarts"]])
def test_what_is_no_list_of_stages_is_refused(config: RunConfig, asked: list[str]) -> None:
    with pytest.raises(UsageError, match="--stage"):
        chosen_stages(asked, config)


def test_a_job_begins_at_the_first_stage_that_is_not_finished(config: RunConfig, tmp_path: Path) -> None:
    def touch(name: str) -> None:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def stands() -> tuple[dict[str, str], str | None]:
        found = standing(config, ORDER[:4])
        return {stage.command: stage.standing for stage in found}, first_unfinished(found)

    nothing = dict.fromkeys(ORDER[:4], "to do")
    assert stands() == (nothing, "ingest")
    touch("images/progress.json")
    assert stands() == (nothing | {"ingest": "begun"}, "ingest")
    touch("images/train/manifest.json")
    touch("tokenizer/export/card.json")
    done = {"ingest": "finished", "train-tokenizer": "finished"}
    assert stands() == (nothing | done, "tokenize")
    touch("tokens/manifest.json")
    touch("generator/export/card.json")
    assert stands() == (dict.fromkeys(ORDER[:4], "finished"), None)


def test_a_stage_whose_product_is_given_is_passed_over(small_config: Path, tmp_path: Path) -> None:
    config = load_config(small_config, [f"run={tmp_path}", "data.source=null", "inputs.images=s3://b/images"])
    [ingest, _] = standing(config, ["ingest", "train-tokenizer"])
    assert (ingest.standing, ingest.is_skipped) == ("given", True)


def test_samples_and_reports_are_made_again_whenever_they_are_asked_for(config: RunConfig) -> None:
    assert [stage.is_skipped for stage in standing(config, ORDER[4:])] == [False, False, False]


# ------------------------------------------------------------------------------------------------------------ the plan


def test_a_price_is_that_of_all_nodes_for_all_hours() -> None:
    section = section_from({"kind": "local", "price_per_hour": 2.5}, "here")
    assert job_plan.price(4.0, 3, section) == 30.0
    assert job_plan.price(4.0, 3, section_from({"kind": "local"}, "here")) is None


def test_what_a_job_costs_is_said_in_the_money_of_its_target(config: RunConfig) -> None:
    section = section_from({"kind": "local", "price_per_hour": 1, "currency": "EUR"}, "here")
    forecasts = {"train-tokenizer": Forecast(1.0, 12.0, 10), "train-generator": Forecast(2.0, 1230.5, 10)}
    said = job_plan.sentences(standing(config, ORDER), section, forecasts)
    assert said == ["begins with ingest", "1,242.50 EUR for what can be foreseen"]


def test_a_stage_that_cannot_be_planned_is_no_error_and_says_why(config: RunConfig) -> None:
    section = section_from({"kind": "local"}, "here")
    assert job_plan.forecast(config, "tokenize", section).note == "its time is not known beforehand"
    wide = load_config(str(config.run).replace("/run", "/small.yaml"), ["cluster={workers: 3, gpus_per_worker: 1}"])
    eight = section_from({"kind": "local", "gpus_per_node": 8}, "here")
    assert "do not fill nodes of 8" in job_plan.forecast(wide, "train-generator", eight).note


def test_the_plan_shows_what_is_skipped_and_on_how_much_the_rest_runs(config: RunConfig, tmp_path: Path) -> None:
    from rich.console import Console

    (tmp_path / "run/images/train").mkdir(parents=True)
    (tmp_path / "run/images/train/manifest.json").touch()
    section = section_from({"kind": "ray", "nodes": "2:4", "gpus_per_node": 8}, "there")
    console = Console(width=160)
    with console.capture() as captured:
        console.print(job_plan.table(standing(config, ORDER[:2]), config, section))
    _, ingest, tokenizer = captured.get().splitlines()
    assert ingest.split() == ["ingest", "finished:", "is", "skipped", "-", "-", "-"]
    assert tokenizer.split() == ["train-tokenizer", "to", "do", "1", "2", "to", "4", "32"]
