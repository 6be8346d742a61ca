"""Ray's side of a pool: Ray Data keeps actors, between a fewest and a most of them, which ask the ledger for shards.

What Ray Data maps over the actors is a turn for each actor that may be: the actor that gets it makes shards until there
are none left. So the number of shards costs Ray nothing, and no row of a plan passes through it; a turn whose process
died is given out again.

Ray Data runs in an actor of its own. What an actor started ends with it, so that one kill releases the whole pool:
workers that hang, workers that wait for room in the cluster, and Ray Data itself.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

from cluster.pool.shard_ledger import InFlight, Ledger, Numbers, Report, to_ranges
from cluster.pool.shard_worker import ShardWork, ShardWorker


@dataclass(frozen=True)
class PoolSize:
    """How many workers."""

    fewest: int
    most: int

    def __str__(self) -> str:
        return str(self.most) if self.fewest == self.most else f"{self.fewest} to {self.most}"


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

    def fitting(self) -> int:
        """Workers that fit into what is free in the cluster now."""
        _, free = _resources()
        fits = free.get("CPU", 0.0) / self.cpus
        return math.floor(min(fits, free.get("GPU", 0.0) / self.gpus) if self.gpus else fits)

    def against_cluster(self) -> str:
        """What a worker needs and what there is, in words."""
        whole, free = _resources()
        names = ("CPU", "GPU") if self.gpus else ("CPU",)
        needs = " and ".join(f"{need:g} {name}s" for name, need in zip(names, (self.cpus, self.gpus), strict=False))
        there = ", ".join(f"{whole.get(name, 0):g} {name}s ({free.get(name, 0):g} free)" for name in names)
        return f"each needs {needs}; the cluster has {there}"


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    """What the cluster has, and what of it is free."""
    import ray

    return ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]


class _RayData:
    """The actor that runs Ray Data."""

    def run(self, work: Any, ledger: Any, size: PoolSize, needs: WorkerNeeds) -> None:
        """Give every actor a turn. It ends when the ledger has no shard for any of them any more."""
        import ray.data

        warnings.simplefilter("ignore")  # on pools larger than their work, and the like: the driver says what matters
        for name in ("ray.data", "ray.train", "ray.util"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _configure(ray.data.DataContext.get_current())
        fewest, most = size.fewest, size.most
        turns = [{"turn": number} for number in range(most)]
        results = ray.data.from_items(turns, override_num_blocks=most).map(
            ShardWorker,  # type: ignore[arg-type] # Ray Data takes a class whose instances are called
            fn_constructor_kwargs={"work": work, "ledger": ledger, "threads": needs.threads},
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest,
                max_size=most,
                initial_size=max(fewest, min(most, needs.fitting())),
                max_tasks_in_flight_per_actor=1,
            ),
            **needs.options(),
        )
        for _row in results.iter_rows():
            pass  # the ledger knows


def _configure(context: Any) -> None:
    context.enable_progress_bars = context.print_on_execution_start = False
    context.wait_for_min_actors_s = -1  # begin with those that are there
    context.max_consecutive_actor_init_deaths = -1  # a worker that is killed while it starts is replaced
    context.execution_no_progress_timeout_s = -1  # a shard may take long; the driver watches for those that hang
    # Grow while every worker is busy. Ray's own bounds suit pools with more than one task queued at each actor.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.5


class RayPool:
    """The actors of a run, as its driver sees them: the ledger, Ray Data, and workers for second tries.

    Args:
        work: what workers do.
        needs: what each reserves.
        max_attempts: failures after which a shard is set aside.
    """

    def __init__(self, work: ShardWork, needs: WorkerNeeds, max_attempts: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._beside = {"num_cpus": 0, "scheduling_strategy": here}
        self._work, self._needs = ray.put(work), needs
        options = self._beside | {"max_restarts": -1, "max_task_retries": -1}
        self.ledger: Any = ray.remote(Ledger).options(**options).remote(max_attempts)
        self._ray_data: Any = None
        self._pass: Any = None
        self._second: dict[int, Any] = {}
        self._is_abandoned = False

    def start_pass(self, numbers: Numbers, size: PoolSize) -> None:
        """Offer these shards to a pool of this size."""
        import ray

        if self._ray_data is None:
            self._ray_data = ray.remote(_RayData).options(**self._beside).remote()
        ray.get(self.ledger.start_pass.remote(to_ranges(numbers)))
        most = min(size.most, len(numbers))
        size = PoolSize(min(size.fewest, most), most)
        self._pass = self._ray_data.run.remote(self._work, self.ledger, size, self._needs)

    def report(self, ledger: float, known: int) -> Report:
        """What the ledger says (`Ledger.report`)."""
        import ray

        report: Report = ray.get(self.ledger.report.remote(ledger, known))
        return report

    def fail(self, shard: InFlight, reason: str) -> None:
        """Count a failure of a shard that is in a worker's hands."""
        import ray

        ray.get(self.ledger.fail.remote(shard.number, shard.worker, shard.host, reason))

    def drain(self) -> None:
        """Have no shard begun any more."""
        self.ledger.drain.remote()

    def wait(self, seconds: float) -> bool:
        """Wait so long for the pass to end. Returns whether it has.

        Raises:
            RayError: if Ray Data failed.
        """
        import ray

        ended, _ = ray.wait([self._pass], timeout=seconds)
        if ended:
            ray.get(self._pass)
        return bool(ended)

    def try_again(self, number: int) -> None:
        """Give a shard to a further worker, on a node with few of them, beside the one that has it."""
        import ray

        worker = ray.remote(_SecondTry).options(**self._needs.options(), scheduling_strategy="SPREAD")
        actor: Any = worker.remote(self._work, self.ledger, self._needs.threads)
        actor.make.remote(number)
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

    def end_pass(self) -> None:
        """Release all workers, whatever they do."""
        import ray

        for number in list(self._second):
            self.end_second_try(number)
        if self._ray_data is not None:
            ray.kill(self._ray_data)
        self._ray_data = self._pass = None

    def abandon(self) -> None:
        """Release nothing from now on: without Ray's head that cannot be done, and all ends with its cluster."""
        self._second.clear()
        self._ray_data = self._pass = None
        self._is_abandoned = True

    def close(self) -> None:
        """Release everything."""
        import ray

        if self._is_abandoned:
            return
        self.end_pass()
        ray.kill(self.ledger)


class _SecondTry:
    """An actor that makes one shard."""

    def __init__(self, work: ShardWork, ledger: Any, threads: int) -> None:
        self._worker = ShardWorker(work, ledger, threads)

    def make(self, number: int) -> None:
        """Make it."""
        self._worker.make_one(number)
