"""A command's connection to Ray, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import psutil
import pytest

from cluster.config.run import ClusterConfig
from cluster.drills.victims import title_of
from cluster.session.ray_session import _init, _start, _terminable, is_connected, ray_session
from data_pipeline.errors import FoldtrainError


@pytest.mark.xdist_group("ray")
def test_sigterm_ends_a_command_between_its_stages_in_order() -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    titles: list[str] = []

    def look_and_end() -> None:
        titles.extend(title_of(process) for process in psutil.Process().children(recursive=True))
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended, ray_session(ClusterConfig()):
        look_and_end()
    assert any("raylet" in title for title in titles)
    assert not [title for title in titles if "dashboard/dashboard.py" in title or "autoscaler" in title]
    assert ended.value.code == 128 + signal.SIGTERM
    assert not ray.is_initialized()
    assert logging.getLogger("data_pipeline.leases.lease").isEnabledFor(logging.WARNING)  # Ray's own are not shown
    assert signal.getsignal(signal.SIGTERM) is before


IMPORTED_FIRST = """
import ray
from cluster.config.run import ClusterConfig
from cluster.session.ray_session import ray_session

with ray_session(ClusterConfig(workers=1)):
    print("answered", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_process_that_has_imported_ray_before_is_let_into_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", IMPORTED_FIRST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "answered 42" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup."), ValueError("no such port")])
def test_a_ray_that_does_not_come_up_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(FoldtrainError, match=rf"Ray does not start \(local\): {error}"):
        _init(address="local")


@pytest.mark.parametrize("late", [2, 3])
def test_a_ray_that_is_not_up_in_time_is_started_again(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    started: list[subprocess.Popen[bytes]] = []
    with subprocess.Popen(["sleep", "600"]) as another:

        def init(**_: object) -> None:
            assert [process.poll() for process in started] == [-signal.SIGKILL] * len(started)
            if len(started) < late:
                started.append(subprocess.Popen(["sleep", "600"]))
                raise Exception("The current node timed out during startup.")  # noqa: TRY002 - what Ray raises

        monkeypatch.setattr("ray.init", init)
        with pytest.raises(FoldtrainError) if late == 3 else contextlib.nullcontext():
            _start()
        assert another.poll() is None
        for process in (another, *started):
            process.kill()
            process.wait()
    assert len(started) == late


def test_a_ray_that_another_thread_is_about_to_import_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    assert not is_connected()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_the_exit_code_that_shells_expect_whatever_ray_makes_of_it(number: signal.Signals) -> None:
    def call_of_ray(listen: Callable[[], None]) -> None:
        listen()
        try:
            signal.raise_signal(number)
        except SystemExit:
            raise SystemExit(1) from None

    before = signal.signal(number, signal.SIG_DFL)  # whatever started the tests may ignore it
    try:
        with pytest.raises(SystemExit) as ended, _terminable() as listen:
            call_of_ray(listen)
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number


def test_under_nohup_a_terminal_that_closes_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _terminable() as listen:
            listen()
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_while_ray_connects_has_the_same_exit_code() -> None:
    with pytest.raises(SystemExit) as ended, _terminable():
        raise SystemExit(int(signal.SIGTERM))  # as Ray's handler does
    assert ended.value.code == 128 + signal.SIGTERM
