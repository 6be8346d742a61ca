"""Ray Train's trainer as a stage uses it: our policies, and only those of Ray's helpers that a stage needs.

Each helper is a process that wakes a hundred times a second, which two workers on two cores notice: with all of them
Ray took 12 % of a core, without them 4 %, and a worker that waits for its core holds up the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster.training.elastic_policy import RestartsWithoutProgress, UsableSizes

_NOT_NEEDED = (
    DatasetsCallback,  # shares out data sets of Ray Data, which we do not use
    PlacementGroupCleanerCallback,  # frees room if only the controller dies: then the command ends, which frees it, too
)


class FixedSize(FixedScalingPolicy):
    """Ray Train's policy for one size, without the actor that tells Ray Data and autoscalers of the workers.

    The placement group that the workers wait for tells an autoscaler the same.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Starts no actor."""

    def _maybe_send_resource_request(self) -> None:
        """There is nobody to send it to."""


class EndSynchronizationActor(WorkerGroupCallback):
    """Ends the actor at which workers meet in `ray.train.report` and in Ray's collectives, neither of which is used."""

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Ray Train ends it again with the workers, which does nothing then."""
        ray.kill(worker_group._worker_group_state.sync_actor)


class StageTrainer(TorchTrainer):
    """Ray Train's trainer with policies for which it has no setting.

    Args:
        arguments: of `TorchTrainer`.
        scaling_config: the number of workers, or the fewest and the most.
        failures: the most in a row.
        sizes: numbers of workers that can be used, ascending.
        key: name of the run.
        checkpoints: folder of the stage's checkpoints.
        options: of `TorchTrainer`.
    """

    def __init__(
        self,
        *arguments: Any,
        scaling_config: ScalingConfig,
        failures: FailureConfig,
        sizes: Sequence[int],
        key: str,
        checkpoints: str,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, scaling_config=scaling_config, **options)
        elastic = scaling_config.elasticity_enabled
        self._scaling = UsableSizes(scaling_config, sizes, key) if elastic else FixedSize(scaling_config)
        self._failures = RestartsWithoutProgress(failures, checkpoints)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leaves Ctrl-C to Python: Ray's handler asks the controller, which may not listen, and outlives the stage."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [one for one in super()._create_default_callbacks() if not isinstance(one, _NOT_NEEDED)]
        return [*callbacks, EndSynchronizationActor()]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        os.environ.setdefault(ENABLE_PREEMPTION_WATCHER_ENV_VAR, "0")  # TellWorkers looks for nodes that leave
        return super()._initialize_and_run_controller(
            **parts | {"scaling_policy": self._scaling, "failure_policy": self._failures}
        )
