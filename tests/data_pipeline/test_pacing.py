"""The pace of requests: what the user allows, and what the server asks for. Time is a number here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from data_pipeline.storage.pacing import SLOWEST, Pacer, TokenBucket, pacer_of


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(pacer: Pacer, clock: Clock, requests: int, size: int = 0) -> float:
    """Seconds that so many requests take, one after the other, all of them served."""
    started = clock.now
    for _ in range(requests):
        clock.now += pacer.reserve(size)
        pacer.succeeded()
    return clock.now - started


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    assert run(Pacer(clock=clock), clock, 1000, size=10**9) == 0


def test_requests_keep_to_their_rate_after_a_first_second_at_once() -> None:
    clock = Clock()
    assert run(Pacer(requests=10, clock=clock), clock, 110) == pytest.approx(10)


def test_bytes_keep_to_their_rate() -> None:
    clock = Clock()
    assert run(Pacer(bytes_=1000, clock=clock), clock, 21, size=500) == pytest.approx(9.5)


def test_an_object_larger_than_a_second_of_bytes_passes() -> None:
    clock = Clock()
    pacer = Pacer(bytes_=1000, clock=clock)
    assert pacer.reserve(5000) == pytest.approx(4)


@given(
    rate=st.floats(0.5, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), min_size=1, max_size=50),
)
def test_a_bucket_never_lets_more_through_than_its_rate(rate: float, steps: list[tuple[float, float]]) -> None:
    bucket, now, sent = TokenBucket(rate, 0.0), 0.0, 0.0
    for idle, amount in steps:
        now += idle
        now += bucket.take(amount, now)
        sent += amount
        assert sent <= max(1.0, rate) + rate * now + 1e-6 * (1 + sent)


def slowed_at(requests: int) -> tuple[Pacer, Clock]:
    """A pacer that was slowed after so many requests in a second."""
    clock = Clock()
    pacer = Pacer(clock=clock)
    run(pacer, clock, requests)
    pacer.slowed()
    return pacer, clock


def test_slow_down_halves_the_rate_that_was_too_much() -> None:
    pacer, _ = slowed_at(1000)
    assert pacer.rate == 500


def test_answers_of_one_moment_halve_it_once() -> None:
    pacer, clock = slowed_at(1000)
    clock.now += 0.5
    pacer.slowed()
    assert pacer.rate == 500
    clock.now += 0.6
    pacer.slowed()
    assert pacer.rate == 250


def test_it_never_slows_to_a_stop() -> None:
    pacer, clock = slowed_at(1000)
    for _ in range(50):
        clock.now += 2
        pacer.slowed()
    assert pacer.rate == SLOWEST


def test_successes_bring_the_rate_back_and_then_lift_it() -> None:
    pacer, clock = slowed_at(1000)
    rates = []
    while pacer.rate is not None:
        rates.append(pacer.rate)
        run(pacer, clock, 1)
        assert clock.now < 1000
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(2000, rel=0.01)


def test_a_limit_of_the_user_is_where_recovery_ends() -> None:
    clock = Clock()
    pacer = Pacer(requests=100, clock=clock)
    pacer.slowed()
    assert pacer.rate == 50
    run(pacer, clock, 10_000)
    assert pacer.rate == 100


def test_a_limit_below_the_slowest_pace_is_kept() -> None:
    clock = Clock()
    pacer = Pacer(requests=2, clock=clock)
    pacer.slowed()
    assert pacer.rate == 2


def test_each_first_folder_of_a_bucket_has_its_own_pace_for_reads_and_for_writes() -> None:
    writes = pacer_of("s3://bucket/run/tokens/0.tar", writes=True)
    assert pacer_of("s3://bucket/run/images/1.tar", writes=True) is writes
    assert pacer_of("s3://bucket/run/tokens/0.tar", writes=False) is not writes
    assert pacer_of("s3://bucket/other/0.tar", writes=True) is not writes


def test_the_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTRAIN_STORAGE_WRITES_PER_SECOND", "7.5")
    assert pacer_of("s3://limited/a", writes=True).rate == 7.5
    assert pacer_of("s3://limited/a", writes=False).rate is None


@pytest.mark.parametrize("text", ["fast", "-1", "inf", "nan"])
def test_a_limit_that_is_no_number_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTRAIN_STORAGE_BYTES_PER_SECOND", text)
    with pytest.raises(UsageError, match=f"FOLDTRAIN_STORAGE_BYTES_PER_SECOND is '{text}'"):
        pacer_of(f"s3://wrong-{text}/a", writes=True)
