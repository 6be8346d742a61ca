"""Waiting for a job that has not spoken for itself: what its target says, and when it is over."""

from __future__ import annotations

import pytest

from cluster.jobs import watching
from cluster.jobs.records import JobRecord
from cluster.jobs.watching import Watching
from cluster.targets.target import TargetState

RECORD = JobRecord("ingest-0a1b2c", "runs/a", None, handle="7")


class Clock:
    """Time that passes when it is told to; a target that says what it is given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.state = 1000.0, TargetState("pending", "")
        patch.setattr(watching.time, "monotonic", lambda: self.now)
        patch.setattr(watching, "asked", lambda _record: self.state)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_reason_to_wait_is_said_once_and_a_new_one_again(clock: Clock) -> None:
    said = list[str]()
    watch = Watching(said.append)
    for message in ("Resources", "Resources", "Priority"):
        clock.state = TargetState("pending", message)
        assert not watch.is_over(RECORD)
        clock.now += 10
    assert said == ["pending: Resources", "pending: Priority"]


def test_of_a_job_that_runs_and_has_not_spoken_yet_there_is_nothing_to_say(clock: Clock) -> None:
    said = list[str]()
    clock.state = TargetState("running", "Job is currently running.")
    assert not Watching(said.append).is_over(RECORD)
    assert said == []


def test_a_target_is_not_asked_more_often_than_every_ten_seconds(clock: Clock) -> None:
    said = list[str]()
    watch = Watching(said.append)
    assert not watch.is_over(RECORD)
    clock.state, clock.now = TargetState("pending", "Resources"), clock.now + 9.9
    assert not watch.is_over(RECORD)
    assert said == ["pending"]


def test_a_job_that_ended_without_a_word_has_half_a_minute_for_it(clock: Clock) -> None:
    watch = Watching(lambda _: None)
    clock.state = TargetState("failed", "out of memory")
    assert not watch.is_over(RECORD)
    clock.now += 30
    assert not watch.is_over(RECORD)
    clock.now += 10
    assert watch.is_over(RECORD)
    assert watch.reason == "out of memory"
