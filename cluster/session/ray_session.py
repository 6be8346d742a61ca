"""Joining a Ray cluster, or starting one on this machine for as long as a command runs."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cluster.config.run import ClusterConfig
from cluster.session.head_watch import HeadLostError
from cluster.session.job_environment import FILE_VARIABLE
from cluster.session.ray_address import RayAddress, asked_address, probe
from cluster.session.ray_folder import ray_folder
from cluster.session.ray_processes import (
    abandon,
    deaf_to_notices,
    end_tree,
    without_helpers,
    without_search_path,
)
from cluster.session.worker_output import keep_own_warnings, workers_own_words
from cluster.terminal.output import console
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.counted import counted

SPARING = {
    # Ray's helpers look for new log files, events and each other ten times a second, on the cores that train.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # so that the next one counts
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    "RAY_DASHBOARD_AGGREGATOR_AGENT_CHECK_MAIN_THREAD_LIVENESS_INTERVAL_SECONDS": "5",
    "RAY_memory_monitor_refresh_ms": "1000",
    # Ray's own measurements, which nobody reads: a stage has its metrics.
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    # Ray kills all processes that have not heard of its head for so long. Ours end by themselves (head_watch.py).
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
}
"""Ray's settings for a cluster of our own, where it shares the cores with the workers. See docs/decisions.md."""
_OBJECT_STORE_BYTES = 256 * 2**20  # only control messages pass through it: images and tokens go to storage

_STARTS, _LATE = 3, "timed out during startup"
"""Times that a cluster of our own is started before it counts as broken; what Ray says where it is not up in time."""


def is_connected() -> bool:
    """Whether this process has a connection to Ray; does not import it, and another thread may be about to."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return bool(is_initialized and is_initialized())


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """A connection to Ray, shared by all stages of a command.

    Joins `cluster.address` or RAY_ADDRESS; without either a cluster of this machine's CPUs is started, which ends with
    this process however it ends. SIGTERM and SIGHUP end it with exit code 143 or 129, unless a stage listens for them.

    Raises:
        UsageError: if the address has a form that Ray does not take.
        FoldtrainError: if no cluster answers there, or Ray does not start here.
    """
    if is_connected():
        yield
        return
    asked = asked_address(config.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers of our own clusters that reserve no GPU see none; Ray's default leaves them all visible.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if asked is None:
        # Ray's ports are open to whoever can reach the machine, so a cluster of our own asks for a token. Ray reads
        # these once in a process, when it is imported.
        has_token = os.environ.get("RAY_AUTH_MODE") == "token" and "RAY_AUTH_TOKEN" in os.environ
        if not has_token:
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        for name, value in SPARING.items():
            os.environ.setdefault(name, value)
        if not has_token and "ray" in sys.modules:
            _read_environment_again()
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # as `_quiet` says, and before it
    with _terminable() as listen, workers_own_words(), _connected(asked, config):
        listen()
        try:
            yield
        except HeadLostError:
            abandon()
            raise
        except BaseException:
            ray.shutdown()
            raise
        ray.shutdown()


def _read_environment_again() -> None:
    """Have a Ray that somebody else's module has imported already know of the token, too, or it reaches no cluster."""
    library: Any = importlib.import_module("ray._raylet")  # compiled: its types are not all known
    library.Config.initialize("")
    library.AuthenticationTokenLoader.instance().reset_cache()


def require_gpus(config: ClusterConfig, workers: int) -> None:
    """Make sure that so many workers can have their GPUs on the cluster that is connected, now or later.

    Raises:
        UsageError: if the cluster is this machine alone, which gets no further GPUs, and has too few.
    """
    if not config.gpus_per_worker:
        return
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    there = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    if there >= workers:
        return
    gpus = f"{'is' if there == 1 else 'are'} {counted(there, 'GPU')}"
    lack = f"cluster.gpus_per_worker is 1, which makes {workers} for as many workers; there {gpus}"
    if asked_address(config.address) is not None and FILE_VARIABLE not in os.environ:  # other nodes may join
        console().print(f"{lack} in the cluster so far: waiting for more (cluster.gpus_per_worker=0 runs on CPUs)")
        return
    raise UsageError(f"{lack} on this machine: use fewer workers, or cluster.gpus_per_worker=0 for CPUs")


@contextmanager
def _connected(asked: RayAddress | None, config: ClusterConfig) -> Iterator[None]:
    """Ray on the cluster that was asked for, or on one that is started here, whose files go in the end."""
    if asked is not None:
        _init(address=probe(asked))
        yield
        return
    with ray_folder() as folder:
        with deaf_to_notices(), without_helpers():
            _start(_temp_dir=str(folder), **_own_cluster(config))
        yield


class NotUpError(FoldtrainError):
    """A cluster that was started here is not up in time: Ray gives it 30 seconds, however busy the machine is."""


def _start(**options: Any) -> None:
    """Start a cluster here, and again if it is not up in time.

    Raises:
        FoldtrainError: with Ray's reason, if it does not come up.
    """
    for left in reversed(range(_STARTS)):
        there = _children()
        try:
            _init(address="local", **options)
        except NotUpError:
            if not left:
                raise
        else:
            return
        for pid in _children() - there:
            end_tree(pid)
        console().print("Ray was not up within 30 seconds, as on a very busy machine: starting it again")


def _children() -> set[int]:
    import psutil

    return {process.pid for process in psutil.Process().children()}


def _init(**options: Any) -> None:
    """Connect this process to Ray.

    Raises:
        NotUpError: if a node that is started here is not up in time.
        FoldtrainError: with Ray's reason, if it does not come up or does not let us in.
    """
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(job_config=without_search_path(), **options, **_quiet())
    except Exception as error:
        if not isinstance(error, OSError | RuntimeError | ValueError | RayError) and type(error) is not Exception:
            raise  # Ray raises that, bare, for a node that is not up in time
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = NotUpError if _LATE in reason else FoldtrainError
        raise kind(f"Ray does not start ({options['address']}): {reason}") from error
    keep_own_warnings()


@contextmanager
def _terminable() -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, with the exit code that shells expect: all is released.

    Yields:
        What begins to listen, to be called after Ray has set its own handler.
    """
    received = 0

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        sys.exit(128 + number)

    def listen() -> None:
        for each in before:
            signal.signal(each, end)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # under nohup
        del before[signal.SIGHUP]
    try:
        yield listen
    except SystemExit as ended:
        if received:  # inside of Ray's calls, which were interrupted with a code of their own
            sys.exit(128 + received)
        if ended.code == signal.SIGTERM:  # by the handler that Ray has while it connects
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _quiet() -> dict[str, Any]:
    """Errors of workers are shown; Ray's warnings, some of them one a second, are not."""
    import ray

    return {"logging_level": logging.ERROR, "logging_config": ray.LoggingConfig(log_level="ERROR")}


def _own_cluster(config: ClusterConfig) -> dict[str, Any]:
    cpus = max(os.cpu_count() or 1, int(config.most_workers * config.cpus_per_worker + 0.999))
    return {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
