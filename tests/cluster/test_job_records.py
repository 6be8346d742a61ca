"""What a run has on record of its jobs, and what a reader makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import control, places, records
from cluster.jobs.records import JobRecord, State, Submitted
from data_pipeline.errors import UsageError

ID = "ingest-0a1b2c"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def submit(run: str, job_id: str = ID, submitted: float = 100.0) -> None:
    job = Submitted(
        id=job_id,
        stages=("ingest", "tokenize"),
        run=run,
        target="here",
        target_config={"kind": "local", "grace_seconds": 7},
        submitted=submitted,
        who="me@here",
    )
    records.write_job(job, "run: x\n")


def put(run: str, **values: Any) -> JobRecord:
    fields: dict[str, Any] = {"status": "running", "started": 100.0, "heartbeat": 200.0}
    records.write_state(run, ID, State(**fields | values))
    return records.read_job(run, ID)


def test_a_job_is_pending_until_it_says_that_it_runs(run: str) -> None:
    submit(run)
    assert records.read_job(run, ID).status == "pending"
    assert put(run).status_at(200.0) == "running"


def test_a_job_that_gives_no_sign_of_life_for_90_seconds_is_lost(run: str) -> None:
    submit(run)
    record = put(run)
    assert [record.status_at(290.0), record.status_at(290.5)] == ["running", "lost"]


@pytest.mark.parametrize("status", ["succeeded", "failed", "stopped", "preempted"])
def test_a_job_that_has_ended_stays_so_however_long_ago_it_was(run: str, status: str) -> None:
    submit(run)
    assert put(run, status=status, ended=200.0).status_at(1e9) == status


def test_a_job_that_was_stopped_before_it_began_is_stopped(run: str) -> None:
    submit(run)
    records.request_stop(run, ID)
    assert records.read_job(run, ID).status == "stopped"


def test_a_preempted_job_that_was_asked_to_stop_does_not_go_on(run: str) -> None:
    submit(run)
    records.request_stop(run, ID)
    assert put(run, status="preempted").status == "stopped"


def test_a_request_to_end_at_once_is_not_taken_back(run: str) -> None:
    submit(run)
    asked = []
    for now in (False, True, False):
        records.request_stop(run, ID, now)
        stop = records.read_job(run, ID).stop
        assert stop is not None
        asked.append(stop.stop)
    assert asked == ["checkpoint", "now", "now"]


def test_only_a_job_that_there_is_can_be_stopped(run: str) -> None:
    with pytest.raises(UsageError, match=f"{run} has no job {ID}"):
        records.request_stop(run, ID)
    assert not Path(run).exists()


def test_jobs_are_listed_the_oldest_first_and_what_is_no_job_is_left_out(run: str) -> None:
    for number, job_id in enumerate(["run-00000c", "run-00000a", "run-00000b"]):
        submit(run, job_id, float(number))
    Path(run, "jobs", "notes").mkdir()
    assert [record.id for record in records.list_jobs(run)] == ["run-00000c", "run-00000a", "run-00000b"]
    assert records.newest_job(run).id == "run-00000b"


def test_a_run_without_jobs_says_how_one_is_submitted(run: str) -> None:
    assert records.list_jobs(run) == []
    with pytest.raises(UsageError, match="has no jobs"):
        records.newest_job(run)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("state.json", "{", "is not valid JSON"),
        ("state.json", '{"status": "asleep", "started": 1}', "status"),
        ("state.json", '{"status": "running", "started": NaN}', "NaN is no JSON number"),
        ("job.json", '{"version": 2}', "version"),
        ("job.json", "[]", "is no record of a job"),
        ("control.json", '{"version": 1, "stop": "maybe"}', "is no request to a job"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file_and_hides_no_other_job(
    run: str, name: str, text: str, said: str
) -> None:
    submit(run)
    submit(run, "run-00000a")
    file = Path(run, "jobs", ID, name)
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        records.read_job(run, ID)
    assert str(file) in str(caught.value)
    listed = {record.id: record for record in records.list_jobs(run)}
    assert (str(file) in listed[ID].problem, listed["run-00000a"].problem) == (True, "")


@pytest.mark.parametrize("job_id", ["../../etc", "ingest-0a1b2c/../x", "Ingest-0a1b2c", "ingest", "", "-0a1b2c"])
def test_what_is_no_id_never_becomes_a_path(run: str, job_id: str) -> None:
    with pytest.raises(UsageError, match="is no id of a job"):
        records.read_job(run, job_id)


def test_ids_are_fit_for_schedulers_and_tell_what_runs() -> None:
    assert places.new_id(["train-generator"]).startswith("generator-")
    assert places.new_id(["ingest", "tokenize"]).startswith("run-")
    assert places.is_id(places.new_id(["train-tokenizer"]))


def test_a_job_is_named_by_its_id_where_it_was_submitted_and_by_its_run_everywhere(run: str) -> None:
    submit(run)
    submit(run, "run-00000a", 200.0)
    places.remember(run, ID)
    assert records.find_job(ID).id == ID
    assert records.find_job(run).id == "run-00000a"
    assert records.find_job(run, ID).id == ID
    with pytest.raises(UsageError, match=r"no job run-00000a was submitted on this machine.*--job run-00000a"):
        records.find_job("run-00000a")


def test_only_the_newest_thousand_jobs_are_remembered(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOST_REMEMBERED", 2)
    for job_id in ("run-00000a", "run-00000b", "run-00000c"):
        places.remember(run, job_id)
    assert len(places.remembered()) == 2


def test_a_request_to_stop_says_who_asked(run: str) -> None:
    submit(run)
    records.request_stop(run, ID)
    assert json.loads(Path(run, "jobs", ID, "control.json").read_text())["by"] == control.me()
