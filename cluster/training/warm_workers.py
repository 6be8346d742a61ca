"""Workers between two stages of one command: their processes stay, with all that they have imported.

Of a stage that is finished the group is parked: it hands back what it reserves, so that others can have the room, and
forgets the stage. The next stage takes it if it is what that one needs: as many workers with as many CPUs, in the same
places. Any other end of a stage ends the processes, too, as does ZeRO 3 (DeepSpeed changes torch in its process), and
the end of the command's Ray.
"""

from __future__ import annotations

from cluster.training.worker_group import Check, Needs, WorkerGroup

_PARKED: dict[str, WorkerGroup] = {}
"""By Ray's id of the job, which a command has for as long as it is connected."""


def park(group: WorkerGroup) -> None:
    """Keep a group for the next stage, if its workers can wait without what they reserve."""
    if group.park():
        _PARKED[_job()] = group
    else:
        group.dismiss()


def take(needs: Needs, size: int, stage: str, check: Check, seconds: float = float("inf")) -> WorkerGroup | None:
    """The group that is parked, ready for a stage; None if there is none, or it does not fit: then it is dismissed.

    Args:
        needs: of each worker.
        size: the number of workers.
        stage: that they will train.
        check: called while they are waited for.
        seconds: for which room for them is waited for.

    Raises:
        NoRoomError: if there is none by then.
    """
    from ray.exceptions import RayError

    group = _PARKED.pop(_job(), None)
    if group is None:
        return None
    try:
        if (group.needs, group.size) == (needs, size) and group.reserve_again(check, seconds):
            group.prepare(stage, check)
            return group
    except RayError:  # one of its processes is gone
        pass
    except Exception:
        group.dismiss()
        raise
    group.dismiss()
    return None


def _job() -> str:
    import ray

    return str(ray.get_runtime_context().get_job_id())
