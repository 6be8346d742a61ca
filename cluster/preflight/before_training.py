"""Preflight before step 1 of a training, on the Ray cluster that is connected."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from cluster.config.run import ClusterConfig, RunConfig
from cluster.preflight.findings import Finding
from cluster.preflight.ray_probes import RayProbes, machines, probes
from cluster.preflight.report import summary
from cluster.preflight.running import run_checks
from cluster.preflight.verdict import Verdict, decide
from cluster.preflight.wanted import wanted_by
from cluster.session.head_nodes import HeadNodes
from cluster.terminal.output import console
from cluster.training.elastic_policy import Room
from cluster.training.worker_group import Needs
from data_pipeline.errors import FoldtrainError

_checked: dict[frozenset[str], frozenset[str]] = {}
"""Of each set of nodes (Ray's ids) that was checked in this process, those that are left out: a command that trains
several networks checks a cluster once."""


def preflight(config: RunConfig, reads: Iterable[str]) -> frozenset[str]:
    """Check the nodes that a training may run on, if `cluster.preflight` asks for it.

    Args:
        config: of the run.
        reads: URIs that it reads from.

    Returns:
        Ray's ids of the nodes that it is to do without.

    Raises:
        FoldtrainError: if something is wrong that it cannot run with; it says what, on which node, and what to do.
    """
    cluster = config.cluster
    if cluster.preflight == "never" or (cluster.preflight == "auto" and cluster.most_workers < 2):
        return frozenset()
    whole = HeadNodes().whole()
    ids = frozenset(node for node, has in whole.items() if _room(cluster, {node: has}))
    if not ids or (cluster.preflight == "auto" and (len(ids) < 2 or machines(ids) < 2)):
        return frozenset()
    if ids not in _checked:
        _checked[ids] = _check(config, reads, {node: whole[node] for node in ids})
    return _checked[ids]


def _check(config: RunConfig, reads: Iterable[str], whole: Mapping[str, Mapping[str, float]]) -> frozenset[str]:
    began = time.monotonic()
    with probes(list(whole)) as found:
        findings = run_checks(found, wanted_by(config, reads), unanswered=found.unanswered)
    verdict = decide_for(config.cluster, found, findings, whole)
    _say(findings, verdict, len(whole), time.monotonic() - began)
    if verdict.refused:
        lines = "\n  ".join(map(str, verdict.refused))
        raise FoldtrainError(
            f"preflight: the cluster is not ready for this training:\n  {lines}\n"
            "foldtrain doctor CONFIG shows all that it finds; cluster.preflight=never starts all the same"
        )
    return frozenset(found.ids[name] for name in verdict.left_out)


def decide_for(
    cluster: ClusterConfig, found: RayProbes, findings: list[Finding], whole: Mapping[str, Mapping[str, float]]
) -> Verdict:
    """The verdict on the nodes of a cluster.

    Args:
        cluster: what the training needs.
        found: the nodes.
        findings: of all checks.
        whole: what the nodes have, by Ray's id.
    """

    def room(without: Collection[str]) -> int:
        out = {found.ids[name] for name in without}
        return _room(cluster, {node: has for node, has in whole.items() if node not in out})

    return decide(findings, found.ids, room, cluster.fewest_workers)


def _room(cluster: ClusterConfig, nodes: Mapping[str, Mapping[str, float]]) -> int:
    return Room(Needs(cluster.cpus_per_worker, cluster.gpus_per_worker).resources, _Still(nodes)).whole()


class _Still:
    """Nodes that stay as they are."""

    def __init__(self, nodes: Mapping[str, Mapping[str, float]]) -> None:
        self._nodes = nodes

    def free(self) -> Mapping[str, Mapping[str, float]]:
        return self._nodes

    def whole(self) -> Mapping[str, Mapping[str, float]]:
        return self._nodes

    def leaving(self) -> set[str]:
        return set()


def _say(findings: list[Finding], verdict: Verdict, nodes: int, seconds: float) -> None:
    out = console()
    out.print(f"preflight: {summary(findings, nodes, seconds)}", markup=False)
    for finding in findings:
        if finding.level != "ok" and finding not in verdict.refused:
            out.print(f"  {finding}", markup=False)
    if verdict.left_out:
        out.print(f"preflight: goes on without {', '.join(verdict.left_out)}, as there is room elsewhere", markup=False)
