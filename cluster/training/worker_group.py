"""The workers of a stage on a Ray cluster: a reservation of what they need, and an actor on each part of it.

Ray holds the reservation (a placement group) for as long as the group works. Workers on CPUs are actors beside it, on
the nodes that it is on: so a group that waits for its next stage keeps its processes, and reserves nothing meanwhile.
Those on GPUs are inside of it, as Ray has to say which GPU is whose.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.training.rendezvous import arrange
from cluster.training.worker_process import Outcome, Place, actor_class
from trainer.job import TrainJob
from trainer.loop.ending import Ending

Check = Callable[[], None]
"""Called again and again while something is waited for; it may raise to end the wait."""

_LOOK_SECONDS = 0.2
"""Between two calls of it."""
_WAIT_SECONDS = 1.0
"""For which a worker waits for the end of its stage, at each question."""


@dataclass(frozen=True)
class Needs:
    """What each worker of a group reserves."""

    cpus: float
    gpus: int
    without: frozenset[str] = frozenset()
    """Ray's ids of nodes that no worker may be on."""

    @property
    def threads(self) -> int:
        """That it computes with."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": float(self.gpus)} if self.gpus else {})


class NoRoomError(Exception):
    """The cluster had no room for the group within the time that it was given."""


class WorkerGroup:
    """Workers that are up and connected with each other.

    Args:
        needs: of each.
        reservation: Ray's placement group.
        workers: actors, by rank.
        nodes: Ray's id of each one's node, by rank.
    """

    def __init__(self, needs: Needs, reservation: Any, workers: Sequence[Any], nodes: Sequence[str]) -> None:
        self.needs, self.nodes = needs, tuple(nodes)
        self._reservation, self._workers = reservation, tuple(workers)
        self._left: set[int] = set()
        self._asked: dict[Any, int] = {}

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self._workers)

    def prepare(self, stage: str, check: Check) -> None:
        """Have workers that are up already import what a further stage needs, and see that all of them answer."""
        _wait_for([worker.import_stage.remote(stage) for worker in self._workers], check)

    def train(self, job: TrainJob, asked: float, signalled: Ending, check: Check) -> None:
        """Have all of them begin a stage, see `TrainWorker.train`."""
        _wait_for([worker.train.remote(job, asked, signalled) for worker in self._workers], check)
        self._left = set(range(self.size))

    def ended(self, seconds: float) -> dict[int, Outcome | Exception]:
        """Those workers, by rank, whose stage has ended since the last call, or that are lost (with Ray's error).

        Args:
            seconds: for which the first of them is waited for.
        """
        import ray
        from ray.exceptions import RayError

        for rank in self._left - set(self._asked.values()):
            self._asked[self._workers[rank].wait.remote(_WAIT_SECONDS)] = rank
        ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=seconds) if self._asked else ([], [])
        found: dict[int, Outcome | Exception] = {}
        for answer in ready:
            rank = self._asked.pop(answer)
            try:
                outcome = ray.get(answer)
            except RayError as error:
                outcome = error
            if outcome is not None:
                found[rank] = outcome
                self._left.discard(rank)
        return found

    @property
    def is_training(self) -> bool:
        """Whether the end of a worker's stage is still to come."""
        return bool(self._left)

    def end(self, ending: Ending) -> None:
        """Ask all of them to end so, after the step under way; returns at once."""
        for worker in self._workers:
            worker.end.remote(ending)

    def checkpoint(self) -> None:
        """Have the stage save a checkpoint, and go on; returns at once."""
        self._workers[0].checkpoint.remote()  # the others agree to it beside a step

    def note(self, event: str, details: dict[str, Any]) -> None:
        """Have the stage record an event, by who writes its records; returns at once."""
        self._workers[0].note.remote(event, details)

    def park(self) -> bool:
        """Keep the processes for a later stage, and hand back what they reserve. Returns whether that can be done."""
        if self.needs.gpus:
            return False
        self._forget_reservation()
        for worker in self._workers:
            worker.reset.remote()
        return True

    def reserve_again(self, check: Check, seconds: float) -> bool:
        """Reserve what a parked group needs. Returns whether the room is where its processes are.

        Raises:
            NoRoomError: if there is none after so many seconds.
        """
        self._reservation = _reserve(self.needs, self.size, check, seconds)
        return sorted(_nodes_of(self._reservation)) == sorted(self.nodes)

    def dismiss(self) -> None:
        """End all of its processes, whatever they do, and hand back what they reserve."""
        import ray
        from ray.exceptions import RayError

        for worker in self._workers:
            with contextlib.suppress(RayError):
                ray.kill(worker)
        self._forget_reservation()

    def _forget_reservation(self) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            remove_room(reservation)


def start_group(
    needs: Needs, size: int, stage: str, folder: Path, check: Check, seconds: float = float("inf")
) -> WorkerGroup:
    """New workers, up, with the imports of a stage done, and connected.

    Args:
        needs: of each.
        size: how many.
        stage: that they will train first.
        folder: of this user alone, for those that are all on this node.
        check: called while they are waited for.
        seconds: for which room for them is waited for.

    Raises:
        NoRoomError: if there is none by then.
        RayError: if one is lost meanwhile.
    """
    reservation = _reserve(needs, size, check, seconds)
    workers = [_start_worker(needs, reservation, number, node) for number, node in enumerate(_nodes_of(reservation))]
    group = WorkerGroup(needs, reservation, workers, ())
    try:
        return _connected(needs, reservation, workers, stage, folder, check)
    except Exception:  # what ends the command ends them with it
        group.dismiss()
        raise


def _connected(
    needs: Needs, reservation: Any, started: Sequence[Any], stage: str, folder: Path, check: Check
) -> WorkerGroup:
    """The group of these workers, with those of a node one after the other, in the order of their GPUs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    places: list[Place] = _wait_for([worker.place.remote() for worker in started], check)
    order = [place.node for place in places]
    pairs = sorted(zip(places, started, strict=True), key=lambda pair: (order.index(pair[0].node), pair[0].gpus))
    nodes, workers = [place.node for place, _ in pairs], [worker for _, worker in pairs]
    _wait_for([_prepare(worker, stage, place, places) for place, worker in pairs], check)
    meetings = arrange("nccl" if needs.gpus else "gloo", nodes, here, folder)
    if not meetings[0].file:
        (port,) = _wait_for([workers[0].port.remote()], check)
        meetings = [replace(meeting, address=pairs[0][0].address, port=port) for meeting in meetings]
    _wait_for([worker.join.remote(meeting) for worker, meeting in zip(workers, meetings, strict=True)], check)
    return WorkerGroup(needs, reservation, workers, nodes)


def _prepare(worker: Any, stage: str, place: Place, places: Sequence[Place]) -> Any:
    """Begin with its imports. Workers of a node see the GPUs of all of them, or NCCL could not pass memory directly."""
    visible = tuple(sorted({gpu for other in places if other.node == place.node for gpu in other.gpus}))
    return worker.prepare.remote(stage, visible, visible.index(place.gpus[0]) if place.gpus else None)


def _start_worker(needs: Needs, reservation: Any, number: int, node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

    if needs.gpus:
        inside = PlacementGroupSchedulingStrategy(reservation, placement_group_bundle_index=number)
        options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "scheduling_strategy": inside}
    else:
        options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
    return actor_class().options(**options).remote(needs.threads)


def ask_for_room(needs: Needs, size: int) -> Any:
    """A placement group for so many workers, which Ray has not placed yet."""
    from ray.util.placement_group import placement_group

    elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(needs.without))})"}
    selectors = [elsewhere] * size if needs.without else None
    return placement_group([needs.resources] * size, strategy="PACK", bundle_label_selector=selectors)


def is_room(reservation: Any) -> bool:
    """Whether Ray has placed it."""
    from ray.util.placement_group import placement_group_table

    return bool(placement_group_table(reservation).get("state") == "CREATED")


def remove_room(reservation: Any) -> None:
    """Hand it back, if Ray still knows it."""
    from ray.exceptions import RayError
    from ray.util.placement_group import remove_placement_group

    with contextlib.suppress(RayError):
        remove_placement_group(reservation)


def _reserve(needs: Needs, size: int, check: Check, seconds: float) -> Any:
    """Room for so many workers, as soon as there is some; NoRoomError if there is none by then."""
    reservation = ask_for_room(needs, size)
    began = time.monotonic()
    try:
        while not (there := reservation.wait(_LOOK_SECONDS)) and time.monotonic() - began < seconds:
            check()
    except Exception:  # what ends the command ends this with it
        remove_room(reservation)
        raise
    if not there:
        remove_room(reservation)
        raise NoRoomError
    return reservation


def _nodes_of(reservation: Any) -> list[str]:
    """Ray's id of the node of each part of a reservation."""
    from ray.util.placement_group import placement_group_table

    nodes = placement_group_table(reservation)["bundles_to_node_id"]
    return [nodes[number] for number in sorted(nodes)]


def _wait_for(answers: Sequence[Any], check: Check) -> list[Any]:
    """What Ray's workers answer, once all have, or the error of the first that cannot."""
    import ray

    left = list(answers)
    while left:
        ready, left = ray.wait(left, num_returns=len(left), timeout=_LOOK_SECONDS)
        ray.get(ready)  # raises at once, however long the others take
        check()
    return list(ray.get(list(answers)))
