"""The alerts of a stage as a whole: what its records say, and how it ended, reach who is to be told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError

from cluster.alerts.alerts import Alerts, alerting
from cluster.alerts.rules import Found
from cluster.config.alerts import AlertConfig
from cluster.config.run import RunConfig
from cluster.progress.training_progress import Follower
from cluster.stages import pipeline
from data_pipeline.errors import FoldtrainError, UsageError
from tests.cluster.alerts.receivers import Answering, Silent
from trainer.config import TrackingConfig
from trainer.job import TrainJob
from trainer.records.run_directory import RunDirectory

RUN = "s3://bucket/my run"


def receiver(monkeypatch: pytest.MonkeyPatch, url: str, *on: str, **more: Any) -> AlertConfig:
    monkeypatch.setenv("MY_WEBHOOK", url)
    return AlertConfig.model_validate({"on": on, "webhook": "env:MY_WEBHOOK"} | more)


def test_an_alert_has_the_runs_name_the_stage_the_step_and_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering()
    config = receiver(monkeypatch, server.url, "spike", link="https://dash.example/?run={run}")
    alerts = Alerts([config], RUN, "train-generator")
    alerts.tell(Found("spike", "the loss\x1b[2J spiked", 7))
    alerts.tell(Found("failed", "not asked for"))
    alerts.close()
    got = server.got.get_nowait()
    server.close()
    assert server.got.empty()
    assert got["text"] == (
        "my run: train-generator spike: the loss\\u001b[2J spiked (step 7)\nhttps://dash.example/?run=s3%3A%2F%2Fbucket%2Fmy%20run"
    )
    assert (got["run"], got["stage"], got["step"]) == (RUN, "train-generator", 7)


def test_what_the_records_say_is_sent_to_those_who_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server, other = Answering(), Answering()
    monkeypatch.setenv("OTHER", other.url)
    configs = [
        receiver(monkeypatch, server.url, "nan", "spike"),
        AlertConfig.model_validate({"on": ["nan"], "webhook": "env:OTHER"}),
    ]
    alerts = Alerts(configs, RUN, "train-generator")
    spike = {"time": 1.0, "event": "spike", "step": 40, "loss": 9.5, "usual": None, "action": "none"}
    alerts.look([spike], [{"time": 2.0, "step": 50, "loss": None}])
    alerts.close()
    got = [server.got.get_nowait() for _ in range(2)]
    assert [(each["alert"], each["step"]) for each in got] == [("spike", 40), ("nan", 50)]
    assert other.got.get_nowait()["alert"] == "nan"
    assert other.got.empty()
    server.close()
    other.close()


def test_a_stage_that_fails_is_told_and_the_error_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering()
    with (
        pytest.raises(FoldtrainError, match="no space"),
        alerting([receiver(monkeypatch, server.url, "failed")], RUN, "tokenize"),
    ):
        raise FoldtrainError("no space\nleft")
    assert server.got.get_nowait()["text"].startswith("my run: tokenize failed: no space\n")
    server.close()


def test_what_is_expected_and_an_interrupt_are_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering()
    for error in (pipeline.StageStopped("at step 3", 3), KeyboardInterrupt()):
        with (
            pytest.raises(type(error)),
            alerting([receiver(monkeypatch, server.url, "failed")], RUN, "tokenize", (pipeline.StageStopped,)),
        ):
            raise error
    server.close()
    assert server.got.empty()


def test_a_silent_receiver_holds_up_neither_the_stage_nor_another_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, server, said = Silent(), Answering(), list[str]()
    slow = receiver(monkeypatch, silent.url, "finished", timeout_seconds=600)
    monkeypatch.setenv("OTHER", server.url)
    fast = AlertConfig.model_validate({"on": ["finished"], "webhook": "env:OTHER"})
    alerts = Alerts([slow, fast], RUN, "ingest", said.append)
    alerts.tell(Found("finished", "done"))
    assert server.got.get(timeout=60)["alert"] == "finished"
    alerts.close(0.1)
    assert said == ["webhook env:MY_WEBHOOK: does not answer, so not all alerts are sent"]
    silent.close()
    server.close()


def test_nothing_of_an_address_is_recorded_or_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Answering(500)
    server.close()
    config = receiver(monkeypatch, server.url, "finished", timeout_seconds=1)
    monkeypatch.setattr("cluster.alerts.delivery._PAUSE_SECONDS", 0)
    alerts = Alerts([config], RUN, "ingest")
    alerts.tell(Found("finished", "done"))
    alerts.close()
    printed = capsys.readouterr()
    assert "finished is not delivered" in printed.err
    resolved = RunConfig.model_construct(run=RUN, alerts=(config,)).model_dump(mode="json", include={"alerts"})
    for text in (printed.out, printed.err, yaml.safe_dump(resolved)):
        assert "T0P53CR3T" not in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"on": ["failed"], "webhook": "https://hooks.example/T0P"}, "give env:NAME"),
        ({"on": ["failed"], "webhook": "env:https://hooks.example/T0P"}, "give env:NAME"),
        ({"on": ["failed"]}, "a webhook or a command"),
        ({"on": ["failed"], "webhook": "env:A", "command": ["b"]}, "a webhook or a command"),
        ({"on": ["slow"], "command": ["b"]}, "slow in `on` and samples_per_second belong together"),
        ({"on": ["failed"], "goodput": 0.5, "command": ["b"]}, "goodput in `on` and goodput belong together"),
        ({"on": ["worse"], "command": ["b"]}, "worse in `on` and metric belong together"),
        ({"on": ["finishd"], "command": ["b"]}, "finishd"),
        ({"on": [], "command": ["b"]}, "at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AlertConfig.model_validate(values)
    assert sentence in str(caught.value).replace(values.get("webhook", "\0"), "")


def test_records_of_a_training_stage_reach_the_rules_as_they_are_written(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(stage="generator", folder=str(tmp_path))
    seen: list[tuple[list[Any], list[Any]]] = []
    follower = Follower(cast("TrainJob", job), 0.0, lambda events, metrics: seen.append((list(events), list(metrics))))
    (tmp_path / "environment.json").write_text("{}")
    now = 2e9  # after this start
    for name, records in {
        "events": [
            {"time": now, "event": "start", "step": 0},
            {"time": now, "event": "first_step", "step": 1, "seconds": 1},
        ],
        "metrics": [
            {"time": now, "step": 1, "steps": 9, "skipped_steps": 0, "samples_per_second": 5.0, "eta_seconds": 1.0}
        ],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    follower.look()
    follower.look()
    assert [[event["event"] for event in events] for events, _ in seen] == [["start", "first_step"], []]
    assert [[record["step"] for record in metrics] for _, metrics in seen] == [[1], []]


def test_what_a_stage_really_writes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are those of the writer that training has, and the spike is described as training does."""
    from trainer.rollback.rollbacks import describe
    from trainer.rollback.spikes import Rollback, Spike

    server, job = Answering(), cast("TrainJob", SimpleNamespace(stage="generator", folder=str(tmp_path)))
    alerts = Alerts(
        [receiver(monkeypatch, server.url, "spike", "nan", "slow", samples_per_second=100, records=1)], RUN, "g"
    )
    follower = Follower(job, 0.0, alerts.look)
    (tmp_path / "environment.json").write_text("{}")
    records = RunDirectory(str(tmp_path), "generator", {}, 0, TrackingConfig(wandb="off"))
    record = {"time": time.time(), "step": 10, "steps": 20, "skipped_steps": 0, "eta_seconds": 1.0}
    records.first_step(1)
    records.metrics(record | {"loss": 1.0, "samples_per_second": 200.0})
    follower.look()
    records.event("spike", 15, **describe(Spike(15, 15, 9.5, 1.25, 2.0), Rollback(10, 14, 16)))
    records.metrics(record | {"step": 20, "loss": None, "samples_per_second": 50.0})
    follower.look()
    records.close()
    alerts.close()
    got = [server.got.get_nowait() for _ in range(3)]
    server.close()
    assert server.got.empty()
    assert [(each["alert"], each["step"]) for each in got] == [("spike", 15), ("nan", 20), ("slow", 20)]
    assert "the loss spiked to 9.5, usual is 1.25; it goes back to step 10" in got[0]["text"]


def test_a_stage_of_a_run_tells_when_it_is_finished_and_when_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Answering()
    alert = {"on": ["finished", "failed"], "webhook": "env:MY_WEBHOOK"}
    monkeypatch.setenv("MY_WEBHOOK", server.url)
    values = {"run": f"{tmp_path}/run", "alerts": [alert], "inputs": {"tokens": "s3://b/tokens"}}
    config = RunConfig.model_validate(values)
    outcomes = iter([5, 0, UsageError("data.source is empty")])

    def work(_: RunConfig) -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setitem(pipeline._WORK, "ingest", work)
    assert pipeline.run_stage("ingest", config)
    assert not pipeline.run_stage("ingest", config)  # is finished already
    with pytest.raises(UsageError):
        pipeline.run_stage("ingest", config)
    texts = [server.got.get_nowait()["text"].splitlines()[0] for _ in range(2)]
    server.close()
    assert server.got.empty()
    assert texts[0].startswith("run: ingest finished: done in")
    assert texts[1] == "run: ingest failed: data.source is empty"
