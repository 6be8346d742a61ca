"""How often a stage is started again: nodes get lost all the time, so what counts is whether it gets any further."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Lose = Callable[[], str]


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[int], Lose]:
    """Of a policy with so many failures, what is decided when a worker is lost."""
    # Here, as tests that start a cluster have to set Ray's environment before it is imported.
    from ray.train import WorkerGroupError
    from ray.train.v2.api.config import FailureConfig

    from cluster.training.elastic_policy import RestartsWithoutProgress

    def make(max_failures: int) -> Lose:
        one = RestartsWithoutProgress(FailureConfig(max_failures=max_failures), str(tmp_path))
        lost = WorkerGroupError("a worker is gone", {0: RuntimeError("connection closed by peer")})
        return lambda: one.make_decision(lost).value

    return make


def save_checkpoint(folder: Path, step: int) -> None:
    (folder / f"step_{step:08d}").mkdir()
    (folder / f"step_{step:08d}" / "COMPLETE").touch()


def test_restarts_that_get_no_further_come_to_an_end(policy: Callable[[int], Lose]) -> None:
    lose = policy(2)
    assert [lose(), lose(), lose()] == ["RETRY", "RETRY", "RAISE"]


def test_a_new_checkpoint_starts_the_count_again(policy: Callable[[int], Lose], tmp_path: Path) -> None:
    lose = policy(1)
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step)
        assert lose() == "RETRY"
    assert lose() == "RAISE"


def test_a_checkpoint_that_is_not_complete_is_no_progress(policy: Callable[[int], Lose], tmp_path: Path) -> None:
    lose = policy(1)
    lose()
    (tmp_path / "step_00000010").mkdir()
    assert lose() == "RAISE"


class Room:
    """What the nodes of a cluster have, and what a policy decides on it and says."""

    def __init__(self, patch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
        from ray.train.v2.api.config import ScalingConfig

        from cluster.training import elastic_policy

        self.nodes: dict[str, dict[str, float]] = {}
        self.leaving: set[str] = set()
        self.said: list[str] = []
        patch.setattr(elastic_policy, "leaving_nodes", lambda: self.leaving)
        patch.setattr(elastic_policy.Voice, "say", lambda _voice, text: self.said.append(text))
        patch.setattr(elastic_policy, "_WAIT_SECONDS", 0)
        scaling = ScalingConfig(num_workers=(sizes[0], sizes[-1]), resources_per_worker={"CPU": 2})
        self._policy = elastic_policy.UsableSizes(scaling, sizes, "a run")
        patch.setattr(self._policy, "_get_reserved_resources", lambda: self.nodes)
        patch.setattr(self._policy, "_maybe_send_resource_request", lambda: None)

    def start(self) -> int | None:
        """Workers to start with; None for none yet."""
        decision = self._policy.make_decision_for_non_running_worker_group()
        return getattr(decision, "num_workers", None)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Of a stage that can use 2, 3, 4 or 6 workers of two CPUs each."""
    return Room(monkeypatch, (2, 3, 4, 6))


def test_it_starts_with_the_largest_usable_size_that_there_is_room_for(room: Room) -> None:
    room.nodes = {"a": {"CPU": 7}, "b": {"CPU": 5}}
    assert room.start() == 4  # there is room for 3 + 2


def test_it_waits_while_there_is_room_for_too_few_and_says_so(room: Room) -> None:
    room.nodes = {"a": {"CPU": 3}}
    assert room.start() is None
    assert room.said == ["waits for room for 2 workers; there is room for 1"]
    room.nodes["b"] = {"CPU": 2}
    assert room.start() == 2


def test_a_node_that_leaves_is_no_room(room: Room) -> None:
    room.nodes = {"a": {"CPU": 6}, "b": {"CPU": 6}}
    room.leaving = {"b"}
    assert room.start() == 3


def test_a_start_that_fails_is_followed_by_smaller_ones_and_then_by_the_largest_again(room: Room) -> None:
    room.nodes = {"a": {"CPU": 12}}
    assert [room.start() for _ in range(5)] == [6, 4, 3, 2, 6]
