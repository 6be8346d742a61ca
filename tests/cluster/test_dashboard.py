"""A dashboard that does not answer, or is none, ends a command with a sentence."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.targets import dashboard
from cluster.targets.ray_old import RayTarget
from data_pipeline.errors import FoldtrainError
from tests.data_pipeline.stub_s3 import Answer, stub_s3


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(dashboard, "WHOLE_SECONDS", 0.6)
    monkeypatch.setattr(dashboard, "SILENT_SECONDS", 0.01)


def test_a_silent_dashboard_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FoldtrainError, match=f"no Ray cluster can be used at {address}: it does not answer"):
            RayTarget(address).jobs()


def test_a_dashboard_that_sends_a_byte_at_a_time_is_given_up() -> None:
    with (
        stub_s3(lambda _: Answer(200, b" " * 1000, pause=0.05)) as (address, _),
        pytest.raises(FoldtrainError, match="has not answered within"),
    ):
        RayTarget(address).jobs()


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
        RayTarget(address).jobs()
    assert str(caught.value).isprintable()


class _Silent:
    """Follows the logs of a job that says one word, and then nothing."""

    def __init__(self, status: str | Exception) -> None:
        self.status = status

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield f"{job_id} began\n"
        await asyncio.Event().wait()

    def get_job_info(self, job_id: str) -> Any:
        if isinstance(self.status, Exception):
            raise self.status
        return SimpleNamespace(status=SimpleNamespace(value=self.status))


def test_following_logs_ends_with_the_job_though_the_dashboard_falls_silent() -> None:
    printed: list[str] = []
    asyncio.run(dashboard.tail_logs(_Silent("SUCCEEDED"), "job", printed.append))
    assert printed == ["job began\n"]


def test_following_logs_ends_when_the_dashboard_is_gone() -> None:
    with pytest.raises(FoldtrainError, match="gone"):
        asyncio.run(dashboard.tail_logs(_Silent(FoldtrainError("gone")), "job", print))
