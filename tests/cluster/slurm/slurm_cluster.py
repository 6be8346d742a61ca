"""A real Slurm on this machine, for tests: munged, slurmctld, and nodes that are a slurmd each, all on loopback.

Everything is in a scratch folder, every daemon is started in the foreground and ended by its process id. Nothing of a
Slurm that the machine may have is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from cluster.session.ray_processes import end_tree

_UP_SECONDS = 60.0
_NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODE_CPUS, NODE_MEMORY = 4, 6000
_DEVICES = ("/dev/null", "/dev/zero")  # stand for two GPUs


def why_not() -> str | None:
    """Why no Slurm can be started here; None if one can."""
    missing = [name for name in _NEEDED if shutil.which(name, path=_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): make ci-system"
    if os.geteuid():
        return "Slurm's daemons need root"
    return None


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class SlurmCluster:
    """A controller and its nodes. To be used in a `with` statement.

    Args:
        nodes: how many.
    """

    def __init__(self, nodes: int = 2) -> None:
        self.names = [f"n{number + 1}" for number in range(nodes)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = Path()

    @property
    def configuration(self) -> Path:
        """What SLURM_CONF names."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Slurm's commands find this cluster."""
        return {"SLURM_CONF": str(self.configuration), "PATH": _path()}

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root", "--signal=KILL", "--full", timeout=20)
            self.run("scancel", "--user=root", timeout=20)
        for process in self.steps():
            end_tree(process.pid)
        for daemon in reversed(self._daemons.values()):
            end_tree(daemon.pid)
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, timeout: float = 60, **options: object) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=timeout, **options
        )
        if done.returncode:
            raise OSError(f"{command}: {done.stderr}")
        return done.stdout

    def lose_node(self, name: str) -> None:
        """End a node and all that runs on it by kill -9."""
        for process in self.steps(name):
            end_tree(process.pid)
        end_tree(self._daemons[name].pid)
        self._daemons.pop(name).wait()

    def start_node(self, name: str) -> None:
        """Start a node."""
        self._spawn(name, "slurmd", "-D", "-N", name, "-f", str(self.configuration))

    def logs(self) -> str:
        """The end of what each daemon wrote."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.folder.glob("*.log")
        )

    def steps(self, node: str = "") -> list[psutil.Process]:
        """Slurm's own processes that hold those of jobs, on a node or on all; slurmd starts them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() == "slurmstepd" and self._is_ours(process, node):
                    found.append(process)
        return found

    def _is_ours(self, process: psutil.Process, node: str) -> bool:
        """By the socket on which it listens, which is in its node's spool directory."""
        spool = f"{self.folder}/spool.{node}"
        return any(str(each.laddr).startswith(spool) for each in process.net_connections(kind="unix"))

    def _start(self) -> None:
        self.folder.chmod(0o755)
        for name in ("state", *(f"spool.{name}" for name in self.names)):
            (self.folder / name).mkdir(mode=0o700)
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        key, seed = munge / "key", munge / "seed"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._write_configuration(munge / "socket")
        self._spawn(
            "munged",
            *("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", f"--key-file={key}"),
            *(f"--pid-file={munge / 'pid'}", f"--log-file={self.folder / 'munge.log'}", f"--seed-file={seed}"),
        )
        self._until(lambda: (munge / "socket").exists())
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        for name in self.names:
            self.start_node(name)
        self._until(lambda: self.idle() == len(self.names))

    def idle(self) -> int:
        """How many nodes are up and have nothing to do; 0 while the controller does not answer."""
        with contextlib.suppress(OSError):
            return int(self.run("sinfo", "--noheader", "--partition=debug", "--states=idle", "--format=%D") or 0)
        return 0

    def _until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _UP_SECONDS
        while not is_so():
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"Slurm does not start here (ended: {ended})\n{self.logs()}")
            time.sleep(0.1)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out.log").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env={**_without_python(os.environ), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )

    def _write_configuration(self, munge: Path) -> None:
        ports = _free_ports(1 + len(self.names))
        host, folder = socket.gethostname().partition(".")[0], self.folder
        # Slurm only counts them and numbers them for CUDA_VISIBLE_DEVICES: any device will do
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in _DEVICES))
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={NODE_CPUS} "
            f"RealMemory={NODE_MEMORY} Gres=gpu:{len(_DEVICES)} State=UNKNOWN"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        self.configuration.write_text(
            _CONFIGURATION.format(host=host, folder=folder, munge=munge, port=ports[0]) + "\n".join(nodes) + "\n"
        )


def _without_python(environment: dict[str, str] | os._Environ[str]) -> dict[str, str]:
    """A login environment: what a node has, and nothing of the process that runs the tests."""
    return {name: value for name, value in environment.items() if name in {"HOME", "USER", "LANG", "TMPDIR", "LOGNAME"}}


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


_CONFIGURATION = """\
ClusterName=foldtrain
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SlurmdTimeout=20
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=5
MinJobAge=600
JobRequeue=1
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""
