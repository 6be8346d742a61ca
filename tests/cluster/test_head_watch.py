"""A head of Ray where nobody listens is found lost after a while, one that says nothing later, and only then."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cluster.session import head_watch
from cluster.session.head_watch import HeadWatch
from cluster.session.ray_address import Head

A, S, N = Head.ANSWERS, Head.SILENT, Head.AWAY
LONGEST_SECONDS = head_watch._PAUSE_SECONDS + head_watch._FAILURES * (
    head_watch._ANSWER_SECONDS + head_watch._AGAIN_SECONDS
)
LONGEST_SILENT_SECONDS = (
    head_watch._PAUSE_SECONDS + head_watch._SILENT_SECONDS + head_watch._ANSWER_SECONDS + head_watch._AGAIN_SECONDS
)
RAY_ENDS_WORKERS_SECONDS, CHECKPOINT_SECONDS = 60.0, 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_SECONDS", "_AGAIN_SECONDS"):
        monkeypatch.setattr(head_watch, name, 0.001)
    monkeypatch.setattr(head_watch, "_AWAY_SECONDS", 0.0)
    monkeypatch.setattr(head_watch, "_SILENT_SECONDS", 1e6)


def watched(answers: list[Head]) -> tuple[bool, int]:
    """Whether the head was found lost, with these answers and then ones that say it is there; questions until then."""
    asked, done = 0, threading.Event()
    coming: Iterator[Head] = iter(answers)

    def ask() -> Head:
        nonlocal asked
        asked += not done.is_set()  # it may be asked again before the watch ends
        answer = next(coming, None)
        if answer is None:
            done.set()
        return answer or Head.ANSWERS

    with HeadWatch(ask, done.set) as watch:
        assert done.wait(30)
        return watch.lost, asked


def test_it_is_lost_after_questions_in_a_row_to_which_nobody_listened() -> None:
    assert watched([A, N, N, N]) == (True, 4)


def test_an_answer_begins_the_count_again() -> None:
    assert watched([N, N, A, N, N, A]) == (False, 7)


def test_one_that_listens_is_not_lost_for_a_few_answers() -> None:
    assert watched([S] * 20) == (False, 21)


def test_one_that_was_busy_and_then_is_gone_is_lost_at_once() -> None:
    assert watched([S, S, N, N, S, N, N, N]) == (True, 8)


def test_it_is_not_lost_before_it_was_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_AWAY_SECONDS", 1e6)
    assert watched([N] * 20)[0] is False


def test_one_that_never_answers_again_is_lost_though_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_SILENT_SECONDS", 0.0)
    assert watched([A, S]) == (True, 2)


def test_it_is_found_lost_within_20_seconds_even_if_each_question_waits_for_its_answer() -> None:
    assert LONGEST_SECONDS <= 20


def test_one_that_listens_is_found_lost_while_there_is_time_for_a_checkpoint() -> None:
    assert LONGEST_SILENT_SECONDS + CHECKPOINT_SECONDS <= RAY_ENDS_WORKERS_SECONDS
