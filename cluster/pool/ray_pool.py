"""Ray's side of a pool: actors that ask the ledger for shards until there are none left, or until they are to leave.

Each actor has one turn, a call that lasts until the ledger has no shard for it any more. So the number of shards costs
Ray nothing, and no row of a plan passes through it. Ray places the actors, and starts one again whose process died.
Those that it has no room for wait: an autoscaler adds nodes for them. An actor whose turn has ended is released.

A pool grows by actors that join, and shrinks by some that leave after the shard in hand; all others go on undisturbed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.pool.leaving import Member, leaving
from cluster.pool.shard_ledger import InFlight, Ledger, Numbers, Report, to_ranges
from cluster.pool.shard_worker import ShardWork, ShardWorker
from data_pipeline.text.counted import counted

_MOST_WAITING = 64
"""Actors that wait for room at once: Ray's head looks through all of them whenever there is some."""


@dataclass(frozen=True)
class PoolSize:
    """How many workers."""

    fewest: int
    most: int

    def __str__(self) -> str:
        return str(self.most) if self.fewest == self.most else f"{self.fewest} to {self.most}"

    @property
    def in_words(self) -> str:
        """With what they are: 1 worker, 2 to 8 workers."""
        return counted(self.most, "worker") if self.fewest == self.most else f"{self} workers"


@dataclass(frozen=True)
class WorkerNeeds:
    """What a worker reserves."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads that it may keep busy."""
        return max(1, int(self.cpus))

    def options(self) -> dict[str, Any]:
        """As Ray wants it."""
        return {"num_cpus": self.cpus, **({"num_gpus": self.gpus} if self.gpus else {})}

    def against_cluster(self) -> str:
        """What a worker needs and what there is, in words."""
        whole, free = _resources()
        names = ("CPU", "GPU") if self.gpus else ("CPU",)
        needs = " and ".join(counted(need, name) for name, need in zip(names, (self.cpus, self.gpus), strict=False))
        there = ", ".join(f"{counted(whole.get(name, 0.0), name)} ({free.get(name, 0):g} free)" for name in names)
        return f"each needs {needs}; the cluster has {there}"


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    """What the cluster has, and what of it is free."""
    import ray

    return ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Resized:
    """What a change of the size comes to."""

    joining: int
    """Workers that are asked for."""
    leaving: tuple[str, ...]
    """Workers that leave after the shard in hand, or before their first one."""


