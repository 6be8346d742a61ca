"""How Ray Train sizes and restarts a stage: only sizes that keep the global batch, and a planned one loses no step.

Ray Train's own elastic policy takes any number of workers between the bounds, and ends a healthy group at once when it
can have a larger one. Here it takes usable sizes alone, and asks the workers to end with a checkpoint first: they
return, the trainer is done, and cluster/training/stage.py starts the next one, whose first decision is the new size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from cluster.training.elastic_sizes import largest_usable
from cluster.training.notices import Voice, ask_workers, leaving_nodes
from data_pipeline.errors import FoldtrainError
from trainer.checkpoints.folder import latest_step
from trainer.loop.ending import Ending

_WAIT_SECONDS = 0.5
"""Between two looks for enough workers: Ray's controller asks again without a pause."""


class UsableSizes(ElasticScalingPolicy):
    """Ray Train's elastic policy over some sizes only.

    Args:
        scaling_config: with the fewest and the most workers.
        sizes: that can be used, ascending.
        key: name of the run, to say what it waits for.
    """

    def __init__(self, scaling_config: ScalingConfig, sizes: Sequence[int], key: str) -> None:
        super().__init__(scaling_config)
        self._sizes, self._voice = tuple(sizes), Voice(key)
        self._room = 0
        self._tried = 0  # size of the start that has not come to run; 0 for none

    def _get_num_workers_for_resource_request(self) -> int:
        return self._sizes[-1]

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """Of what is reserved on nodes that stay, the largest usable size; 0 for too little."""
        leaving = leaving_nodes()
        staying = {node: has for node, has in reserved_resources.items() if node not in leaving}
        self._room = super()._count_possible_workers(staying)
        return largest_usable(self._sizes, self._room)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """As Ray's, from a fresh look at the nodes: the coordinator's own is up to 20 s old, and has dead ones."""
        now = time.monotonic()
        if now - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            try:
                answer = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
                self._latest_reserved_resources = ray.get(answer, timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S)
            except ray.exceptions.RayError:  # a busy or dying node; Ray asks again
                self._latest_reserved_resources = None
            self._latest_reserved_resources_query_time = time.monotonic()
        return self._latest_reserved_resources

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """The size to start with; none while there are too few workers.

        What is reserved may be in use by tasks that the coordinator does not know of, or on a node that is about to be
        found dead. So after a start that failed the next smaller size is tried, and after the smallest the largest.
        """
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._voice.say(f"waits for room for {self._sizes[0]} workers; there is room for {self._room}")
            time.sleep(_WAIT_SECONDS)
        elif isinstance(decision, ResizeDecision):
            smaller = largest_usable(self._sizes, min(decision.num_workers, self._tried - 1))
            self._tried = smaller or decision.num_workers
            return self._get_resize_decision(self._tried)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Never a new size: where Ray would take one, the workers are asked to pause, and end by themselves."""
        self._tried = 0
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            now = worker_group_state.num_workers
            size = largest_usable(self._sizes, min(decision.num_workers, now + self._free_workers()))
            if size > now or decision.num_workers < now:
                self._voice.say(f"room for {size} workers: saves a checkpoint, and goes on with them")
                ask_workers(worker_group_state.workers, Ending.PAUSED)
        return NoopDecision()

    def _free_workers(self) -> int:
        """How many more workers there is room for at this moment, whatever else runs on the cluster."""
        leaving = leaving_nodes()
        free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
        need = {name: amount for name, amount in self.scaling_config._resources_per_worker_not_none.items() if amount}
        nodes = [has for node, has in free.items() if node not in leaving]
        return sum(int(min(has.get(name, 0.0) // amount for name, amount in need.items())) for has in nodes)


class RestartsWithoutProgress(DefaultFailurePolicy):
    """Counts the failures of workers since the last new checkpoint, not since the start: nodes get lost all the time.

    Args:
        failure_config: with the most failures in a row.
        checkpoints: folder of the stage's checkpoints.
    """

    def __init__(self, failure_config: FailureConfig, checkpoints: str) -> None:
        super().__init__(failure_config)
        self._checkpoints, self._newest = checkpoints, -1

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Start again, or raise the error."""
        newest = self._newest_checkpoint()
        if newest > self._newest:
            self._newest, self._worker_group_failures = newest, 0
        return super().make_decision(training_failed_error)

    def _newest_checkpoint(self) -> int:
        try:
            return latest_step(self._checkpoints) or 0
        except (OSError, FoldtrainError):  # storage that is away may be the reason of the failure
            return self._newest
