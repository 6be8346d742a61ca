"""The cluster drill: whatever is lost of a training's cluster, it ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.drills.cluster import BLOWS, STEPS, TOLERANCE, ClusterDrill, ClusterTrial
from cluster.drills.victims import PATIENCE, started, tail

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.xdist_group("cluster-drill")]


def test_a_node_and_then_the_head_are_lost_and_each_training_ends_with_a_clean_audit(tmp_path: Path) -> None:
    seeds = [BLOWS.index(blow) for blow in ("node", "head")]
    found = []
    for seed in seeds:
        options = ("--trials", "1", "--seed", str(seed), "--folder", str(tmp_path / f"{seed}"))
        record = tmp_path / f"{seed}.json"
        with started("drill", "cluster", *options, "--json", str(record), log=tmp_path / "log") as command:
            assert command.wait(timeout=PATIENCE) == 0, tail(command)
            assert command.family() == []
        found += json.loads(record.read_text())["trials"]
    node, head = found
    assert (node["blows"], node["exit_codes"], node["problems"]) == (["node"], [0], [])
    assert node["restarts"] >= 1
    assert (head["blows"], head["exit_codes"], head["problems"]) == (["head"], [1, 0], [])
    assert max(node["difference"], head["difference"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ([1.0] * STEPS, ""),
        ([1.0] * (STEPS - 1), "59 steps are on record, not 60"),
        ([1.0] * (STEPS - 1) + [1.001], "a loss differs by 1.0e-03"),
    ],
)
def test_another_loss_or_a_step_that_is_missing_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, losses: list[float], problem: str
) -> None:
    monkeypatch.setattr("cluster.drills.cluster.read_records", lambda _bucket, _key: [{"event": "restart"}])
    monkeypatch.setattr("cluster.drills.cluster.run", lambda *_, **__: "")
    drill = ClusterDrill(tmp_path, 0)
    drill._losses, drill._bucket, drill._direct = [1.0] * STEPS, _Bucket(), {}  # type: ignore[assignment]
    monkeypatch.setattr(drill, "_losses_of", lambda _folder: losses)
    trial = ClusterTrial(0, "")
    found = list(drill._look_through("trial", trial))
    assert trial.restarts == 1
    assert (found == []) if not problem else found[0].startswith(problem)


class _Bucket:
    @staticmethod
    def uri(*parts: str) -> str:
        return "/".join(("s3://bucket", *parts))
