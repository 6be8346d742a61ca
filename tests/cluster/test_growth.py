"""Growth that costs more than it gains before the end is not done: arithmetic on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.training import growing
from cluster.training.growing import Growing
from cluster.training.growth import Growth, Pace, read_pace
from cluster.training.worker_group import Needs


def test_cost_and_gain_are_those_on_paper() -> None:
    growth = Growth(workers=2, larger=4, pace=Pace(steps_left=100, step_seconds=0.5, restart_seconds=20))
    assert growth.saved_seconds == 25  # 100 steps of 0.5 s take 50 s with two workers, and 25 s with four
    assert growth.cost == 80  # four workers stand still for 20 s
    assert growth.gain == 100
    assert growth.pays


@pytest.mark.parametrize(
    ("steps_left", "pays"),
    [(81, True), (80, False), (79, False), (0, False)],  # with four workers 80 steps take 20 s less than with two
)
def test_what_would_save_no_more_than_a_restart_takes_does_not_pay(steps_left: int, pays: bool) -> None:
    assert Growth(2, 4, Pace(steps_left, 0.5, 20.0)).pays is pays


def test_by_one_worker_of_many_less_is_gained_than_by_doubling() -> None:
    pace = Pace(steps_left=100, step_seconds=1.0, restart_seconds=10.0)
    assert Growth(8, 16, pace).saved_seconds == 50
    assert Growth(15, 16, pace).saved_seconds == 6.25
    assert (Growth(8, 16, pace).pays, Growth(15, 16, pace).pays) == (True, False)


def test_what_is_declined_says_both_sides() -> None:
    growth = Growth(1, 2, Pace(10, 1.0, 60.0))
    assert str(growth) == (
        "stays with 1 worker: a restart with 2 takes 1m 00s (120 worker-seconds), and the 10 steps left would end "
        "only 5s earlier (10)"
    )
    assert growth.facts()["cost_worker_seconds"] == 120
    assert growth.facts()["gain_worker_seconds"] == 10
    assert (growth.facts()["steps_left"], growth.facts()["restart_seconds"]) == (10, 60)


# ------------------------------------------------------------------------------------------------------- what is known


def write(folder: Path, name: str, *records: dict[str, Any]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


STEP = {"step": 40, "steps": 100, "step_seconds": 0.25}


def test_the_pace_is_that_of_the_newest_record_and_of_the_last_restart(tmp_path: Path) -> None:
    write(tmp_path, "metrics", STEP | {"step": 30, "step_seconds": 9.0}, STEP)
    write(
        tmp_path,
        "events",
        {"event": "first_step", "step": 1, "time": 1.0, "seconds": 30.0},
        {"event": "restart", "step": 10, "time": 2.0, "seconds": 14.0},
        {"event": "restart", "step": 20, "time": 3.0, "seconds": 12.0},
    )
    assert read_pace(str(tmp_path)) == Pace(steps_left=60, step_seconds=0.25, restart_seconds=12.0)


def test_before_the_first_restart_the_start_says_how_long_one_takes(tmp_path: Path) -> None:
    write(tmp_path, "metrics", STEP)
    write(tmp_path, "events", {"event": "first_step", "step": 1, "time": 1.0, "seconds": 30.0})
    assert read_pace(str(tmp_path)) == Pace(60, 0.25, 30.0)


def test_without_records_nothing_is_known(tmp_path: Path) -> None:
    assert read_pace(str(tmp_path)) is None
    write(tmp_path, "metrics", {"step": 40, "loss": 1.0}, {"step": "x"})
    assert read_pace(str(tmp_path)) is None
    write(tmp_path, "metrics", STEP)
    assert read_pace(str(tmp_path)) is None  # nor how long a start takes


# ------------------------------------------------------------------------------------------------------ room for more


class Cluster:
    """Room that is free, and room that is asked for and kept."""

    def __init__(self) -> None:
        self.is_free, self.kept = 0, 0
        self.asked: list[int] = []

    def free(self) -> int:
        return self.is_free

    def ask(self, count: int) -> None:
        self.asked.append(count)

    def there(self) -> int:
        return self.kept

    def withdraw(self) -> None:
        self.asked.append(0)


class Grown:
    """What is decided, and what is declined."""

    def __init__(self, pace: Pace | None) -> None:
        self.cluster, self.declined = Cluster(), list[Growth]()
        room: Any = self.cluster
        self.growing = Growing(room, self.cluster, lambda: pace, self.declined.append)


PAYS, IN_VAIN = Pace(10_000, 1.0, 10.0), Pace(5, 1.0, 10.0)


def test_room_is_asked_for_up_to_the_largest_size_and_taken_once_a_usable_size_fits() -> None:
    grown = Grown(PAYS)
    assert grown.growing.larger((2, 4, 6), 2) is None
    grown.cluster.kept = 1
    assert grown.growing.larger((2, 4, 6), 2) is None  # three are no usable size
    grown.cluster.is_free = 2
    assert grown.growing.larger((2, 4, 6), 2) == 4  # there is room for five
    assert grown.cluster.asked == [4, 4, 4]
    grown.growing.release()
    assert grown.cluster.asked[-1] == 0


def test_room_that_is_placed_as_soon_as_it_is_asked_for_is_not_counted_twice() -> None:
    grown = Grown(PAYS)
    grown.cluster.is_free = 1

    def ask(_count: int) -> None:
        grown.cluster.kept = 1  # what is free is told some time later

    grown.cluster.ask = ask  # type: ignore[method-assign]
    assert grown.growing.larger((2, 4), 2) is None  # there is room for three


def test_what_does_not_pay_is_neither_asked_for_nor_taken_and_said_once() -> None:
    grown = Grown(IN_VAIN)
    grown.cluster.is_free = 9
    assert [grown.growing.larger((2, 4), 2) for _ in range(3)] == [None] * 3
    assert set(grown.cluster.asked) == {0}
    assert grown.declined == [Growth(2, 4, IN_VAIN)]


def test_the_fewest_workers_are_made_up_for_even_if_it_does_not_pay() -> None:
    grown = Grown(IN_VAIN)
    grown.cluster.is_free = 9
    assert grown.growing.larger((3, 4), 2) == 4
    assert grown.declined == []


def test_before_anything_is_known_room_is_taken() -> None:
    grown = Grown(None)
    grown.cluster.is_free = 1
    assert grown.growing.larger((1, 2), 1) == 2


def test_at_the_largest_size_nothing_is_asked_for_or_declined() -> None:
    grown = Grown(IN_VAIN)
    assert grown.growing.larger((1, 2), 2) is None
    assert (grown.cluster.asked, grown.declined) == ([0], [])


def test_as_many_reservations_are_kept_as_are_asked_for_and_all_handed_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    removed: list[int] = []

    def ask(_needs: Needs, size: int) -> int:
        assert size == 1
        made.append(len(made))
        return made[-1]

    monkeypatch.setattr(growing, "ask_for_room", ask)
    monkeypatch.setattr(growing, "remove_room", removed.append)
    monkeypatch.setattr(growing, "is_room", lambda reservation: reservation != 1)
    room = growing.Reservations(Needs(1, 0))
    room.ask(3)
    assert (made, room.there()) == ([0, 1, 2], 2)
    room.ask(2)
    assert removed == [2]
    room.ask(2)
    room.withdraw()
    assert sorted(removed) == made == [0, 1, 2]
    room.ask(1000)
    assert len(made) == 3 + 64  # no more at once
