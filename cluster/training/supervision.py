"""Keeping a stage at work: workers are started, watched, told of notices, and started again when one is lost.

    a worker or a node is lost     all are ended and started again, `cluster.max_failures` times without a checkpoint
    an error that a user mends     ends the stage at once, as it was raised
    a notice to the command        all are asked to stop; before they are up there is nothing to save, and it ends
    a node that is about to go,    all are asked to pause: they end with a checkpoint, and the next start has another
    `foldtrain scale`, or room     size, or another node
    for more, if that pays

It runs in the command itself: when that ends, however it ends, Ray ends what belongs to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cluster.config.run import ClusterConfig
from cluster.session.worker_errors import lost_process, user_error
from cluster.training import warm_workers
from cluster.training.elastic_policy import Cluster, Restarts, Room, UsableSizes, Without
from cluster.training.failures import WorkersFailedError, last_error
from cluster.training.growing import Growing, Reservations
from cluster.training.growth import Growth, read_pace
from cluster.training.notices import Notice
from cluster.training.size_control import SizeControl
from cluster.training.worker_group import Needs, NoRoomError, WorkerGroup, start_group
from cluster.training.worker_process import Outcome
from trainer.job import TrainJob
from trainer.loop.ending import Ending

_LOOK_SECONDS = 0.5
"""Between two looks at notices, while workers train."""
_NODES_SECONDS = 2.0
"""Between two looks for nodes that leave."""
_CONTROL_SECONDS = 5.0
"""Between two looks at what `foldtrain scale` asks for."""
_ROOM_SECONDS = 20.0
"""For the room of an elastic start, which was there when it was chosen: if a node died since, it is chosen again."""
_OTHERS_SECONDS = 3.0
"""For which other workers may say how they failed, too: the first to do so is often one that lost its peer."""


class NoticedError(Exception):
    """A notice came before there were workers."""


class ResizedError(Exception):
    """Another number of workers is asked for than is being started."""


class Supervisor:
    """The driver's side of a stage.

    Args:
        job: the stage.
        cluster: what workers need.
        control: how many there may be.
        notice: through which the command is told to end.
        nodes: of the cluster.
        folder: where workers on this node meet, for this user alone.
        asked: unix time at which the stage was asked for, seconds.
        without: Ray's ids of nodes that are not used.
        lost: is told in a line of processes and nodes that are gone, or about to go.
        own: Ray's id of the node that this command is on; empty if it does not matter.
    """

    def __init__(
        self,
        job: TrainJob,
        cluster: ClusterConfig,
        control: SizeControl,
        notice: Notice,
        nodes: Cluster,
        folder: Path,
        asked: float,
        without: frozenset[str] = frozenset(),
        lost: Callable[[str], None] = lambda _what: None,
        own: str = "",
    ) -> None:
        self._nodes, self._lost, self._leaves, self._own = nodes, lost, False, own
        self._declined: list[Growth] = []
        self._job, self._cluster, self._notice, self._folder, self._asked = job, cluster, notice, folder, asked
        self._needs = Needs(cluster.cpus_per_worker, cluster.gpus_per_worker, without)
        self._control, self._room = control, Room(self._needs.resources, Without(nodes, without))
        self._choice = UsableSizes(control.sizes, self._room, notice.say)
        demand = Reservations(self._needs)
        self._growing = Growing(self._room, demand, lambda: read_pace(job.folder), self._declined.append)
        self._restarts = Restarts(cluster.max_failures, job.checkpoints)
        self._looked_for_nodes = self._looked_for_room = self._looked_at_control = 0.0

    def run(self) -> tuple[Ending, int]:
        """Train until it is finished or told to stop. Returns why it ended, and after which step.

        Raises:
            FoldtrainError: as a worker raised it, or for processes that were lost too often.
            WorkersFailedError: for all else that failed too often.
        """
        self._obey_control(None)
        while not self._notice.received:
            try:
                group = self._start()
            except (NoRoomError, ResizedError):
                continue
            except NoticedError:
                break
            except WorkersFailedError as failed:
                self._count(failed)
                continue
            ending, step = self._train(group)
            if ending is not None and ending is not Ending.PAUSED:
                return ending, step
        return Ending.STOPPED, 0

    def _start(self) -> WorkerGroup:
        """Workers that are up."""
        from ray.exceptions import RayError

        size, stage = self._size(), self._job.stage
        seconds = _ROOM_SECONDS if self._control.is_elastic else float("inf")
        try:
            if group := warm_workers.take(self._needs, size, stage, self._check, seconds):
                return group
            return start_group(self._needs, size, stage, self._folder, self._check, seconds)
        except RayError as error:
            raise WorkersFailedError({0: error}) from error

    def _check(self) -> None:
        """Called while workers start, or wait for room."""
        if self._notice.received:
            raise NoticedError
        if self._is_time_for_control(time.monotonic()) and self._obey_control(None):
            raise ResizedError

    def _size(self) -> int:
        """With how many workers to start, as soon as there is room for them."""
        if not self._control.is_elastic:
            return self._control.sizes[-1]
        while (size := self._choice.to_start()) is None:
            self._check()
            time.sleep(_LOOK_SECONDS)
        return size

    def _train(self, group: WorkerGroup) -> tuple[Ending | None, int]:
        """Train on a group until all of it has ended. None for one that failed, and may be started again."""
        self._choice.came_up()
        self._notice.workers_are_up, self._leaves = True, False
        self._looked_for_room = self._looked_at_control = time.monotonic()
        signalled = Ending.PAUSED if self._control.is_elastic else Ending.STOPPED
        try:
            group.train(self._control.applied(self._job), self._asked, signalled, lambda: None)
            first = self._watch(group)
        except WorkersFailedError as failed:
            group.dismiss()
            self._count(failed)
            return None, 0
        finally:
            self._notice.workers_are_up = False
            self._growing.release()
        leaves_traces = self._job.section.trainer.zero_stage == 3  # DeepSpeed replaces torch's linear() for good
        if first.ending is Ending.FINISHED and not leaves_traces:
            warm_workers.park(group)
        else:
            group.dismiss()
        return first.ending, first.step

    def _count(self, failed: WorkersFailedError) -> None:
        """Say that a start failed, or raise what ends the stage."""
        if error := user_error(failed.worker_failures.values()):
            raise error from None
        if any(lost_process(each) is not None for each in failed.worker_failures.values()):
            self._lost(f"a worker's process or its node is gone: {failed.reason}")
        if self._notice.received or not self._restarts.may_restart():  # nobody saves what was told to be saved
            raise last_error(failed) from None
        self._notice.say(f"starts again: {failed.reason}")

    def _watch(self, group: WorkerGroup) -> Outcome:
        """Wait until all workers have ended, and pass on what they are to be told. Returns how the first did."""
        done: dict[int, Outcome] = {}
        failures: dict[int, Outcome | Exception] = {}
        deadline = float("inf")
        while group.is_training and time.monotonic() < deadline:
            for rank, found in group.ended(_LOOK_SECONDS).items():
                if isinstance(found, Outcome) and found.error is None:
                    done[rank] = found
                else:
                    failures[rank] = found
            if failures:
                failed = WorkersFailedError(failures)
                if user_error(failed.worker_failures.values()):
                    break
                deadline = min(deadline, time.monotonic() + _OTHERS_SECONDS)
            else:
                self._tell(group)
        if failures:
            raise WorkersFailedError(failures)
        return done[0]

    def _tell(self, group: WorkerGroup) -> None:
        """Ask workers to end, again and again until they have, if there is a reason."""
        now = time.monotonic()
        if self._notice.received:
            group.end(Ending.STOPPED)
            return
        if now - self._looked_for_nodes >= _NODES_SECONDS:
            self._looked_for_nodes = now
            leaving = self._nodes.leaving()
            if self._own in leaving:
                self._notice.leave("this command's own node will leave: the workers save a checkpoint, and it ends")
                group.end(Ending.STOPPED)
                return
            if leaving & set(group.nodes):
                self._notice.say("a node will leave: saves a checkpoint, and goes on without it")
                if not self._leaves:
                    self._leaves = True
                    self._lost("a node will leave: a checkpoint is saved, and training goes on without it")
                group.end(Ending.PAUSED)
        if self._is_time_for_control(now):
            self._obey_control(group)
        if self._control.is_elastic and now - self._looked_for_room >= self._cluster.grow_seconds:
            self._looked_for_room = now
            self._grow(group)

    def _is_time_for_control(self, now: float) -> bool:
        is_time = now - self._looked_at_control >= _CONTROL_SECONDS
        if is_time:
            self._looked_at_control = now
        return is_time

    def _obey_control(self, group: WorkerGroup | None) -> bool:
        """Take the numbers of workers that `foldtrain scale` asks for; too many of them leave at a checkpoint.

        Returns:
            Whether these have changed.
        """
        said, is_new = self._control.look()
        if said:
            self._notice.say(said)
        if is_new:
            self._choice = UsableSizes(self._control.sizes, self._room, self._notice.say)
            self._looked_for_room = 0.0  # look at once
        if group is None:
            return is_new
        if self._control.take_checkpoint():
            self._notice.say("asked for a checkpoint: it is saved after the step under way")
            group.checkpoint()
        if is_new:
            group.note("scale", dict(zip(("min", "max"), self._control.asked, strict=True)))
        most = self._control.sizes[-1]
        if group.size > most:
            leave = "leaves" if group.size - most == 1 else "leave"
            self._notice.say(f"{group.size - most} of {group.size} workers {leave}: saves a checkpoint, and goes on")
            group.end(Ending.PAUSED)
        return is_new

    def _grow(self, group: WorkerGroup) -> None:
        """Go on with more workers, if there is room for them and it pays; say so if it does not."""
        larger = self._growing.larger(self._control.sizes, group.size)
        while self._declined:
            growth = self._declined.pop()
            self._notice.say(str(growth))
            group.note("growth_declined", growth.facts())
        if larger is not None:
            self._notice.say(f"room for {larger} workers: saves a checkpoint, and goes on with them")
            group.end(Ending.PAUSED)
