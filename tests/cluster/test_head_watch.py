"""A head of Ray that no longer answers is found lost after a while, and only then."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cluster.session import head_watch
from cluster.session.head_watch import HeadWatch

LONGEST_SECONDS = head_watch._PAUSE_SECONDS + head_watch._FAILURES * (
    head_watch._ANSWER_SECONDS + head_watch._AGAIN_SECONDS
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_SECONDS", "_AGAIN_SECONDS"):
        monkeypatch.setattr(head_watch, name, 0.001)
    monkeypatch.setattr(head_watch, "_AWAY_SECONDS", 0.0)


def watched(answers: list[bool]) -> tuple[bool, int]:
    """Whether the head was found lost, with these answers and then ones that say it is there; questions until then."""
    asked, done = 0, threading.Event()
    coming: Iterator[bool] = iter(answers)

    def ask() -> bool:
        nonlocal asked
        asked += 1
        answer = next(coming, None)
        if answer is None:
            done.set()
        return answer is not False

    with HeadWatch(ask, done.set) as watch:
        assert done.wait(30)
        return watch.lost, asked


def test_it_is_lost_after_questions_in_a_row_without_an_answer() -> None:
    assert watched([True, False, False, False]) == (True, 4)


def test_an_answer_begins_the_count_again() -> None:
    assert watched([False, False, True, False, False, True]) == (False, 7)


def test_it_is_not_lost_before_it_was_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_AWAY_SECONDS", 1e6)
    assert watched([False] * 20)[0] is False


def test_it_is_found_lost_within_20_seconds_even_if_each_question_waits_for_its_answer() -> None:
    assert LONGEST_SECONDS <= 20
