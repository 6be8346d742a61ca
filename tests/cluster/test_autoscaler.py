"""Ray's autoscaler brings nodes for the workers that are asked for, and takes them away once they are idle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from cluster.drills.drilled_training import write_training
from cluster.drills.fake_autoscaler import autoscaling, is_added, node_id
from cluster.drills.ray_nodes import RayNodes
from cluster.drills.victims import PATIENCE, run, standing_still, started, wait_for
from data_pipeline.shards.token_dataset import TokenShards
from tests.cluster.drills import lines
from tests.cluster.random_run import write_run
from tests.data_pipeline.small_data import write_photos

STARTS = {"start", "resume"}
PAUSE = 0.5
"""Seconds between two looks at all processes of this machine."""
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("autoscaler")]


def test_a_raylet_of_the_autoscaler_is_told_its_agents_ports_and_is_on_loopback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._private import parameter
    from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

    from cluster.drills.fake_nodes import LoopbackNodes

    made: list[dict[str, Any]] = []

    def create(*_: object) -> None:
        options = parameter.RayParams(num_cpus=1, dashboard_agent_listen_port=0)
        made.append(vars(options))

    monkeypatch.setattr(FakeMultiNodeProvider, "_create_node_with_resources_and_labels", create)
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    (tmp_path / "session_latest").mkdir()
    nodes = LoopbackNodes(autoscaling("127.0.0.1:1", 2, str(tmp_path))["provider"], "drill")
    nodes._create_node_with_resources_and_labels({}, {}, 1, {}, {})
    (options,) = made
    assert (options["num_cpus"], options["node_ip_address"]) == (1, "127.0.0.1")
    names = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    ports = [options[name] for name in names]
    assert len({*ports, 0}) == 5
    (word,) = (tmp_path / "session_latest").iterdir()
    assert word.read_text() == str(ports[0])
    assert is_added(word.name.removeprefix("dashboard_agent_listen_port_"))
    assert vars(parameter.RayParams())["metrics_agent_port"] is None


@pytest.mark.parametrize(("number", "added"), [(0, False), (1, True), (12, True)])
def test_the_head_is_no_node_that_was_added(number: int, added: bool) -> None:
    assert is_added(node_id(number)) is added
    assert len(node_id(number)) == 56
    assert not is_added("f" + 55 * "0")


def test_nodes_come_for_the_workers_of_tokenize_and_go_when_it_is_done(small_config: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    overrides = [f"data.source.path={write_photos(tmp_path / 'photos')}", f"run={folder}", "data.shard_samples=7"]
    overrides += ["tokens.shard_samples=2"]
    with RayNodes(cpus=0, most=2) as nodes:
        run("ingest", str(small_config), *overrides)
        options = (f"cluster.address={nodes.address}", "tokens.min_workers=2", "tokens.max_workers=2")
        assert nodes.added == set()
        with started("tokenize", str(small_config), *overrides, *options, environment=nodes.environment) as command:
            first = wait_for("a worker", lambda: nodes.head.workers("ShardWorker"), command, PAUSE)[0]
            first.suspend()  # it is not to make all shards before the other is there
            wait_for("two nodes", lambda: len(nodes.added) == 2, command, PAUSE)
            wait_for("two workers", lambda: len(nodes.head.workers("ShardWorker")) == 2, command, PAUSE)
            first.resume()
            assert command.wait() == 0, command.output()
        wait_until_none_is_left(nodes)
    assert TokenShards(str(folder / "tokens")).count == 20


def test_nodes_come_and_go_for_the_workers_of_a_training(tmp_path: Path) -> None:
    config = write_training(tmp_path, 0)
    folder = tmp_path / "run"
    shutil.copytree(tmp_path / "tokenizer", folder / "tokenizer/export")
    with RayNodes(cpus=0, most=2) as nodes:
        command = ["train-generator", str(config), f"run={folder}", f"cluster.address={nodes.address}"]
        command += ["cluster.workers=1:2", "cluster.grow_seconds=1", "generator.model.drop_path=0"]
        assert nodes.added == set()
        with started(*command, environment=nodes.environment) as training:

            def trains(starts: int) -> bool:
                """Whether that start of it has done a step."""
                begun = [each for each in lines(folder / "generator/events.jsonl") if each["event"] in STARTS]
                steps = lines(folder / "generator/metrics.jsonl")
                return len(begun) == starts and bool(steps) and steps[-1]["step"] > begun[-1]["step"]

            def room(workers: int) -> bool:
                return f"room for {workers} worker" in training.output()

            wait_for("a step", lambda: trains(1), training, PAUSE)
            with standing_still(nodes.head.workers("TrainWorker")):
                run("scale", str(folder), "--workers", "2")
                wait_for("two nodes", lambda: len(nodes.added) == 2, training, PAUSE)
                wait_for("a word of them", lambda: room(2), training, PAUSE)
            wait_for("a step of two workers", lambda: trains(2), training, PAUSE)
            with standing_still(nodes.head.workers("TrainWorker")):
                run("scale", str(folder), "--workers", "1")
                wait_for("a word of it", lambda: "1 of 2 workers leaves" in training.output(), training, PAUSE)
            wait_for("a step of one worker", lambda: trains(3), training, PAUSE)
            with standing_still(nodes.head.workers("TrainWorker")):
                wait_for("a node to go", lambda: len(nodes.added) == 1, training, PAUSE)
            assert training.wait() == 0, training.output()
        wait_until_none_is_left(nodes)
    starts = [each for each in lines(folder / "generator/events.jsonl") if each["event"] in STARTS]
    assert [each["workers"] for each in starts] == [1, 2, 1]
    audit = json.loads(run("ledger", "audit", str(folder / "generator"), "--json"))
    assert audit["problems"] == []
    assert [start["world"] for start in audit["starts"]] == [1, 2, 1]


def wait_until_none_is_left(nodes: RayNodes) -> None:
    """Of the nodes that the autoscaler has added."""
    looks = Retrying(retry=retry_if_result(bool), stop=stop_after_delay(PATIENCE), wait=wait_fixed(PAUSE))
    looks(lambda: nodes.added)
