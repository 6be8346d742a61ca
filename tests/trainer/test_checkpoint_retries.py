"""A write of a checkpoint is tried until it succeeds, as long as storage is waited for, and no longer."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from data_pipeline.errors import DiskError, FoldtrainError, StorageAwayError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.storage.retries import DEFAULT_PATIENCE, PATIENCE_VARIABLE
from trainer.checkpoints import writer
from trainer.checkpoints.commits import TakenError
from trainer.checkpoints.writer import Persistence


class Clock:
    """The time of a writer, which passes only while it waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, timeout: float) -> bool:
        self.now += timeout
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(writer.time, "monotonic", lambda: made.now)
    return made


def persistent(clock: Clock, seconds: float | None = None) -> Persistence:
    made = Persistence(seconds)
    made._hurried.wait = clock.wait  # type: ignore[method-assign,assignment]
    return made


def failing(times: list[float], clock: Clock, error: Exception, until: float = float("inf")) -> Callable[[], None]:
    """Work that fails up to a moment."""

    def work() -> None:
        times.append(clock.now)
        if clock.now < until:
            raise error

    return work


@pytest.mark.parametrize("error", [DiskError(28, "full"), PermissionError(13, "no"), FoldtrainError("access denied")])
def test_what_is_mended_in_time_never_failed(clock: Clock, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    times: list[float] = []
    with caplog.at_level(logging.WARNING):
        persistent(clock).run("step_00000010", failing(times, clock, error, until=200))
    assert 200 <= times[-1] <= DEFAULT_PATIENCE
    assert caplog.text.count("trying again") == 1


def test_the_pauses_grow_and_the_last_try_is_within_the_patience(clock: Clock) -> None:
    times: list[float] = []
    with pytest.raises(FoldtrainError, match=r"PermissionError: .*\(tried \d+ times in \d+ s\)"):
        persistent(clock, 300).run("step_00000010", failing(times, clock, PermissionError(13, "no")))
    assert 250 < times[-1] <= 300
    assert times[3] < 2
    assert 300 / 10 < len(times) < 200


def test_the_patience_is_that_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Persistence().seconds == DEFAULT_PATIENCE
    monkeypatch.setenv(PATIENCE_VARIABLE, "7")
    assert Persistence().seconds == 7


@pytest.mark.parametrize(
    "error", [LeaseLostError("another driver"), TakenError("another process"), KeyError("a mistake of ours")]
)
def test_what_does_not_pass_is_tried_once(clock: Clock, error: Exception) -> None:
    times: list[float] = []
    with pytest.raises(type(error)) as raised:
        persistent(clock).run("step_00000010", failing(times, clock, error))
    assert raised.value is error
    assert len(times) == 1


def test_storage_that_was_waited_for_already_is_not_waited_for_again(clock: Clock) -> None:
    def away() -> None:
        clock.now += 300
        raise StorageAwayError("no answer for 300 s")

    with pytest.raises(StorageAwayError):
        persistent(clock).run("step_00000010", away)
    assert clock.now == 300


def test_who_ends_the_process_need_not_wait_for_it() -> None:
    made, times = Persistence(), list[int]()
    made.hurry()

    def work() -> None:
        times.append(1)
        raise PermissionError(13, "no")

    with pytest.raises(PermissionError):
        made.run("step_00000010", work)
    assert times == [1]
