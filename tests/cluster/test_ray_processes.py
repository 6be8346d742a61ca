"""Ray's own processes: which signals reach them, what ends with them, and where workers look for modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from cluster.session.ray_processes import NOTICES, deaf_to_notices, end_tree, listen_again, without_search_path

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]).wait()"


@pytest.mark.slow
def test_what_ray_starts_and_what_that_starts_block_notices_and_end_together() -> None:
    from ray._private import services

    theirs = services.ConsolePopen
    with deaf_to_notices():
        process = services.ConsolePopen([sys.executable, "-c", WITH_CHILD], stdout=subprocess.PIPE)
    assert services.ConsolePopen is theirs
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        (child,) = psutil.Process(process.pid).children()
        for number in NOTICES:
            for pid in (process.pid, child.pid):
                os.kill(pid, number)
        assert child.is_running()
        assert process.poll() is None
        process.terminate()
    assert process.returncode == -signal.SIGKILL
    assert not child.is_running()


def test_a_worker_listens_again() -> None:
    code = (
        "import os, signal; from cluster.session.ray_processes import listen_again;"
        "signal.signal(signal.SIGTERM, lambda *_: print('heard'));"
        "os.kill(os.getpid(), signal.SIGTERM); print('deaf'); listen_again()"
    )

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=block, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["deaf", "heard"]
    listen_again()  # and does no harm where nothing is blocked


def test_a_process_that_is_gone_is_ended_already() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    end_tree(process.pid)


def test_workers_do_not_look_for_modules_where_the_command_was_started() -> None:
    config = without_search_path()
    config._py_driver_sys_path.extend(["/somebody/elses/code"])  # as Ray does when it connects
    assert list(config._get_proto_job_config().py_driver_sys_path) == []
