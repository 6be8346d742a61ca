"""Ray's own processes of a cluster that a command starts: the head (GCS), the raylet, and the workers below it.

A batch system, `timeout`, systemd and a terminal that closes send their signal to every process of a job. The command
then has its training saved, for which Ray has to be there: so Ray's processes block these signals from their start, and
all that they start inherits that (training workers listen again, see cluster/training/notices.py). They end with the
command: by its own call, or by the kernel if it is killed.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals that ask a whole job to end."""
_END_SECONDS = 5.0


@contextmanager
def deaf_to_notices() -> Iterator[None]:
    """Ray's processes that are started while it is entered block `NOTICES`."""
    from ray._private import services

    ours: Any = services  # Ray has no setting for how it starts its processes
    before = ours.ConsolePopen
    ours.ConsolePopen = _deaf(before)
    try:
        yield
    finally:
        ours.ConsolePopen = before


@contextmanager
def without_helpers() -> Iterator[None]:
    """A head that is started while it is entered has none of the helpers that a cluster of one machine can do without.

    Left out are the API server, for whose first answer a start waits although it serves no dashboard, and the
    autoscaler's monitor. The agent beside the raylet is the one of a Ray that was installed without a dashboard.
    """
    from ray._private import node, utils

    theirs: Any = node.Node  # Ray has no setting for it
    helpers: Any = utils
    before = theirs.start_api_server, theirs.start_monitor, helpers.get_dashboard_dependency_error
    theirs.start_api_server = theirs.start_monitor = lambda *_, **__: None
    helpers.get_dashboard_dependency_error = lambda: ImportError("no dashboard is asked for")
    try:
        yield
    finally:
        theirs.start_api_server, theirs.start_monitor, helpers.get_dashboard_dependency_error = before


def _deaf(popen: Any) -> Any:
    class Deaf(popen):  # type: ignore[misc] # a class of Ray's
        """A process that blocks the signals; it ends at once, with all that descends from it."""

        def __init__(self, *arguments: Any, preexec_fn: Callable[[], None] | None = None, **options: Any) -> None:
            def before_exec() -> None:
                signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
                if preexec_fn is not None:
                    preexec_fn()

            super().__init__(*arguments, preexec_fn=before_exec, **options)

        def terminate(self) -> None:
            end_tree(self.pid)

    return Deaf


def end_tree(pid: int) -> None:
    """End a process and all that descends from it by kill -9; returns when those that descend from it are gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        process.suspend()  # so that it starts none meanwhile
        below = process.children(recursive=True)
        process.kill()
    except psutil.NoSuchProcess:
        return
    for each in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(below, timeout=_END_SECONDS)


def abandon() -> None:
    """Leave a cluster without its head: end the processes that were started here, and have nothing wait for it."""
    import atexit

    from ray._private import worker

    atexit.unregister(worker.shutdown)
    node: Any = worker._global_node
    started = [each for processes in node.all_processes.values() for each in processes] if node else []
    for each in started:
        end_tree(each.process.pid)


def own_raylet_has_ended() -> bool:
    """Whether the raylet of a cluster that this process started has ended: killed, out of memory, or at its start.

    Its workers end with it.
    """
    from ray._private import worker

    node: Any = worker._global_node
    raylets = node.all_processes.get("raylet", []) if node else []
    return any(each.process.poll() is not None for each in raylets)


def listen_again() -> None:
    """In a worker that handles the notices itself: stop blocking them in this thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTICES)


def without_search_path() -> Any:
    """Settings of a Ray job whose workers look for modules where their own Python does, and nowhere else.

    Ray puts the driver's working directory and its script's first on the workers' path, where a `model.py` or `yaml.py`
    of somebody's own training code would be imported in place of what is installed.
    """
    from ray.job_config import JobConfig

    class WithoutSearchPath(JobConfig):
        def _get_proto_job_config(self) -> Any:
            message = super()._get_proto_job_config()  # type: ignore[no-untyped-call] # Ray's
            del message.py_driver_sys_path[:]
            return message

    return WithoutSearchPath()
