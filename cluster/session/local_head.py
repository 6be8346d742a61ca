"""The Ray head that foldtrain starts on this machine for jobs, and ends by the process id that it wrote down.

It asks for a token that only this user can read (RAY_AUTH_MODE=token): a Ray head runs whatever reaches its ports,
which every user of the machine can (docs/security.md). The mode is always set, never left to Ray: unset, `ray start`
takes it from a file in the home directory and drivers do not, and nothing connects. All files of the head are in a
folder that only this user can enter: Ray makes its own one there writable by everybody, with the code of jobs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from cluster.session.job_environment import passed_on
from cluster.session.ray_folder import make_folder
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.counted import counted

_START_SECONDS = 90
_END_SECONDS = 20
_OBJECT_STORE_BYTES = 256 * 2**20  # only control messages pass through it: images and tokens go to storage


@dataclass(frozen=True)
class LocalHead:
    """A Ray head that was started here."""

    address: str
    """Where drivers connect, host:port."""
    dashboard: str
    """URL of its dashboard and job API."""
    token: str
    """What it asks of those who connect."""
    pid: int
    """Process that all others of the head descend from."""
    created: float
    """Unix time of that process's start, which tells it from a later one with the same id."""
    cpus: int
    """CPUs that it shares out."""
    folder: str
    """All of its files, in a folder of mode 0700: token, log, variables of jobs, and Ray's session files."""

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that its dashboard asks for."""
        return {"Authorization": f"Bearer {self.token}"}


def home() -> Path:
    """Where foldtrain keeps what it started on this machine: $FOLDTRAIN_HOME, or ~/.foldtrain."""
    return Path(os.environ.get("FOLDTRAIN_HOME") or Path.home() / ".foldtrain")


def running() -> LocalHead | None:
    """The head that is up, if there is one."""
    head = _recorded()
    return head if head and _process(head) else None


def start(cpus: int) -> LocalHead:
    """The head that is up, or a new one with all CPUs of this machine, and with `cpus` at least.

    Two callers at a time start only one.

    Raises:
        UsageError: if one is up and has fewer CPUs.
        FoldtrainError: if Ray does not come up; it shows the end of the log.
    """
    with _locked():
        head = _recorded()
        if head and _process(head):
            require_cpus(head, cpus)
            _wait_until_up(head)  # its starter may have been interrupted
            return head
        if head:
            _end(head)  # it died: its files are left
        head = _spawn(max(cpus, os.cpu_count() or 1))
        try:
            _wait_until_up(head)
        except FoldtrainError:
            _end(head)
            state_file().unlink()
            raise
        return head


def require_cpus(head: LocalHead, cpus: int) -> None:
    """Make sure that a head has so many CPUs.

    Raises:
        UsageError: if it has fewer.
    """
    if head.cpus < cpus:
        raise UsageError(
            f"this needs {counted(cpus, 'CPU')} (cluster.workers × cluster.cpus_per_worker) and the local cluster was "
            f"started with {head.cpus}: run `foldtrain shutdown`, then submit again"
        )


def shutdown() -> bool:
    """End the head and all that descends from it; whether there was one. Jobs that still run end with it."""
    with _locked():
        head = running()
        if head:
            _end(head)
        state_file().unlink(missing_ok=True)
        return head is not None


def state_file() -> Path:
    """Where the head of this machine is written down. The home directory may be shared with other machines."""
    return home() / f"local-head-{socket.gethostname()}.json"


def _recorded() -> LocalHead | None:
    """The head that was started last, whether or not it still runs."""
    try:
        with state_file().open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:  # what it names is killed and removed
                raise FoldtrainError(f"{state_file()} is not this user's alone: remove it, or set FOLDTRAIN_HOME")
            return LocalHead(**json.load(file))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _make_home() -> None:
    """Make the folder of the state file, closed to others.

    Raises:
        FoldtrainError: if it is another user's, or cannot be made.
    """
    try:
        home().mkdir(parents=True, exist_ok=True, mode=0o700)
        status = home().stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            home().chmod(0o700)
    except OSError as error:
        raise FoldtrainError(
            f"{home()} cannot be made ({error.strerror}): set FOLDTRAIN_HOME to another folder"
        ) from error
    if status.st_uid != os.geteuid():
        raise FoldtrainError(f"{home()} belongs to another user: set FOLDTRAIN_HOME to a folder of your own")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    _make_home()
    with state_file().with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _process(head: LocalHead) -> Any:
    """The head's process as psutil sees it; None if it has ended."""
    import psutil

    try:
        process = psutil.Process(head.pid)
        same = abs(process.create_time() - head.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def _environment(token_file: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}}
    ours.pop("RAY_AUTH_TOKEN", None)
    for name in passed_on(ours):
        del ours[name]  # each job gets those of the shell that submits it
    return ours | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who reserves no GPU sees none
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # between SIGTERM and SIGKILL: time for uploads under way
    }


def _spawn(cpus: int) -> LocalHead:
    import psutil

    folder = make_folder()
    token, token_file = secrets.token_hex(32), folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    port, dashboard_port, client_port, agent_port, agent_grpc_port = _free_ports(5)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client_port}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"),
        *(f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={agent_grpc_port}"),
        *(f"--temp-dir={folder / 'r'}", f"--num-cpus={cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
    ]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(token_file),
        )
    created = psutil.Process(process.pid).create_time()
    address, dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
    head = LocalHead(address, dashboard, token, process.pid, created, cpus, str(folder))
    _write_state(head)
    return head


def _write_state(head: LocalHead) -> None:
    temporary = state_file().with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(asdict(head), indent=1))
    temporary.replace(state_file())


def _wait_until_up(head: LocalHead) -> None:
    """Return when the job API answers.

    Raises:
        FoldtrainError: if the head ends, or does not answer in time.
    """
    waiting = Retrying(
        retry=retry_if_result(lambda state: state == "silent"),
        stop=stop_after_delay(_START_SECONDS),
        wait=wait_fixed(0.2),
    )
    try:
        state = waiting(lambda: "up" if _answers(head) else "silent" if _process(head) else "ended")
    except RetryError:
        state = f"silent for {_START_SECONDS} seconds"
    if state != "up":
        log = Path(head.folder, "head.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise FoldtrainError("\n  ".join([f"the Ray head of this machine is {state}; its last words:", *log]))


def _answers(head: LocalHead) -> bool:
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=head.headers)  # noqa: S310 - our own http
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5):
            return True
    except OSError:
        return False


def _end(head: LocalHead) -> None:
    """End the head's processes, and those of jobs below it, by their ids; then its files."""
    import psutil

    if process := _process(head):
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = [process, *process.children(recursive=True)]
            process.terminate()  # Ray ends its own children
            _, alive = psutil.wait_procs(tree, timeout=_END_SECONDS)
            for left in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            psutil.wait_procs(alive, timeout=_END_SECONDS)
    shutil.rmtree(head.folder, ignore_errors=True)
