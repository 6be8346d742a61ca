"""docs/clusters/slurm-transcript.md happens as it stands there: on a real Slurm of three nodes, with an S3 server."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.drills.bucket import Bucket
from cluster.drills.s3_server import S3Server
from tests.cluster.slurm.slurm_cluster import SlurmCluster, why_not
from tests.cluster.stories.storyline import PACED, Story, same_samples

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("slurm")]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "clusters" / "slurm-transcript.md"
RUN, UNBROKEN = "s3://lab/smoke", "s3://lab/unbroken"
_PATIENCE = 300.0


class Lab:
    """A Slurm of three nodes, and a bucket.

    Args:
        server: that is up.
        slurm: that is up.
    """

    def __init__(self, server: S3Server, slurm: SlurmCluster) -> None:
        self.bucket, self._slurm = Bucket(server), slurm
        self._lost = ""
        self.turns = {
            "a node is lost": self._lose,
            "it is switched on again": self._switch_on,
            "Slurm preempts the job": lambda: slurm.run("scancel", "--batch", "--signal=USR1", self._job()),
            "Slurm has nodes for it again": self._begin_again,
        }

    def processes(self) -> list[psutil.Process]:
        """All of its jobs."""
        found: list[psutil.Process] = []
        for step in self._slurm.steps():
            with suppress(psutil.NoSuchProcess):
                found += step.children(recursive=True)
        return found

    def _queue(self, *options: str) -> list[str]:
        return self._slurm.run("squeue", "--noheader", "--array", *options).split()

    def _job(self) -> str:
        """The number of the one that does the stages: the first."""
        return min(self._queue("--format=%A"), key=int)

    def _lose(self) -> None:
        """The last of the nodes that have joined."""
        self._lost = self._queue("--states=RUNNING", f"--name=foldtrain-join-{self._job()}", "--format=%N")[-1]
        self._slurm.lose_node(self._lost)

    def _switch_on(self) -> None:
        self._slurm.start_node(self._lost)
        self._until(lambda: self._slurm.run("sinfo", "--noheader", "-n", self._lost, "--format=%t").strip() == "idle")

    def _begin_again(self) -> None:
        """The two minutes are over that a requeued job waits, and a node that was lost."""
        job = self._job()
        self._until(lambda: self._queue("--format=%T", f"--jobs={job}") == ["PENDING"])
        for waiting in self._queue("--states=PENDING", "--format=%i"):
            self._slurm.run("scontrol", "update", f"JobId={waiting}", "StartTime=now")

    def _until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, self._slurm.logs()
            time.sleep(0.2)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as held:
        server = held.enter_context(S3Server(tmp_path / "store", bucket="lab"))
        slurm = held.enter_context(SlurmCluster(nodes=3))
        for name, value in (server.environment() | slurm.environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
        (tmp_path / "team.yaml").write_text(yaml.safe_dump(_target(tmp_path, server)))
        yield Lab(server, slurm)


def _target(folder: Path, server: S3Server) -> dict[str, object]:
    """What the page shows, with the places of this machine."""
    secrets = {name: value for name, value in server.environment().items() if "KEY" in name}
    profile = folder / "profile"
    profile.touch(mode=0o600)
    profile.write_text("".join(f"export {name}={value}\n" for name, value in secrets.items()))
    plain = {name: value for name, value in server.environment().items() if name not in secrets} | PACED
    return {
        "extends": "package:cluster/slurm.yaml",
        "nodes": "1:3",
        "cpus_per_node": 1,
        "memory_per_node": 2,
        "options": {"exclusive": True},
        "setup": [f". {profile}"],
        "secrets": list(secrets),
        "environment": plain,
        "python": sys.executable,
        "grace_seconds": 120,
    }


def test_the_run_is_scaled_loses_a_node_is_preempted_stopped_and_ends_as_an_unbroken_one(
    lab: Lab, tmp_path: Path
) -> None:
    story = Story(PAGE, RUN, tmp_path, os.environ, lab.processes, lab.turns)
    story.tell()
    story.undisturbed(UNBROKEN, "team.yaml")
    same_samples(lab.bucket, "smoke", "unbroken")
