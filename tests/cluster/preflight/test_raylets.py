"""The doctor on a real Ray cluster of three nodes, one of which differs from the others."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.drills.ray_nodes import RayNodes
from tests.cluster.conftest import SMALL

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("doctor")]

PREFLIGHT = """
import json, sys, time
from cluster.config.loading import load_config
from cluster.preflight import before_training
from cluster.preflight.checks import limits, versions
from cluster.preflight.ray_probes import probes
from cluster.preflight.running import run_checks
from cluster.session.ray_session import ray_session
from cluster.training.worker_group import Needs, _nodes_of, _reserve
from data_pipeline.errors import FoldtrainError

def quick(*arguments, **options):
    return run_checks(*arguments, **options, checks=[versions.CHECK, limits.CHECK])

before_training.run_checks = quick
config = lambda workers: load_config("small.yaml", [f"cluster.workers={workers}", "cluster.preflight=always"])
said = {}
with ray_session(config(2).cluster):
    out = before_training.preflight(config(2), [])
    said["left out"] = sorted(out)
    said["reserved"] = _nodes_of(_reserve(Needs(0.5, 0, out), 2, lambda: None, 60.0))
    before_training._checked.clear()
    try:
        before_training.preflight(config(3), [])
    except FoldtrainError as error:
        said["refused"] = str(error)
    with probes() as found:
        name = next(iter(found.addresses))
        said["silent"] = found.each(time.sleep, {name: (600,)}, 0.3)[name].reason
        said["after it"] = found.each(abs, {name: (-1,)}, 60)[name]
print("SAID" + json.dumps(said))
"""


@dataclass(frozen=True)
class Found:
    """What the doctor, and the preflight of a training, said of the cluster."""

    odd: str
    """Ray's id of the node that differs."""
    doctor: subprocess.CompletedProcess[str]
    record: dict[str, Any]
    preflight: dict[str, Any]
    preflight_output: str

    @property
    def odd_name(self) -> str:
        return next(name for name in self.record["nodes"] if self.odd[:8] in name)

    def of(self, check: str) -> dict[str, tuple[str, str, str]]:
        found = [each for each in self.record["findings"] if each["check"] == check]
        return {each["node"]: (each["level"], each["found"], each["remedy"]) for each in found}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "small.yaml").write_text(SMALL)
    with RayNodes(cpus=1) as nodes, pytest.MonkeyPatch.context() as patch:
        nodes.add()
        patch.setenv("PYTHONPATH", str(other_torch(folder)))
        odd = nodes.add()
        for process in odd.family():
            process.rlimit(resource.RLIMIT_NOFILE, (900, 900))
        patch.delenv("PYTHONPATH")
        environment = os.environ | nodes.environment | {"RAY_ADDRESS": nodes.address}
        command = [sys.executable, "-m", "foldtrain", "doctor", "small.yaml", "--json", "found.json"]
        doctor = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PREFLIGHT}"]
        before = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        assert "SAID" in before.stdout, before.stdout + before.stderr
        output, _, said = before.stdout.partition("SAID")
        record = json.loads((folder / "found.json").read_text())
        yield Found(odd.id, doctor, record, json.loads(said), output)


def other_torch(folder: Path) -> Path:
    """A folder in which another version of torch is installed, as far as its record says."""
    record = folder / "other" / "torch-9.9.9.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    entries = importlib.metadata.distribution("torch").read_text("entry_points.txt") or ""
    (record / "entry_points.txt").write_text(entries)
    return record.parent


def test_another_torch_version_is_an_error_of_that_node_and_exit_code_1(found: Found) -> None:
    assert found.doctor.returncode == 1, found.doctor.stderr
    level, text, remedy = found.of("versions")[found.odd_name]
    own = importlib.metadata.version("torch")
    assert (level, text) == ("error", f"torch is 9.9.9, elsewhere {own}")
    assert f"pip install 'torch=={own}'" in remedy


def test_few_file_handles_are_an_error_of_that_node(found: Found) -> None:
    assert list(found.of("limits")) == [found.odd_name]
    assert found.of("limits")[found.odd_name][:2] == ("error", "900 open files (ulimit -n), 4,096 are ample")


def test_the_table_names_node_finding_and_remedy(found: Found) -> None:
    table = found.doctor.stdout
    assert found.odd_name in table
    assert "torch is 9.9.9" in table
    assert "pip install" in " ".join(table.split())
    assert "11 checks on 3 nodes in" in table


def test_every_other_check_ran_between_the_nodes_and_found_nothing_broken(found: Found) -> None:
    for check in ("clock", "storage", "conditional write", "ports", "matmul", "bandwidth"):
        assert {level for level, _, _ in found.of(check).values()} <= {"ok", "warning"}, found.of(check)
    if "all nodes" in found.of("bandwidth"):
        assert "between 3 pairs" in found.of("bandwidth")["all nodes"][1]


def test_a_training_that_has_a_spare_node_goes_on_without_the_odd_one(found: Found) -> None:
    assert found.preflight["left out"] == [found.odd]
    assert len(found.preflight["reserved"]) == 2
    assert found.odd not in found.preflight["reserved"]
    assert "goes on without" in found.preflight_output


def test_a_training_that_needs_the_odd_node_is_refused_with_the_lines_of_the_table(found: Found) -> None:
    refused = found.preflight["refused"]
    assert "the cluster is not ready for this training" in refused
    assert f"{found.odd_name}: versions: torch is 9.9.9" in refused
    assert "900 open files" in refused
    assert "cluster.preflight=never" in refused


def test_what_hangs_on_a_node_is_given_up_and_the_node_answers_the_next_question(found: Found) -> None:
    assert found.preflight["silent"] == "no answer within 0.3 s"
    assert found.preflight["after it"] == 1
