"""A dashboard that does not answer, or is none, ends a command with a sentence."""

from __future__ import annotations

import socket

import pytest

from cluster.targets import dashboard
from cluster.targets.ray import RayJobs
from data_pipeline.errors import FoldtrainError
from tests.data_pipeline.stub_s3 import Answer, stub_s3


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