class RayPool:
    """The actors of a run, as its driver sees them: the ledger, the workers, and workers for second tries.

    Args:
        work: what workers do.
        needs: what each reserves.
        max_attempts: failures after which a shard is set aside.
    """

    def __init__(self, work: ShardWork, needs: WorkerNeeds, max_attempts: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._here = str(ray.get_runtime_context().get_node_id())
        here = NodeAffinitySchedulingStrategy(self._here, soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        self._work, self._needs = ray.put(work), needs
        self.ledger: Any = ray.remote(Ledger).options(**options).remote(max_attempts)
        self._members: dict[str, tuple[Any, Any]] = {}
        """Workers whose turn has not ended, in the order in which they were asked for: the actor, and its turn."""
        self._leaving: set[str] = set()
        self._still_to_ask = 0
        """Workers that are asked for once fewer of them wait for room."""
        self._second: dict[int, tuple[Any, float]] = {}
        self._is_abandoned = False

    def start_pass(self, numbers: Numbers, most: int) -> None:
        """Offer these shards to so many workers."""
        import ray

        ray.get(self.ledger.start_pass.remote(to_ranges(numbers)))
        self._leaving.clear()
        self._still_to_ask = most
        self._ask_for(waiting=0)

    def report(self, ledger: float, known: int) -> Report:
        """What the ledger says (`Ledger.report`)."""
        import ray

        report: Report = ray.get(self.ledger.report.remote(ledger, known))
        return report

    def fail(self, shard: InFlight, reason: str) -> None:
        """Count a failure of a shard that is in a worker's hands."""
        import ray

        ray.get(self.ledger.fail.remote(shard.number, shard.worker, shard.host, reason))

    # ------------------------------------------------------------------------------------------------------ its size

    def resize(self, most: int, report: Report) -> Resized:
        """Have so many workers from now on. Those that stay notice nothing of it.

        Args:
            most: workers.
            report: the newest.
        """
        staying = len(self._members) - len(self._leaving) + self._still_to_ask
        if most >= staying:
            self._still_to_ask += most - staying
            self._ask_for(self._waiting(report))
            return Resized(most - staying, ())
        unasked = min(self._still_to_ask, staying - most)
        self._still_to_ask -= unasked
        chosen = leaving(self._standing(report), staying - most - unasked, self._here)
        self._dismiss(chosen)
        return Resized(0, tuple(chosen))

    def keep(self, report: Report) -> None:
        """Ask for workers that are still to be asked for; with no shard left to begin, let go who is not at work yet.

        So what an autoscaler is asked for is what there is work for.
        """
        if not report.waiting:
            self._still_to_ask = 0
            self._dismiss([each.worker for each in self._standing(report) if not each.at_work])
        elif self._still_to_ask:
            self._ask_for(self._waiting(report))

    def _waiting(self, report: Report) -> int:
        """Workers that wait for room."""
        return sum(worker not in report.arrived for worker in self._members)

    def _standing(self, report: Report) -> list[Member]:
        return [Member(name, report.arrived.get(name)) for name in self._members if name not in self._leaving]

    def _ask_for(self, waiting: int) -> None:
        import ray

        count = min(self._still_to_ask, max(0, _MOST_WAITING - waiting))
        self._still_to_ask -= count
        options = self._needs.options() | {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "SPREAD"}
        kind = ray.remote(ShardWorker).options(**options)
        for _ in range(count):
            worker = _new_name()
            actor: Any = kind.remote(self._work, self.ledger, self._needs.threads, worker)
            self._members[worker] = actor, actor.work.remote()

    def _dismiss(self, workers: Sequence[str]) -> None:
        """Have workers leave after the shard in hand, those without one at once."""
        import ray

        if not workers:
            return
        self._leaving |= set(workers)
        at_work = set(ray.get(self.ledger.dismiss.remote(workers)))
        for worker in workers:
            if worker not in at_work:
                self._release(worker)

    def _release(self, worker: str) -> None:
        """Hand back what a worker reserves, or waits for."""
        import ray

        actor, _ = self._members.pop(worker)
        self._leaving.discard(worker)
        ray.kill(actor)

    def wait(self, seconds: float) -> bool:
        """Wait so long for all turns to end, and release the workers of those that did. Returns whether all have.

        Raises:
            RayError: if an actor failed.
        """
        import ray

        turns = {turn: worker for worker, (_, turn) in self._members.items()}
        if turns:
            ended, _ = ray.wait(list(turns), num_returns=len(turns), timeout=seconds)
            for turn in ended:
                self._release(turns[turn])
            ray.get(ended)
        return not self._members

    # --------------------------------------------------------------------------------------------------- second tries

    def try_again(self, number: int) -> None:
        """Give a shard to a further worker, on a node with few of them, beside the one that has it."""
        import ray

        worker = ray.remote(ShardWorker).options(**self._needs.options(), scheduling_strategy="SPREAD")
        actor: Any = worker.remote(self._work, self.ledger, self._needs.threads, _new_name())
        actor.make_one.remote(number)
        self._second[number] = (actor, time.monotonic())

    @property
    def second_tries(self) -> dict[int, float]:
        """When (time.monotonic) each shard was given to a further worker."""
        return {number: since for number, (_, since) in self._second.items()}

    def end_second_try(self, number: int) -> None:
        """Release the further worker of a shard, if there is one."""
        actor, _ = self._second.pop(number, (None, 0.0))
        if actor is not None:
            import ray

            ray.kill(actor)

    # -------------------------------------------------------------------------------------------------------- the end

    def end_pass(self) -> None:
        """Release all workers, whatever they do."""
        for number in list(self._second):
            self.end_second_try(number)
        for worker in list(self._members):
            self._release(worker)
        self._still_to_ask = 0

    def abandon(self) -> None:
        """Release nothing from now on: without Ray's head that cannot be done, and all ends with its cluster."""
        self._second.clear()
        self._members.clear()
        self._is_abandoned = True

    def close(self) -> None:
        """Release everything."""
        import ray

        if self._is_abandoned:
            return
        self.end_pass()
        ray.kill(self.ledger)


def _new_name() -> str:
    """Of a worker: it keeps it when Ray starts it again."""
    return uuid.uuid4().hex[:12]
