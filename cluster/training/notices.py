"""Notices that a training stage is to end: a signal to the command, to a worker or to all, or a node that leaves.

    command      a signal sets a flag in the key-value store of Ray's head, which all nodes reach
    controller   Ray Train's; looks at the flag whenever it polls the workers (every 2 s), and tells them
    worker       ends after the step under way, with a checkpoint; all ranks agree on it between two steps

Nothing of it is in the path of training. A batch system that warns before it ends a job sends its signal to the
command (`#SBATCH --signal=B:USR1@300` and a shell that passes it on, SIGTERM from Kubernetes) or to every process of it
(scancel, systemd, `timeout`; SIGHUP where a terminal closes), some of them twice: Ray's own processes do not listen
(cluster/session/ray_processes.py), and a repetition within a second is the same notice. A node that Ray drains (a spot
instance about to go, `ray drain-node`, SIGTERM to `ray start --block`) makes the workers pause.

Without Ray's head nobody can pass anything on: the workers end by themselves then, and the command with an error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback

from cluster.session.head_watch import HeadLostError, watch_head
from cluster.session.ray_processes import NOTICES, listen_again
from trainer.loop.ending import Ending, EndRequest

_SAME_SECONDS = 1.0
"""`timeout` signals its command and then its group, a closing terminal does as much: these are one notice."""
_WATCHERS = 4
"""Ranks that ask whether Ray's head is there: all end if one does, and hundreds would be a load for the head."""
_NAMESPACE = "foldtrain"


def notices_here() -> tuple[signal.Signals, ...]:
    """The signals that are notices to this process; not SIGHUP under nohup. A second one ends the process at once."""
    return tuple(number for number in NOTICES if signal.getsignal(number) is not signal.SIG_IGN)


class FirstNotice:
    """Tells a further notice from the first one, which may come twice."""

    def __init__(self) -> None:
        self.received = False
        self._at = 0.0

    def is_second(self, number: int) -> bool:
        """Whether a notice has come before this one, and was another. Called by signal handlers."""
        now = time.monotonic()
        if not self.received:
            self.received, self._at = True, now
            return False
        return number != signal.SIGHUP and now - self._at > _SAME_SECONDS


REQUEST = EndRequest()
"""In a worker: what the training loop of this process is asked for. Each start of a worker is a new process."""


def end_now(number: int) -> None:
    """End this process as the signal does by default."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Notice:
    """In the command: listens for signals, as long as it is entered. Ray has to be connected.

    Args:
        key: name of the run for its flags, the same as that of `TellWorkers`.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._first = FirstNotice()
        self._idle = False
        self._lost: HeadLostError | None = None
        self._said_so, self._read = False, b""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in notices_here()}
        return self

    @property
    def received(self) -> bool:
        """Whether a notice has come."""
        return self._first.received

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        if self._lost is not None and kind is SystemExit:
            raise self._lost
        with contextlib.suppress(RayError):
            internal_kv._internal_kv_del(self._key, del_by_prefix=True, namespace=_NAMESPACE)
        return self._idle and kind is SystemExit

    def end_without_head(self, error: HeadLostError) -> None:
        """Have the main thread leave whatever call of Ray it waits in, and raise this. From any thread."""
        self._lost = error
        if self._before:
            os.kill(os.getpid(), signal.SIGUSR1)

    def news(self) -> list[str]:
        """What there is to say of the run since the last call: a signal came, or its controller said it. One thread."""
        texts = []
        if self.received and not self._said_so:
            self._said_so = True
            texts.append("told to end: the workers save a checkpoint after the step under way (a second ends at once)")
        with contextlib.suppress(RayError):  # a head that is away for a moment: read at the next call
            for name in sorted(internal_kv._internal_kv_list(_said(self._key), namespace=_NAMESPACE)):
                if name > self._read:
                    texts.append(internal_kv._internal_kv_get(name, namespace=_NAMESPACE).decode())
                    self._read = name
        return texts

    def has_workers(self) -> bool:
        """Whether the workers of the run are up."""
        with contextlib.suppress(RayError):
            return bool(internal_kv._internal_kv_exists(_running(self._key), namespace=_NAMESPACE))
        return False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._idle or self._lost is not None:
            raise SystemExit(0)  # out of Ray's call, which lets nothing else pass; __exit__ keeps it
        again = self.received
        if self._first.is_second(number):
            end_now(number)
        if again:
            return
        # Not here: the main thread may be anywhere inside of Ray.
        threading.Thread(target=self._tell, args=(number,), daemon=True).start()

    def _tell(self, number: int) -> None:
        with contextlib.suppress(RayError):
            internal_kv._internal_kv_put(_stop(self._key), b"1", namespace=_NAMESPACE)
            if internal_kv._internal_kv_exists(_running(self._key), namespace=_NAMESPACE):
                return
        self._idle = True  # no workers, so nothing to save: they wait for room, or a start is under way
        os.kill(os.getpid(), number)


