"""Further nodes for a job that is scaled, where its scheduler gives them one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import load_config
from cluster.stages.job_nodes import adapt_nodes
from cluster.targets.config import TargetSection


class Scheduler:
    """A target that notes what is asked of it."""

    def __init__(self, nodes: int) -> None:
        self.count = nodes
        self.asked: list[int] = []

    def nodes(self, handle: str) -> int:
        assert handle == "17"
        return self.count

    def add_nodes(self, _handle: str, count: int) -> str:
        self.asked.append(count)
        return "18"

    def remove_nodes(self, _handle: str, count: int) -> list[str]:
        self.asked.append(-count)
        return ["18"]


def section(**settings: Any) -> TargetSection:
    return TargetSection.model_validate({"kind": "slurm", "nodes": "2:6", "gpus_per_node": 8} | settings)


@pytest.mark.parametrize(
    ("now", "most", "asked", "said"),
    [
        (2, 32, [2], "2 more nodes are asked for, 4 in all"),
        (2, 25, [2], "2 more nodes are asked for, 4 in all"),  # the fourth has room for seven more
        (4, 16, [-2], "2 nodes leave, 2 stay"),
        (4, 1, [-2], "2 nodes leave, 2 stay"),  # a job keeps those that it was started with
        (3, 24, [], "the job has the 3 nodes that it needs"),
        (2, 64, [4], "4 more nodes are asked for, 6 in all (room for 48: its target allows a job 6)"),
    ],
)
def test_as_many_nodes_are_asked_for_as_the_most_workers_need(
    small_config: Path, now: int, most: int, asked: list[int], said: str
) -> None:
    scheduler = Scheduler(now)
    config = load_config(small_config, ["cluster.gpus_per_worker=1"])
    assert adapt_nodes(scheduler, section(), config, "17", most) == said
    assert scheduler.asked == asked


def test_on_cpus_a_node_has_room_for_what_its_cpus_allow(small_config: Path) -> None:
    scheduler = Scheduler(2)
    config = load_config(small_config, ["cluster.cpus_per_worker=4"])
    adapt_nodes(scheduler, section(cpus_per_node=16), config, "17", 12)
    assert scheduler.asked == [1]


def test_without_a_word_of_what_a_node_has_nothing_is_asked_for_and_the_key_is_named(small_config: Path) -> None:
    scheduler = Scheduler(2)
    said = adapt_nodes(scheduler, section(), load_config(small_config, []), "17", 12)
    assert "cpus_per_node" in said
    assert scheduler.asked == []


def test_a_target_with_an_autoscaler_of_its_own_is_asked_for_nothing(small_config: Path) -> None:
    assert adapt_nodes(object(), section(), load_config(small_config, []), "17", 12) == ""
