"""What a node finds out about itself and about the others: real disks, real sockets, real limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.preflight.checks import clocks, devices, disk, limits, matmul, ports, versions
from cluster.preflight.checks.check import Check
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.running import run_checks
from cluster.preflight.wanted import Wanted
from tests.cluster.preflight.several import Several

ROOT = Path(__file__).resolve().parents[3]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")


def looked(check: Check, *names: str, **wanted: Any) -> list[Finding]:
    return run_checks(Several(*(names or ("a",))), Wanted(**wanted), checks=[check])


def test_versions_are_those_that_are_installed() -> None:
    found = versions.look()
    assert found[versions.PYTHON] == platform.python_version()
    assert {"torch", "ray", "deepspeed", "foldtrain", "numpy"} <= found.keys()


def test_what_stands_first_on_the_path_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "torch-9.9.9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert versions.look()["torch"] == "9.9.9"


def test_one_changed_line_of_foldtrain_is_other_code(tmp_path: Path) -> None:
    for package in ("model", "cluster"):
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "inner" / "code.py").write_text("x = 1\n")
    before = versions.code_digest(tmp_path)
    (tmp_path / "cluster" / "inner" / "code.cpython-311.pyc").write_bytes(b"compiled")
    assert versions.code_digest(tmp_path) == before
    (tmp_path / "cluster" / "inner" / "code.py").write_text("x = 2\n")
    assert versions.code_digest(tmp_path) != before


# ---------------------------------------------------------------------------------------------------------------- disk


@as_root
def test_a_full_disk_is_found_and_the_setting_that_moves_it_is_told(tmp_path: Path) -> None:
    """A file system of 64 KiB, in a mount namespace of its own."""
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0 or os._exit(3)
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0 or os._exit(3)
assert libc.mount(b"tmpfs", {str(tmp_path).encode()!r}, b"tmpfs", 0, b"size=64k") == 0 or os._exit(3)
from cluster.preflight.checks import disk
from cluster.preflight.nodes import ThisMachine
from cluster.preflight.running import run_checks
from cluster.preflight.wanted import Wanted
for found in run_checks(ThisMachine(), Wanted(cache_folder={str(tmp_path / "cache")!r}), checks=[disk.CHECK]):
    print(found.level, found)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this container may not mount a file system")
    (line,) = [line for line in done.stdout.splitlines() if str(tmp_path) in line]
    assert line.startswith(f"error {socket.gethostname()}: disk: copies of shards: {tmp_path / 'cache'} has")
    assert "free of 64 KiB, and cannot be written: No space left on device" in line
    assert "data.reading.cache_dir" in line


def test_a_disk_that_takes_no_file_is_found_by_writing_to_it(tmp_path: Path) -> None:
    code = f"""
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from cluster.preflight.checks.disk import look
for room in look({str(tmp_path)!r}, None):
    print(room.path, room.error)
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, check=True)
    assert f"{tmp_path} File too large" in done.stdout.splitlines()


def test_a_folder_that_is_not_made_yet_is_on_the_disk_of_the_one_above(tmp_path: Path) -> None:
    (room, *_) = disk.look(str(tmp_path / "a" / "b"), None)
    assert (room.path, room.whole, room.error) == (str(tmp_path / "a" / "b"), shutil.disk_usage(tmp_path).total, "")
    assert list(tmp_path.iterdir()) == [], "what was written is removed, and nothing is made"


def test_a_run_on_object_storage_is_no_folder_of_a_disk(tmp_path: Path) -> None:
    (found,) = looked(disk.CHECK, run="s3://bucket/run", cache_folder=str(tmp_path), cache_bytes=1)
    assert "s3:" not in found.found


# --------------------------------------------------------------------------------------------------------------- ports


def test_nodes_whose_ports_are_open_reach_each_other_and_listen_no_more_afterwards() -> None:
    (found,) = looked(ports.CHECK, "a", "b", "c")
    assert (found.node, found.level) == (EVERY, "ok")
    assert ports._open == {}


def test_a_closed_port_names_the_node_the_port_and_what_to_open() -> None:
    class Closed(Several):
        """Node `b` listens, and what reaches it is a port that is closed."""

        def each(self, function: Any, arguments: Any, seconds: float) -> dict[str, Any]:
            answers = super().each(function, arguments, seconds)
            return answers | {"b": [closed]} if function is ports.listen else answers

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and not listening: nobody else can take it
        closed = bound.getsockname()[1]
        (found,) = run_checks(Closed("a", "b", "c"), Wanted(), checks=[ports.CHECK])
    assert (found.node, found.level) == ("b", "error")
    assert found.found == f"is reached by no other node (a: 127.0.0.1:{closed}: Connection refused)"
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert f"open its ports {first} to {last}" in found.remedy


