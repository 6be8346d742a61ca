"""What the local disk refuses is told with the file and a remedy, without loss of what was there."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.errors import DiskError, FoldtrainError, NotAFileError, UsageError
from data_pipeline.storage import local_disk

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, or gives root's rights up: needs root")

WRITES: dict[str, Callable[[str], object]] = {
    "write": lambda path: storage.write_bytes(path, b"new"),
    "create": lambda path: storage.create_bytes(path, b"new"),
    "commit": lambda path: storage.commit_bytes(path, b"new"),
}
READS: dict[str, Callable[[str], object]] = {
    "read": storage.read_bytes,
    "json": storage.read_json,
    "range": lambda path: storage.read_range(path, 0, 1),
    "open": storage.open_reader,
}


@pytest.mark.parametrize("deed", WRITES)
@pytest.mark.parametrize("below", ["object", "folder/object", "a/b/object"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, deed: str, below: str) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UsageError, match=r"run is a file, and a folder is expected: move it away"):
        WRITES[deed](f"{tmp_path}/run/{below}")


@pytest.mark.parametrize("deed", WRITES)
def test_a_link_to_nothing_is_no_folder(tmp_path: Path, deed: str) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=f"{tmp_path}/run"):
        WRITES[deed](f"{tmp_path}/run/object")


@pytest.mark.parametrize("deed", READS)
def test_a_folder_is_no_file(tmp_path: Path, deed: str) -> None:
    with pytest.raises(NotAFileError, match="is a folder, and a file is expected"):
        READS[deed](str(tmp_path))


@pytest.mark.parametrize("deed", READS)
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_might_never_end_is_not_opened(tmp_path: Path, deed: str, kind: str) -> None:
    path = tmp_path / "input"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            bound.bind(str(path))
        with pytest.raises(FoldtrainError, match=f"{path}"):
            READS[deed](str(path))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        *[(errno.ENOSPC, "the disk is full. Free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")],
        *[
            (errno.EIO, "dmesg"),
            (errno.ESTALE, "Mount it again"),
            (errno.EMFILE, "ulimit -n"),
            (errno.EACCES, "ls -ld"),
        ],
        *[
            (errno.EPERM, "may not"),
            (errno.ENOTCONN, "see whether the disk works"),
            (errno.EFBIG, "no file of that size"),
        ],
    ],
)
@pytest.mark.parametrize("deed", WRITES)
def test_what_a_disk_refuses_is_told_and_the_old_bytes_stay(
    tmp_path: Path, deed: str, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "object"
    if deed != "create":
        target.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(DiskError, match=remedy) as caught:
        WRITES[deed](str(target))
    assert str(caught.value).startswith(f"{target}: {os.strerror(number)}: ")
    assert [path.name for path in tmp_path.iterdir()] == ([] if deed == "create" else ["object"])


def test_a_failing_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "object").write_bytes(b"x")
    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(DiskError, match=rf"{tmp_path}/object: Input/output error: .*dmesg"):
        storage.read_bytes(f"{tmp_path}/object")


@pytest.mark.parametrize("deed", [*WRITES.values(), *READS.values(), storage.exists, storage.size, storage.list_names])
def test_a_name_that_is_too_long_is_told(tmp_path: Path, deed: Callable[[str], object]) -> None:
    with pytest.raises(DiskError, match="longer than the disk takes"):
        deed(f"{tmp_path}/{'x' * 300}/object")


@pytest.mark.parametrize("deed", [*WRITES.values(), storage.read_bytes])
def test_a_path_with_a_nul_is_none(tmp_path: Path, deed: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match="is no path"):
        deed(f"{tmp_path}/a\0b/object")


def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path) -> None:
    code = f"from data_pipeline import storage; storage.write_bytes({str(tmp_path / 'object')!r}, b'x' * 100_000)"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert "DiskError" in done.stderr.splitlines()[-1]
    assert "takes no file of that size" in done.stderr.splitlines()[-1]


@as_root
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    code = f"""
import ctypes, os
from data_pipeline import storage
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0 or os._exit(3)
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0 or os._exit(3)
assert libc.mount(b"tmpfs", {str(tmp_path).encode()!r}, b"tmpfs", 0, b"size=64k") == 0 or os._exit(3)
storage.write_bytes({str(tmp_path / "object")!r}, b"x" * 1000_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this container may not mount a file system")
    assert "No space left on device: the disk is full. Free some space" in done.stderr.splitlines()[-1]


@as_root
@pytest.mark.parametrize("deed", ["read", "list", "exists", "write"])
def test_what_belongs_to_another_user_is_told(tmp_path: Path, deed: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "object").write_bytes(b"x")
    for folder in [tmp_path, *tmp_path.parents][:4]:
        folder.chmod(0o755)
    deeds = {
        "read": "storage.read_bytes(path + '/object')",
        "list": "storage.list_names(path)",
        "exists": "storage.exists(path + '/object')",
        "write": "storage.write_bytes(path + '/new', b'x')",
    }
    code = f"""
import os
from data_pipeline import errors, storage
path = {str(closed)!r}
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    {deeds[deed]}
except errors.DiskError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "this user (uid 65534) may not. Look at `ls -ld" in done.stdout, done.stderr


def test_an_error_of_the_disk_survives_a_process_border() -> None:
    error = DiskError(errno.ENOSPC, "x: the disk is full")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno) == (DiskError, "x: the disk is full", errno.ENOSPC)


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{tmp_path}/nothing")
    assert not storage.exists(f"{tmp_path}/nothing")


def test_a_folder_is_made_once_for_all(tmp_path: Path) -> None:
    local_disk.make_folder(tmp_path / "a" / "b")
    local_disk.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.EACCES, errno.ENOTDIR, errno.ENOSPC])
def test_an_error_with_a_file_that_no_boundary_told_is_told_at_the_end(number: int) -> None:
    found = local_disk.explain_unhandled(OSError(number, os.strerror(number), "/some/file"))
    assert isinstance(found, FoldtrainError)
    assert str(found).startswith("/some/file")


@pytest.mark.parametrize("error", [OSError("odd"), OSError(5, "odd"), BrokenPipeError(32, "Broken pipe")])
def test_an_error_without_a_file_is_left_to_its_traceback(error: OSError) -> None:
    assert local_disk.explain_unhandled(error) is None


def test_links_in_a_circle_are_no_place(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match="its links lead in a circle"):
        storage.absolute(f"{tmp_path}/loop")


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="working directory was removed"):
        storage.absolute("here")
