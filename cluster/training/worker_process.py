"""A process that trains: an actor of Ray whose main thread listens, while another of its threads trains.

1. `place`     where it is, and which GPUs Ray gave to it
2. `prepare`   imports torch, DeepSpeed and the stage's code, which is most of a start
3. `join`      torch.distributed, with the other workers of its group
4. `train`     begins a stage in a thread of its own; `wait` says how it ended; `end` asks it to end early
5. `reset`     forgets the stage: a later one of the same command finds the imports done (warm_workers.py)

Python runs signal handlers in the main thread alone, and only while that runs Python: `wait` does, all the time.
Imports neither torch nor Ray by itself: the driver imports it, too.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from cluster.session.head_watch import watch_head
from cluster.session.ray_processes import listen_again
from cluster.session.worker_output import keep_own_warnings
from cluster.training.notices import FirstNotice, end_now, notices_here
from cluster.training.rendezvous import Meeting, free_port, join_group
from data_pipeline.errors import UsageError
from data_pipeline.node.host_memory import keep_freed_memory, release_freed_memory
from foldtrain import refusal
from trainer.loop.ending import Ending, EndRequest

if TYPE_CHECKING:
    from trainer.job import TrainJob

_WATCHERS = 4
"""Ranks that ask whether Ray's head is there: all end if one does, and hundreds would be a load for the head."""


@dataclass(frozen=True)
class Place:
    """Where a worker is."""

    node: str
    """Ray's id of its node."""
    address: str
    """At which other nodes reach that node."""
    gpus: tuple[str, ...]
    """Ids of the GPUs that Ray gave to it."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended on one worker."""

    ending: Ending | None = None
    """None if it failed."""
    step: int = 0
    """Steps that are done."""
    error: BaseException | None = None
    trace: str = ""
    """The traceback of the error, as text."""


class TrainWorker:
    """One of the workers of a group.

    Args:
        threads: that it computes with.
    """

    def __init__(self, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._threads = threads
        self._gpu: int | None = None
        self._request = EndRequest()
        self._notices = FirstNotice()
        self._signalled = Ending.STOPPED
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._watches_head = False

    def place(self) -> Place:
        """Where it is.

        Raises:
            UsageError: if modules of other code stand before foldtrain's here.
        """
        if reason := refusal():
            raise UsageError(f"on {socket.gethostname()}: {reason}")
        keep_own_warnings()
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return Place(ray.get_runtime_context().get_node_id(), address, tuple(map(str, gpus)))

    def prepare(self, stage: str, visible: tuple[str, ...], gpu: int | None) -> None:
        """Import what a stage needs.

        Args:
            stage: its name.
            visible: ids of the GPUs of all workers on this node: those of NCCL have to see each other's.
            gpu: index of the own one among them; None for the CPU.
        """
        self._gpu = gpu
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
        self.import_stage(stage)
        import torch

        torch.set_num_threads(self._threads)
        if gpu is None:
            keep_freed_memory()

    def import_stage(self, stage: str) -> None:
        """Import what a stage needs, in a process that is prepared already, too."""
        from trainer.loop.libraries import import_stage

        import_stage(stage, "cpu" if self._gpu is None else "cuda")

    def port(self) -> int:
        """A free port of its node, where others can meet it."""
        return free_port()

    def join(self, meeting: Meeting) -> None:
        """Connect with the other workers; returns when all are there."""
        join_group(meeting)
        if meeting.rank < _WATCHERS and not self._watches_head:
            self._watches_head = True
            watch_head(lambda: self.end(Ending.STOPPED)).start()

    def train(self, job: TrainJob, asked: float, signalled: Ending) -> None:
        """Begin to train; returns at once.

        Args:
            job: the stage.
            asked: unix time at which it was asked for, seconds.
            signalled: what a signal to this process asks for. A stage of a fixed size cannot go on without it; an
                elastic one can.
        """
        self._request, self._notices, self._signalled = EndRequest(), FirstNotice(), signalled
        self._outcome = None
        self._ended.clear()
        for number in notices_here():  # in place of Ray's handler, which exits
            signal.signal(number, self._on_signal)
        listen_again()
        threading.Thread(target=self._run, args=(job, asked), name="training", daemon=True).start()

    def wait(self, seconds: float) -> Outcome | None:
        """How the stage ended; None if it has not, after so long."""
        self._ended.wait(seconds)
        return self._outcome

    def end(self, ending: Ending) -> None:
        """Ask the stage to end so, after the step under way."""
        if ending is Ending.STOPPED:
            self._request.stop()
        else:
            self._request.pause()

    def checkpoint(self) -> None:
        """Have the stage save a checkpoint after the step under way or the next, and go on."""
        self._request.checkpoint()

    def note(self, event: str, details: dict[str, Any]) -> None:
        """Have the stage record an event, after the step under way."""
        self._request.note(event, details)

    def reset(self) -> None:
        """Forget the stage that has ended."""
        self._outcome = None
        if "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()
        gc.collect()
        release_freed_memory()

    def _run(self, job: TrainJob, asked: float) -> None:
        """In the thread that trains."""
        try:
            from trainer.engine.device import given_device
            from trainer.loop.worker import run_worker

            device = given_device(0 if self._gpu is None else 1, self._gpu)
            ending, step = run_worker(job, device, self._request, asked)
            outcome = Outcome(ending, step)
        except BaseException as error:  # whatever it is, the driver has to know
            outcome = Outcome(error=_portable(error), trace=traceback.format_exc())
        self._outcome = outcome
        self._ended.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._notices.is_second(number):
            end_now(number)
        self.end(self._signalled)


def _portable(error: BaseException) -> BaseException:
    """The error, or what can be sent of one that cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any class, from any library
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def actor_class() -> Any:
    """The class as Ray's actors have it. It is not started again by Ray: a group is, as a whole."""
    import ray

    return ray.remote(max_restarts=0)(TrainWorker)
