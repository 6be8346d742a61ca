"""With how many workers a stage starts, and how often: nodes get lost all the time, so what counts is progress."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.training import elastic_policy
from cluster.training.elastic_policy import Restarts, Room, UsableSizes


def save_checkpoint(folder: Path, step: int) -> None:
    (folder / f"step_{step:08d}").mkdir()
    (folder / f"step_{step:08d}" / "COMPLETE").touch()


def test_restarts_that_get_no_further_come_to_an_end(tmp_path: Path) -> None:
    restarts = Restarts(2, str(tmp_path))
    assert [restarts.may_restart() for _ in range(3)] == [True, True, False]


def test_a_new_checkpoint_starts_the_count_again(tmp_path: Path) -> None:
    restarts = Restarts(1, str(tmp_path))
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step)
        assert restarts.may_restart()
    assert not restarts.may_restart()


def test_a_checkpoint_that_is_not_complete_is_no_progress(tmp_path: Path) -> None:
    restarts = Restarts(1, str(tmp_path))
    restarts.may_restart()
    (tmp_path / "step_00000010").mkdir()
    assert not restarts.may_restart()


def test_without_a_limit_it_is_started_again_and_again(tmp_path: Path) -> None:
    restarts = Restarts(-1, str(tmp_path))
    assert all(restarts.may_restart() for _ in range(100))


class Nodes:
    """A cluster whose nodes are those of a test."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, float]] = {}
        self.busy: dict[str, float] = {}
        self.gone: set[str] = set()

    def free(self) -> dict[str, dict[str, float]]:
        return {node: has | {"CPU": has["CPU"] - self.busy.get(node, 0)} for node, has in self.nodes.items()}

    def whole(self) -> dict[str, dict[str, float]]:
        return self.nodes

    def leaving(self) -> set[str]:
        return self.gone


class Sizes:
    """Of a stage that can use 2, 3, 4 or 6 workers of two CPUs each, what is decided and said."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.now = 0.0
        self.room = Nodes()
        patch.setattr(elastic_policy.time, "monotonic", lambda: self.now)
        self.choice = UsableSizes((2, 3, 4, 6), Room({"CPU": 2}, self.room), self.said.append)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    return Sizes(monkeypatch)


def test_it_starts_with_the_largest_usable_size_that_there_is_room_for(sizes: Sizes) -> None:
    sizes.room.nodes = {"a": {"CPU": 7}, "b": {"CPU": 5}}
    assert sizes.choice.to_start() == 4  # there is room for 3 + 2


def test_with_room_for_too_few_a_start_with_the_fewest_waits_and_that_is_said(sizes: Sizes) -> None:
    sizes.room.nodes = {"a": {"CPU": 3}}
    assert [sizes.choice.to_start() for _ in range(2)] == [2, 2]
    assert set(sizes.said) == {"waits for room for 2 workers; there is room for 1"}
    sizes.room.nodes["b"] = {"CPU": 6}
    assert sizes.choice.to_start() == 4


def test_a_node_that_leaves_is_no_room(sizes: Sizes) -> None:
    sizes.room.nodes = {"a": {"CPU": 6}, "b": {"CPU": 6}}
    sizes.room.gone = {"b"}
    assert sizes.choice.to_start() == 3


def test_what_a_stage_has_just_released_is_waited_for_and_what_others_use_is_not(sizes: Sizes) -> None:
    sizes.room.nodes = {"a": {"CPU": 6}, "b": {"CPU": 6}}
    sizes.room.busy = {"b": 6}
    assert sizes.choice.to_start() is None
    sizes.now = 60.0
    assert sizes.choice.to_start() == 3
    assert sizes.said == []


def test_a_start_that_fails_is_followed_by_smaller_ones_and_then_by_the_largest_again(sizes: Sizes) -> None:
    sizes.room.nodes = {"a": {"CPU": 12}}
    assert [sizes.choice.to_start() for _ in range(5)] == [6, 4, 3, 2, 6]
    sizes.choice.came_up()
    assert sizes.choice.to_start() == 6


@pytest.mark.parametrize(
    ("needed", "has", "workers"),
    [
        ({"CPU": 0.1}, {"CPU": 0.3}, 3),  # 0.3 / 0.1 is less than 3
        ({"CPU": 2, "GPU": 1}, {"CPU": 16, "GPU": 3}, 3),
        ({"CPU": 2, "GPU": 1}, {"CPU": 16}, 0),
    ],
)
def test_a_node_has_room_for_what_its_scarcest_resource_allows(
    needed: dict[str, float], has: dict[str, float], workers: int
) -> None:
    cluster = Nodes()
    cluster.nodes = {"a": has}
    assert Room(needed, cluster).whole() == workers
