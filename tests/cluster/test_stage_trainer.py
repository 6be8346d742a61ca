"""What Ray Train starts beside the workers of a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    # Here, as tests that start a cluster have to set Ray's environment before it is imported.
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

    from cluster.training.stage_trainer import StageTrainer

    return StageTrainer(
        print,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path)),
        failures=FailureConfig(),
        sizes=(2,),
        key="a run",
        checkpoints=str(tmp_path),
    )


def test_helpers_that_a_stage_has_no_use_for_are_left_out(trainer: Any) -> None:
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    theirs = {type(callback).__name__ for callback in TorchTrainer._create_default_callbacks(trainer)}
    ours = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert theirs - ours == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert ours - theirs == {"EndSynchronizationActor"}


def test_a_stage_of_one_size_asks_no_autoscaler_actor(trainer: Any) -> None:
    policy = trainer._scaling
    policy.after_controller_start(None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert policy._coordinator_client is None
