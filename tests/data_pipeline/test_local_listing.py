"""A listing of a local folder is complete, or it is an error that names what it could not list."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.storage.local_listing import check_file, scan

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root's right to read everything")
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Runs a command as a root whom permissions bind."""


def names(root: Path, *, strict: bool = True) -> list[str]:
    return sorted(found.name for found in scan(root, strict=strict))


def listed_unprivileged(root: Path) -> subprocess.CompletedProcess[str]:
    """`storage.walk` by a process that permissions bind."""
    code = f"from data_pipeline import storage; print(list(storage.walk({str(root)!r})))"
    return subprocess.run([*UNPRIVILEGED, sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_files_and_folders_are_listed_empty_ones_and_linked_ones_too(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a" / "deep" / "file").write_bytes(b"123")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other").write_bytes(b"")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "link").symlink_to("deep/file")
    assert names(root) == ["a", "a/deep", "a/deep/file", "a/link", "empty", "linked", "linked/other"]
    assert storage.walk(str(root)) == {"a/deep/file": 3, "a/link": 3, "linked/other": 0}


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert names(tmp_path / "nothing") == []


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../..", "/"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_link_to_a_folder_that_it_lies_in_is_named(tmp_path: Path, target: str, strict: bool) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "up").symlink_to(target)
    with pytest.raises(UsageError, match=r"root/a/up, which leads to .*, is a folder that it lies in itself"):
        names(tmp_path / "root", strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_links_that_lead_to_each_other_are_named(tmp_path: Path, strict: bool) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match=r"/a is a link to b, and so in a circle"):
        names(tmp_path, strict=strict)


def test_a_tree_that_links_into_itself_from_outside_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match=r"root/out/back, which leads to .*root, is a folder that it lies in itself"):
        names(tmp_path / "root")


@pytest.mark.parametrize("link", ["a", "z"])
def test_a_folder_under_two_names_is_named_by_both(tmp_path: Path, link: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / link).symlink_to("m")
    with pytest.raises(UsageError, match=rf"({link}|m) and .*/({link}|m) are the same folder, by a link"):
        names(tmp_path)
    assert storage.walk(str(tmp_path)) == {}


def test_a_dangling_link_is_named_with_its_target_where_nothing_else_writes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone/away")
    with pytest.raises(UsageError, match=r"/link is a link to gone/away, which is not there"):
        names(tmp_path)
    assert storage.walk(str(tmp_path)) == {}


def test_what_is_skipped_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / ".snapshot").mkdir()
    (tmp_path / ".snapshot" / "loop").symlink_to("..")
    (tmp_path / ".gone").symlink_to("nowhere")
    assert [one.name for one in scan(tmp_path, strict=True, is_skipped=lambda name: name.startswith("."))] == []


@AS_ROOT
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir(mode=0)
    done = listed_unprivileged(tmp_path)
    assert f"the folder {tmp_path}/closed cannot be listed (Permission denied)" in done.stderr
    assert done.stdout == ""


@AS_ROOT
def test_a_file_in_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"")
    (tmp_path / "a").chmod(0o600)
    assert f"{tmp_path}/a/file cannot be read (Permission denied)" in listed_unprivileged(tmp_path).stderr


@AS_ROOT
def test_a_file_that_nobody_may_look_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.tar").write_bytes(b"")
    (tmp_path / "closed").chmod(0)
    code = (
        "from pathlib import Path; from data_pipeline.storage.local_listing import check_file;"
        f"check_file(Path({str(tmp_path)!r}) / 'closed' / 'a.tar')"
    )
    done = subprocess.run([*UNPRIVILEGED, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"DiskError: {tmp_path}/closed/a.tar: Permission denied" in done.stderr.replace("data_pipeline.errors.", "")


def test_what_is_no_file_is_told_from_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "file").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        check_file(tmp_path / "file")
        for name, kind in (("fifo", "a FIFO"), ("link", "a FIFO"), ("s", "a socket"), ("", "a folder")):
            with pytest.raises(UsageError, match=f"is {kind}, not a file"):
                check_file(tmp_path / name)
    with pytest.raises(UsageError, match="is a device, not a file"):
        check_file(Path("/dev/zero"))
    with pytest.raises(UsageError, match="dangling is a link to gone, which is not there"):
        check_file(tmp_path / "dangling")
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "nothing")
