"""A dashboard that does not answer, or is none, ends a command with a sentence."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from cluster.targets import dashboard, ray
from cluster.targets.ray import RayJobs
from data_pipeline.errors import FoldtrainError
from tests.data_pipeline.stub_s3 import Answer, Request, Respond, stub_s3

NO_AGENT = Answer(500, b"No available agent to submit job, please try again later.")
UNKNOWN = Answer(404)
JOB = {"entrypoint": "true", "submission_id": "ingest-000001"}


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(dashboard, "WHOLE_SECONDS", 0.6)


def test_a_silent_dashboard_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FoldtrainError, match=f"no Ray cluster can be used at {address}: it does not answer"):
            RayJobs(address).ask()


def test_a_dashboard_that_sends_a_byte_at_a_time_is_given_up() -> None:
    with (
        stub_s3(lambda _: Answer(200, b" " * 1000, pause=0.05)) as (address, _),
        pytest.raises(FoldtrainError, match="has not answered within"),
    ):
        RayJobs(address).ask()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, b"<html>hello</html>"), "is no Ray dashboard"),
        (Answer(200, b"[]"), "is no Ray dashboard"),
        (Answer(500, b"out of\x1b[31m order"), "it answers HTTP 500: out of"),
        (Answer(404, b""), "no Ray cluster can be used"),
    ],
)
def test_what_is_no_dashboard_is_told(answer: Answer, said: str) -> None:
    with stub_s3(lambda _: answer) as (address, _), pytest.raises(FoldtrainError, match=said) as caught:
        RayJobs(address).ask()
    assert str(caught.value).isprintable()


def test_a_head_whose_agent_has_not_begun_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "_AGAIN_SECONDS", 0.0)
    submitted = iter([NO_AGENT, NO_AGENT, Answer(200, b'{"job_id": null, "submission_id": "ingest-000001"}')])
    with stub_s3(dashboard_of(lambda: next(submitted))) as (address, asked):
        assert RayJobs(address).submit(JOB) == "ingest-000001"
    assert [request.method for request in asked].count("POST") == 3


@pytest.mark.parametrize("first", ["no agent", "no answer"])
def test_a_head_that_has_the_job_after_all_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    monkeypatch.setattr(ray, "_AGAIN_SECONDS", 0.0)
    late = Answer(200, b" " * 100, pause=0.05)
    details = {"type": "SUBMISSION", "status": "PENDING", "entrypoint": "true", "submission_id": JOB["submission_id"]}
    known = Answer(200, json.dumps(details).encode())
    with stub_s3(dashboard_of(lambda: NO_AGENT if first == "no agent" else late, known)) as (address, asked):
        assert RayJobs(address).submit(JOB) == "ingest-000001"
    assert [request.method for request in asked].count("POST") == 1


def test_a_head_whose_agent_does_not_begin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "AGENT_SECONDS", 0.0)
    with (
        stub_s3(dashboard_of(lambda: NO_AGENT)) as (address, _),
        pytest.raises(FoldtrainError, match=f"at {address} starts no jobs yet"),
    ):
        RayJobs(address).submit(JOB)


def test_of_a_traceback_the_last_line_is_told() -> None:
    broken = Answer(500, b"Traceback (most recent call last):\n  File ...\nValueError: no such thing\n")
    with (
        stub_s3(dashboard_of(lambda: broken)) as (address, _),
        pytest.raises(FoldtrainError, match="HTTP 500: ValueError: no such thing"),
    ):
        RayJobs(address).submit(JOB)


def dashboard_of(submitted: Callable[[], Answer], job: Answer = UNKNOWN) -> Respond:
    """A dashboard of this Ray that answers so when a job is submitted, and so when it is asked for one."""
    version = b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "session_1"}'

    def respond(asked: Request) -> Answer:
        if asked.method == "POST":
            return submitted()
        return Answer(200, version) if "version" in asked.path else job

    return respond
