"""How often a stage is started again: nodes get lost all the time, so what counts is whether it gets any further."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Lose = Callable[[], str]


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[int], Lose]:
    """Of a policy with so many failures, what is decided when a worker is lost."""
    # Here, as tests that start a cluster have to set Ray's environment before it is imported.
    from ray.train import WorkerGroupError
    from ray.train.v2.api.config import FailureConfig

    from cluster.elastic_policy import RestartsWithoutProgress

    def make(max_failures: int) -> Lose:
        one = RestartsWithoutProgress(FailureConfig(max_failures=max_failures), str(tmp_path))
        lost = WorkerGroupError("a worker is gone", {0: RuntimeError("connection closed by peer")})
        return lambda: one.make_decision(lost).value

    return make


def save_checkpoint(folder: Path, step: int) -> None:
    (folder / f"step_{step:08d}").mkdir()
    (folder / f"step_{step:08d}" / "COMPLETE").touch()


def test_restarts_that_get_no_further_come_to_an_end(policy: Callable[[int], Lose]) -> None:
    lose = policy(2)
    assert [lose(), lose(), lose()] == ["RETRY", "RETRY", "RAISE"]


def test_a_new_checkpoint_starts_the_count_again(policy: Callable[[int], Lose], tmp_path: Path) -> None:
    lose = policy(1)
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step)
        assert lose() == "RETRY"
    assert lose() == "RAISE"


def test_a_checkpoint_that_is_not_complete_is_no_progress(policy: Callable[[int], Lose], tmp_path: Path) -> None:
    lose = policy(1)
    lose()
    (tmp_path / "step_00000010").mkdir()
    assert lose() == "RAISE"