def test_another_server_at_that_port_is_not_taken_for_the_node() -> None:
    word = "0" * 32
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = ("127.0.0.1", [other.getsockname()[1]])
        import threading

        def greet() -> None:
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"220 smtp.example ESMTP ready for you!")

        threading.Thread(target=greet, daemon=True).start()
        reached, _ = ports.reach(word, {"b": place})
    assert reached["b"].endswith("something else answers there")


# -------------------------------------------------------------------------------------------------- limits, clocks, GPU


def test_a_process_with_few_file_handles_says_so() -> None:
    code = "from cluster.preflight.checks.limits import look; print(look()['files'])"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, check=True)
    assert done.stdout == "200\n"
    wide = {"files": 65536, "processes": -1, "locked": -1, "adapters": 0}
    assert limits.judge({"a": wide | {"files": int(done.stdout)}}, Wanted())[0].level == "error"


def test_a_clock_that_is_an_hour_behind_is_named() -> None:
    class Skewed(Several):
        def each(self, function: Any, arguments: Any, seconds: float) -> dict[str, Any]:
            answers = super().each(function, arguments, seconds)
            return {name: answer - 3600 * (name == "c") for name, answer in answers.items()}

    (found,) = run_checks(Skewed("a", "b", "c"), Wanted(), checks=[clocks.CHECK])
    assert (found.node, found.level) == ("c", "error")
    assert "3600.0 s behind" in found.found or "3599.9 s behind" in found.found or "3600.1 s behind" in found.found


def test_a_clock_is_compared_with_the_middle_of_the_way_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked at 100, answered at 104: the answer was given at 102, give or take 2; the second time it took 1 second."""
    times = iter([100.0, 104.0, 200.0, 201.0])
    monkeypatch.setattr(clocks, "time", SimpleNamespace(time=lambda: next(times)))
    answers = iter([112.0, 210.0])

    class Ahead(Several):
        def each(self, function: Any, arguments: Any, seconds: float) -> dict[str, Any]:
            return {"a": next(answers)}

    assert clocks.CHECK.measure(Ahead("a"), Wanted()) == {"a": (9.5, 0.5)}


def test_a_matrix_product_has_as_many_operations_as_on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 n³ of them, in the time of the fastest."""
    times = iter([0.0, *(each for number in range(200) for each in (float(number), number + 0.5))])
    monkeypatch.setattr(matmul, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    (speed,) = matmul.look(1, False)
    assert speed.tflops == pytest.approx(2 * 768**3 / 0.5 / 1e12)
    assert speed.number == -1


class FakeNvml:
    """NVIDIA's library with two GPUs, the second of which has no ECC and hot memory; for a machine without any."""

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_CLOCK_SM, NVML_ERROR_LIBRARY_NOT_FOUND = 1, 0, 1, 12

    class NVMLError(Exception):
        """As NVIDIA's."""

    def __init__(self) -> None:
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802 - as NVIDIA's
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlSystemGetDriverVersion": lambda: b"580.1",
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda number: number,
            "nvmlDeviceGetName": lambda number: ["H100", b"H200"][number],
            "nvmlDeviceGetMemoryInfo": lambda number: SimpleNamespace(total=80 * 2**30),
            "nvmlDeviceGetEccMode": lambda number: (1, 1) if number == 0 else self._unknown(),
            "nvmlDeviceGetTotalEccErrors": lambda number, kind, counter: 3 if number == 0 else self._unknown(),
            "nvmlDeviceGetMaxClockInfo": lambda number, clock: 1980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda number: 0x40 * number,
        }
        return answers[name]

    def _unknown(self) -> None:
        raise self.NVMLError("Not Supported")


def test_gpus_are_read_as_the_driver_tells_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = FakeNvml()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "_CONTROLS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(devices, "_library", lambda: library)
    found = devices.look()
    assert found.driver == "580.1"
    assert list(found.gpus) == [
        devices.Gpu("H100", 80 * 2**30, ecc=True, uncorrected=3, most_clock=1980),
        devices.Gpu("H200", 80 * 2**30, ecc=None, most_clock=1980, held_down=0x40),
    ]
    assert not library.is_open


def test_a_machine_without_a_driver_has_no_gpus_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CONTROLS", ())
    assert devices.look() == devices.Devices()