def _stop(key: str) -> str:
    return f"{key}/stop"


def _running(key: str) -> str:
    return f"{key}/running"


def _said(key: str) -> str:
    return f"{key}/said/"


class Voice:
    """On the controller: has the command print lines about its run.

    Args:
        key: name of the run.
    """

    def __init__(self, key: str) -> None:
        self._key, self._last = key, ""

    def say(self, text: str) -> None:
        """Print it, unless it is what was said last."""
        if text == self._last:
            return
        self._last = text
        with contextlib.suppress(RayError):
            name = f"{_said(self._key)}{time.time_ns():020d}"  # in the order of time
            internal_kv._internal_kv_put(name, text.encode(), namespace=_NAMESPACE)


class TellWorkers(WorkerGroupCallback):
    """On Ray Train's controller: passes notices on to all workers.

    Args:
        key: name of the run for its flags.
    """

    def __init__(self, key: str) -> None:
        self._key, self._voice = key, Voice(key)
        self._workers: Sequence[Any] = ()

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Put on record that there are workers to tell."""
        self._workers = tuple(worker_group.get_workers())
        with contextlib.suppress(RayError):
            internal_kv._internal_kv_put(_running(self._key), b"1", namespace=_NAMESPACE)

    def before_worker_group_shutdown(self, worker_group: Any) -> None:  # noqa: ARG002 - Ray's
        """Put on record that there are none."""
        self._forget_workers()

    def _forget_workers(self) -> None:
        self._workers = ()
        with contextlib.suppress(RayError):
            internal_kv._internal_kv_del(_running(self._key), namespace=_NAMESPACE)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Tell them, again and again until they have ended."""
        if worker_group_status.errors:
            self._forget_workers()  # nobody polls them from now on
            return
        with contextlib.suppress(RayError):  # a head that is away for a moment ends nothing
            if internal_kv._internal_kv_exists(_stop(self._key), namespace=_NAMESPACE):
                ask_workers(self._workers, Ending.STOPPED)
            elif leaving_nodes() & {worker.metadata.node_id for worker in self._workers}:
                self._voice.say("a node will leave: saves a checkpoint, and goes on without it")
                ask_workers(self._workers, Ending.PAUSED)


def leaving_nodes() -> set[str]:
    """Ids of the nodes that Ray drains: they are about to go."""
    return set(ray._private.state.state.get_draining_nodes())


def ask_workers(workers: Sequence[Any], ending: Ending) -> None:
    """Ask workers of Ray Train to end so; returns at once."""
    for worker in workers:
        worker.execute_async(ask_here, ending)


def ask_here(ending: Ending) -> None:
    """Ask the training loop of this process to end so."""
    if ending is Ending.STOPPED:
        REQUEST.stop()
    else:
        REQUEST.pause()


class ListenForSignals(WorkerCallback):
    """On each worker, in its main thread: signals ask for the end, in place of Ray's handler, which exits.

    Args:
        ending: what a signal to a worker asks for. A stage of a fixed size cannot go on without it; an elastic one can.
    """

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._first = FirstNotice()

    def after_init_train_context(self) -> None:
        """Begin to listen, and to ask whether Ray's head is there."""
        for number in notices_here():
            signal.signal(number, self._on_signal)
        listen_again()
        if ray.train.get_context().get_world_rank() < _WATCHERS:
            watch_head(REQUEST.stop).start()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._first.is_second(number):
            end_now(number)
        ask_here(self._ending)


def key_of_run() -> str:
    """A name for the flags of this command's run, of which no other command has the like."""
    return f"training-{ray.get_runtime_context().get_job_id()}-{os.urandom(4).hex()}"
