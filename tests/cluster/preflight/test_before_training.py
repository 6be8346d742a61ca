"""When a training is preceded by a preflight, and what follows from what that finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.preflight import before_training
from cluster.preflight.before_training import preflight
from cluster.preflight.findings import Finding
from cluster.preflight.nodes import silent
from cluster.preflight.ray_probes import RayProbes
from cluster.preflight.wanted import Wanted, wanted_by
from cluster.training.elastic_policy import Room, Without
from data_pipeline.errors import FoldtrainError

TORCH = Finding("b", "versions", "error", "torch is 9.9.9, elsewhere 2.14.1", "pip install")


class Cluster:
    """Nodes with room for one worker each, and what a check finds on them."""

    def __init__(self, patch: pytest.MonkeyPatch, *names: str) -> None:
        self.names, self.findings, self.checked = names, list[Finding](), 0
        self.unanswered = dict[str, Any]()
        self.machines: int | None = None
        patch.setattr(before_training, "_checked", {})
        patch.setattr(before_training, "HeadNodes", lambda: self)
        patch.setattr(before_training, "machines", lambda ids: len(ids) if self.machines is None else self.machines)
        patch.setattr(before_training, "probes", self._probes)
        patch.setattr(before_training, "run_checks", self._run)

    def whole(self) -> dict[str, dict[str, float]]:
        return {f"id-{name}": {"CPU": 1.0} for name in self.names} | {"id-head": {"memory": 1.0}}

    @contextmanager
    def _probes(self, ids: list[str]) -> Iterator[RayProbes]:
        assert sorted(ids) == sorted(f"id-{name}" for name in self.names), "a head without CPUs is no node of workers"
        yield RayProbes({name: f"id-{name}" for name in self.names}, {}, self.unanswered, {})

    def _run(self, _nodes: Any, _wanted: Any, *, unanswered: Any) -> list[Finding]:
        self.checked += 1
        gone = [Finding(name, "node", "error", failure.reason) for name, failure in unanswered.items()]
        return self.findings + gone


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch, "a", "b", "c")


def config(small_config: Path, **cluster: Any) -> RunConfig:
    return load_config(str(small_config), [f"cluster.{name}={value}" for name, value in cluster.items()])


@pytest.mark.parametrize(
    ("settings", "checked"),
    [
        *[({"workers": 2}, 1), ({"workers": 1}, 0), ({"workers": 1, "preflight": "always"}, 1)],
        *[({"workers": 2, "preflight": "never"}, 0), ({"workers": "1:3"}, 1)],
    ],
)
def test_by_default_only_a_training_of_several_workers_is_preceded_by_one(
    three: Cluster, small_config: Path, settings: dict[str, Any], checked: int
) -> None:
    preflight(config(small_config, **settings), [])
    assert three.checked == checked


def test_a_cluster_of_one_node_is_not_even_asked(monkeypatch: pytest.MonkeyPatch, small_config: Path) -> None:
    one = Cluster(monkeypatch, "a")
    assert preflight(config(small_config, workers=2), []) == frozenset()
    assert one.checked == 0


def test_several_nodes_of_one_machine_are_checked_only_where_it_is_asked_for(
    three: Cluster, small_config: Path
) -> None:
    three.machines = 1
    preflight(config(small_config, workers=3), [])
    assert three.checked == 0
    preflight(config(small_config, workers=3, preflight="always"), [])
    assert three.checked == 1


def test_a_command_of_several_trainings_checks_the_same_nodes_once(three: Cluster, small_config: Path) -> None:
    three.findings = [TORCH]
    resolved = config(small_config, workers=2)
    assert [preflight(resolved, []) for _ in range(3)] == [frozenset({"id-b"})] * 3
    assert three.checked == 1


def test_nodes_that_joined_since_are_checked(three: Cluster, small_config: Path) -> None:
    preflight(config(small_config, workers=2), [])
    three.names = (*three.names, "d")
    preflight(config(small_config, workers=2), [])
    assert three.checked == 2


def test_a_node_that_does_not_answer_is_left_out_where_there_is_a_spare_one(three: Cluster, small_config: Path) -> None:
    three.unanswered = {"c": silent(12)}
    assert preflight(config(small_config, workers=2), []) == frozenset({"id-c"})


def test_an_elastic_training_needs_its_fewest_workers(three: Cluster, small_config: Path) -> None:
    three.findings = [TORCH]
    assert preflight(config(small_config, workers="2:3"), []) == frozenset({"id-b"})


def test_a_training_that_cannot_do_without_is_refused_with_node_finding_and_remedy(
    three: Cluster, small_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three.findings = [TORCH, Finding("a", "disk", "warning", "1 GiB free", "free some")]
    with pytest.raises(FoldtrainError) as refused:
        preflight(config(small_config, workers=3), [])
    assert "b: versions: torch is 9.9.9, elsewhere 2.14.1. pip install" in str(refused.value)
    assert refused.value.exit_code == 1
    assert "a: disk: 1 GiB free. free some" in capsys.readouterr().out


def test_a_refusal_is_not_remembered_as_a_success(three: Cluster, small_config: Path) -> None:
    three.findings = [TORCH]
    for _ in range(2):
        with pytest.raises(FoldtrainError):
            preflight(config(small_config, workers=3), [])
    assert three.checked == 2


def test_a_node_that_is_left_out_has_no_room(three: Cluster) -> None:
    class Nodes:
        def free(self) -> dict[str, dict[str, float]]:
            return three.whole()

        def whole(self) -> dict[str, dict[str, float]]:
            return three.whole()

        def leaving(self) -> set[str]:
            return {"id-a"}

    room = Room({"CPU": 1.0}, Without(Nodes(), frozenset({"id-b"})))
    assert (room.whole(), room.free()) == (1, 1)


def test_what_a_run_needs_is_taken_from_its_config(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_config.parent)
    resolved = load_config(
        str(small_config),
        [
            *("cluster.workers=2:4", "cluster.cpus_per_worker=3.5", "inputs.images=pictures", "data.source=null"),
            *("data.reading.cache_dir=cache", "data.reading.cache_bytes=1000"),
        ],
    )
    folder = small_config.parent
    assert wanted_by(resolved) == Wanted(
        run=str(folder / "runs" / "small"),
        reads=(str(folder / "pictures"),),
        cache_folder=str(folder / "cache"),
        cache_bytes=1000,
        workers=4,
        threads=3,
    )
    assert wanted_by(resolved, ["s3://bucket/tokens"]).reads == ("s3://bucket/tokens",)
