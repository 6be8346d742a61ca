"""Which errors of workers end a stage at once, and what a stage ends with that failed too often."""

from __future__ import annotations

import pytest

from cluster.session.worker_errors import lost_process, user_error
from cluster.training.failures import WorkersFailedError, last_error
from cluster.training.worker_process import Outcome
from data_pipeline.errors import CorruptShardError, FoldtrainError, StorageAwayError, UsageError

AWAY, DAMAGED = StorageAwayError("s3://bucket: timed out"), CorruptShardError("images-0001.tar is damaged")
PEER = RuntimeError("connection closed by peer")


@pytest.fixture
def killed() -> Exception:
    """Ray's error for a node that was lost."""
    from ray.exceptions import NodeDiedError  # here, as tests that start a cluster set Ray's environment before it

    return NodeDiedError("its node has crashed\nmore of it")


def failed(*errors: Exception) -> WorkersFailedError:
    """Workers that ended with these errors; one of Ray's is its own, the others were raised in the worker."""
    return WorkersFailedError(
        {
            rank: error
            if type(error).__module__.startswith("ray")
            else Outcome(error=error, trace=f"Traceback {error!r}")
            for rank, error in enumerate(errors)
        }
    )


def test_only_an_error_that_a_user_mends_ends_a_stage_at_once(killed: Exception) -> None:
    assert user_error([PEER, AWAY, killed]) is None
    assert user_error([AWAY, DAMAGED]) is DAMAGED


def test_an_error_of_ours_is_found_in_what_it_was_wrapped_in() -> None:
    wrapped = RuntimeError("while loading")
    wrapped.__cause__ = DAMAGED
    assert user_error([wrapped]) is DAMAGED
    from ray.exceptions import RayTaskError

    by_ray = RayTaskError("place", "Traceback ...", UsageError("modules of other code")).as_instanceof_cause()
    found = user_error([by_ray])
    assert (type(found), str(found)) == (UsageError, "modules of other code")


def test_storage_that_stayed_away_is_what_a_stage_ends_with() -> None:
    assert last_error(failed(PEER, AWAY)) is AWAY


def test_a_process_that_ray_lost_is_told_in_a_sentence(killed: Exception) -> None:
    from ray.exceptions import LocalRayletDiedError

    error = last_error(failed(PEER, killed))
    assert isinstance(error, FoldtrainError)
    assert "Ray lost a process that the stage needs (NodeDiedError): its node has crashed\n" in str(error)
    assert "LocalRayletDiedError" in str(lost_process(LocalRayletDiedError()))


def test_a_bug_shows_the_traceback_of_each_worker() -> None:
    error = last_error(failed(ValueError("a bug"), PEER))
    assert isinstance(error, WorkersFailedError)
    assert "rank 0: Traceback ValueError('a bug')" in str(error)
    assert "rank 1: Traceback RuntimeError" in str(error)


def test_a_bug_in_a_task_of_ray_is_no_lost_process() -> None:
    from ray.exceptions import RayTaskError

    assert lost_process(RayTaskError("run", "Traceback ...", ValueError("a bug"))) is None


def test_the_reason_of_a_restart_names_what_was_lost_before_what_followed(killed: Exception) -> None:
    assert failed(PEER, killed).reason == "rank 1: NodeDiedError"
    assert failed(AWAY, PEER).reason == "rank 0: StorageAwayError: s3://bucket: timed out"
