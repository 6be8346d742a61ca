"""docs/clusters/ray-transcript.md happens as it stands there: on three raylets, with the run on a real S3 server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.drills.bucket import Bucket
from cluster.drills.ray_nodes import RayNode, RayNodes
from cluster.drills.s3_server import S3Server
from tests.cluster.stories.storyline import PACED, Story, same_samples

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("elastic")]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "clusters" / "ray-transcript.md"
RUN, UNBROKEN = "s3://lab/smoke", "s3://lab/unbroken"


class Lab:
    """Three Ray nodes of one CPU each, and a bucket.

    Args:
        server: that is up.
        nodes: that are up.
    """

    def __init__(self, server: S3Server, nodes: RayNodes) -> None:
        self.bucket, self.nodes = Bucket(server), nodes
        self.turns = {
            "a node is lost": lambda: nodes.others[-1].lose(),
            "another node takes its place": lambda: nodes.replace(nodes.others[-1]),
            "Ray is told that a node will leave": lambda: nodes.drain(self._busy_node()),
        }

    def processes(self) -> list[psutil.Process]:
        """All of its nodes."""
        return [process for node in (self.nodes.head, *self.nodes.others) for process in node.family()]

    def _busy_node(self) -> RayNode:
        """One with a worker, but the head, on which the job's own process is."""
        return next(node for node in self.nodes.others if node.is_up and node.workers("TrainWorker"))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with ExitStack() as held:
        server = held.enter_context(S3Server(tmp_path / "store", bucket="lab"))
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("RAY_ADDRESS", "")
        nodes = held.enter_context(RayNodes(variables=server.environment() | PACED, jobs=True))
        nodes.add(), nodes.add()
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        target = {"extends": "package:cluster/ray.yaml", "address": nodes.dashboard, "python": sys.executable}
        (tmp_path / "lab.yaml").write_text(yaml.safe_dump(target))
        yield Lab(server, nodes)


def test_the_run_is_scaled_loses_nodes_is_stopped_and_ends_as_an_unbroken_one(lab: Lab, tmp_path: Path) -> None:
    story = Story(PAGE, RUN, tmp_path, os.environ, lab.processes, lab.turns)
    story.tell()
    story.undisturbed(UNBROKEN, "lab.yaml")
    same_samples(lab.bucket, "smoke", "unbroken")
