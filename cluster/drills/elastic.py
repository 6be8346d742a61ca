"""An elastic stage whose nodes are lost, come and leave: does it end as if nothing had happened?

unbroken   the stage on three workers, undisturbed
elastic    the same with `cluster.workers=1:3` on three Ray nodes; one is killed after some steps; a new one is added,
           and three workers are asked for; at last Ray drains one
verdict    the command ends by itself; the losses and the samples are those of the unbroken run
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.drills.drilled_training import write_training
from cluster.drills.ray_nodes import RayNodes
from cluster.drills.victims import run, standing_still, started, wait_for
from data_pipeline.errors import FoldtrainError

STEPS, CHECKPOINT_EVERY = 60, 5
LOSE_AT = 12
"""The node is lost at this step or soon after, with one checkpoint or more behind it."""
ADD_AT = 25
"""At this step or soon after the workers that are left wait for the new node."""
DRAIN_AT = 40
"""At this step or soon after the workers wait until a node is announced to leave."""
NODES = 3
_WORKER = "TrainWorker"


@dataclass(frozen=True)
class ElasticRun:
    """What came of it."""

    unbroken: list[float]
    """Losses of steps 1, 2, ... of the undisturbed stage."""
    elastic: list[float]
    """Those of the other."""
    events: list[dict[str, Any]]
    """Its events.jsonl."""
    audit: dict[str, Any]
    """What `foldtrain ledger audit` says of it."""
    output: str
    """What it printed."""

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """Its restarts, with their costs."""
        return [event for event in self.events if event["event"] == "restart"]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """From which step on with how many workers."""
        return [(event["step"], event["workers"]) for event in self.events if event["event"] in {"start", "resume"}]

    @property
    def difference(self) -> float:
        """The largest relative difference of a loss from the undisturbed one.

        Raises:
            FoldtrainError: if one has fewer steps.
        """
        if not len(self.unbroken) == len(self.elastic) == STEPS:
            raise FoldtrainError(f"{len(self.unbroken)} and {len(self.elastic)} steps are on record, not {STEPS}")
        return max(abs(one - other) / abs(one) for one, other in zip(self.unbroken, self.elastic, strict=True))


def run_elastic(folder: Path, seed: int = 0, workers: int = NODES) -> ElasticRun:
    """Both runs, one after the other, the second on a Ray cluster of three nodes.

    Args:
        folder: for all of it; not there, or empty.
        seed: of the data, and of training.
        workers: of the unbroken run.

    Raises:
        FoldtrainError: if a command fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = write_training(folder, seed)
    run(*_command(config, folder, "unbroken"), f"cluster.workers={workers}", environment={"RAY_ADDRESS": ""})
    output = _disturbed(config, folder)
    stage = folder / "elastic" / "generator"
    audit = json.loads(run("ledger", "audit", str(stage), "--json"))
    unbroken, elastic = (_losses(folder, name) for name in ("unbroken", "elastic"))
    return ElasticRun(unbroken, elastic, _records(folder, "elastic", "events"), audit, output)


def _command(config: Path, folder: Path, name: str) -> tuple[str, ...]:
    export = folder / name / "tokenizer" / "export"
    if not export.exists():
        shutil.copytree(folder / "tokenizer", export)
    changes = {
        "run": folder / name,
        "generator.trainer.steps": STEPS,
        "generator.trainer.checkpoint_every": CHECKPOINT_EVERY,
        "generator.trainer.global_batch": 24,
        "generator.trainer.zero_stage": 2,
        "generator.model.drop_path": 0,  # its masks are drawn per worker
    }
    return ("train-generator", str(config), *(f"{key}={value}" for key, value in changes.items()))


def _disturbed(config: Path, folder: Path) -> str:
    """The elastic run. Returns what the command printed."""
    with RayNodes() as nodes, ExitStack() as held:
        lost, kept = nodes.add(), nodes.add()
        options = (f"cluster.workers=1:{NODES}", f"cluster.address={nodes.address}", "cluster.grow_seconds=1")
        command = (*_command(config, folder, "elastic"), *options)
        victim = held.enter_context(started(*command, environment=nodes.environment))
        wait_for("a step after a checkpoint", lambda: _step(folder) >= LOSE_AT, victim)
        lost.lose()
        wait_for("a restart", lambda: _happened(folder, "restart"), victim)
        left = [*kept.workers(_WORKER), *nodes.head.workers(_WORKER)]
        wait_for("steps without it", lambda: _step(folder) >= ADD_AT, victim)
        with standing_still(left):
            new = nodes.add()
            run("scale", str(folder / "elastic"), "--workers", str(NODES))  # so late it would not pay, unasked
            wait_for("a word of the new node", lambda: f"room for {NODES} workers" in victim.output(), victim)
        wait_for("steps with it", lambda: _happened(folder, "restart", 2) and _step(folder) > _begun(folder), victim)
        grown = [process for node in (kept, new, nodes.head) for process in node.workers(_WORKER)]
        with standing_still(grown):
            run("scale", str(folder / "elastic"), "--workers", f"1:{NODES}")
            wait_for("a word of what was asked", lambda: "workers, as the config says" in victim.output(), victim)
        wait_for("more steps", lambda: _step(folder) >= DRAIN_AT, victim)
        with standing_still(grown):
            nodes.drain(kept)
            wait_for("a word of the node that leaves", lambda: "a node will leave" in victim.output(), victim)
        code = victim.wait()
        if code != 0:
            raise FoldtrainError(f"the elastic run ended with exit code {code}:\n{victim.output()[-4000:]}")
        return victim.output()


def _step(folder: Path) -> int:
    records = _records(folder, "elastic", "metrics")
    return int(records[-1]["step"]) if records and _happened(folder, "checkpoint") else 0


def _happened(folder: Path, name: str, times: int = 1) -> bool:
    found = [event for event in _records(folder, "elastic", "events") if event["event"] == name]
    return len(found) >= times


def _begun(folder: Path) -> int:
    """The step at which it last went on."""
    return int([event["step"] for event in _records(folder, "elastic", "events") if event["event"] == "restart"][-1])


def _losses(folder: Path, name: str) -> list[float]:
    return [float(record["loss"]) for record in _records(folder, name, "metrics")]


def _records(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """Whole records of a JSONL file of the stage."""
    path = folder / name / "generator" / f"{kind}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
