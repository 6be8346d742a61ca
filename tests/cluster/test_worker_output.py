"""Of what Ray forwards to the terminal, workers' own words and errors are shown, and nothing of Ray's core."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.session.worker_output import keep_own_warnings, shown_lines, workers_own_words

WORKER = {"pid": 7, "actor_name": "TrainWorker", "is_err": True}
IDLE = {"pid": 8, "actor_name": None, "task_name": None, "is_err": True}
RAYLET = {"pid": "raylet", "is_err": True}

CORE = [
    "[2026-11-25 14:19:24,452 E 23670 23920] rpc_client.h:204: Failed to connect to GCS within 60 seconds.",
    "\x1b[33m[2026-11-25 14:19:24,452 C 7 7] core_worker.cc:1: Check failed",
    "    [2026-11-25 14:06:36,372 I 3607 3607] (raylet) grpc_server.cc:144: NodeManager server started",
    "E1125 14:19:24.452000   23670 chttp2_transport.cc:1182] ping timeout",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
]
ABORTED = [
    "*** SIGABRT received at time=1795616466 on cpu 0 ***",
    "PC: @     0x7fec1fea3f16  (unknown)  (unknown)",
    "    @     0x7fec1fe5a050  (unknown)  (unknown)",
    "Fatal Python error: Aborted",
    "Thread 0x00007febaa7736c0 (most recent call first):",
    '  File "/site-packages/ray/_private/worker.py", line 1091 in main_loop',
    "Extension modules: msgpack._cmsgpack, psutil._psutil_linux (total: 2)",
]
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/site-packages/trainer/loop.py", line 12, in run',
    "    raise RuntimeError",
    "RuntimeError: CUDA out of memory",
]


@pytest.mark.parametrize("batch", [WORKER, IDLE, RAYLET], ids=["worker", "idle", "raylet"])
def test_lines_of_rays_core_are_left_out(batch: dict[str, Any]) -> None:
    assert shown_lines({**batch, "lines": [*CORE, "a word of its own"]}) == ["a word of its own"]


def test_empty_lines_are_a_workers_own_and_are_left_out_of_what_ray_quotes() -> None:
    assert shown_lines({**WORKER, "lines": ["one", "", "two"]}) == ["one", "", "two"]
    assert shown_lines({**RAYLET, "lines": ["one", "  ", "", "two"]}) == ["one", "two"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_rays_prefixes_have_colors_on_a_terminal_alone(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_COLOR_PREFIX", "")
    monkeypatch.delenv("RAY_COLOR_PREFIX")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    with workers_own_words():
        assert os.environ.get("RAY_COLOR_PREFIX") == (None if is_terminal else "0")


def test_a_worker_without_work_may_abort_in_silence() -> None:
    assert shown_lines({**IDLE, "lines": ABORTED}) == []


@pytest.mark.parametrize("lines", [TRACEBACK, ABORTED, ["Fatal Python error: Segmentation fault"]])
def test_how_a_training_worker_dies_is_shown(lines: list[str]) -> None:
    assert shown_lines({**WORKER, "lines": lines}) == lines


def test_a_traceback_is_shown_wherever_it_comes_from() -> None:
    assert shown_lines({**IDLE, "lines": TRACEBACK}) == TRACEBACK
    assert shown_lines({**RAYLET, "lines": ["killed due to the node running low on memory"]}) != []


def test_it_stands_before_all_that_ray_prints_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    printed: list[dict[str, Any]] = []
    theirs = lambda batch, ignore_prefix: printed.append(batch)  # noqa: E731 - compared below
    monkeypatch.setattr(worker, "print_to_stdstream", theirs)
    with workers_own_words():
        worker.print_to_stdstream({**WORKER, "lines": [CORE[0], "loss 3.1"]}, ignore_prefix=True)
        worker.print_to_stdstream({**WORKER, "lines": CORE}, ignore_prefix=True)
        error = {"pid": "raylet", "is_err": False, "lines": ["\n".join(["Raylet is terminated.", *CORE])]}
        worker.print_to_stdstream(error, ignore_prefix=False)
    assert worker.print_to_stdstream is theirs
    assert [batch["lines"] for batch in printed] == [["loss 3.1"], ["Raylet is terminated."]]


@pytest.fixture
def errors_alone() -> Iterator[None]:
    """The root logger as Ray sets it in each of its processes."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    yield
    root.setLevel(before)


def test_our_own_warnings_are_heard_where_ray_wants_errors_alone(
    errors_alone: None, caplog: pytest.LogCaptureFixture
) -> None:
    keep_own_warnings()
    for package in ("elsewhere", "model", "data_pipeline", "trainer", "cluster"):
        logging.getLogger(f"{package}.part").warning("of %s", package)
    assert caplog.messages == ["of model", "of data_pipeline", "of trainer", "of cluster"]
