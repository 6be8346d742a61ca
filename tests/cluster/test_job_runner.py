"""The process that keeps a job's record, with small programs in place of stages."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.jobs import logs, records, runner
from cluster.jobs.records import State, Submitted
from cluster.jobs.runner import Runner
from cluster.session import job_environment
from data_pipeline.errors import StorageAwayError
from tests.cluster.stand_in_stages import LISTENS

ID = "ingest-0a1b2c"
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("at work", flush=True)
while True: time.sleep(0.05)
"""
SAYS = """
import json, os
def say(**word): os.write(int(os.environ["FOLDTRAIN_JOB_WORDS"]), json.dumps(word).encode() + b"\\n")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(runner, "_DISK_SECONDS", 0.05)
    monkeypatch.setattr(runner, "_SAME_SECONDS", 0.05)
    submit(str(tmp_path / "run"))
    return str(tmp_path / "run")


def submit(run: str, grace: float = 60) -> None:
    target = {"kind": "local", "grace_seconds": grace}
    job = Submitted(id=ID, stages=("ingest",), run=run, target="t", target_config=target, submitted=1.0, who="me@here")
    records.write_job(job, "run: x\n")


def at_work(run: str, code: str, **options: Any) -> tuple[Runner, Callable[[], int]]:
    """A runner in a thread, once its program is at work; and its exit code, once it has ended."""
    found = Runner(run, ID, [sys.executable, "-c", code], **options)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(found.run()))
    thread.start()
    while "at work" not in logs.tail(str(Path(run, "jobs", ID))) and thread.is_alive():
        time.sleep(0.01)

    def code_at_end() -> int:
        thread.join(30)
        return codes[0]

    return found, code_at_end


def do(run: str, code: str) -> int:
    return at_work(run, code)[1]()


def state(run: str) -> State:
    found = records.read_state(run, ID)
    assert found is not None
    return found


def test_a_job_that_ends_well_has_its_stages_its_exit_code_and_its_last_lines(run: str) -> None:
    says = "say(stage='ingest'); say(stage='ingest', outcome='done')"
    assert do(run, f"{SAYS}\n{says}\nprint('one\\ntwo')") == 0
    found = state(run)
    assert (found.status, found.exit_code, found.attempt, found.stage) == ("succeeded", 0, 1, "ingest")
    assert (found.done, found.last_lines) == ({"ingest": "done"}, ("one", "two"))
    assert found.ended is not None
    assert found.started <= found.ended
    assert "".join(records.logs(run, ID)) == "one\ntwo\n"


def test_the_last_lines_have_no_colors_and_no_tabs(run: str) -> None:
    assert do(run, r"print('\x1b[33m(raylet)\x1b[0m one\ttwo')") == 0
    assert state(run).last_lines == ("(raylet) one    two",)


def test_the_variables_of_a_job_are_gone_before_it_says_that_it_has_ended(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job_environment.hand_over(tmp_path / "variables", ID, {"AWS_A": "secret"})
    monkeypatch.setenv(job_environment.FILE_VARIABLE, str(file))
    write = records.write_state

    def look(run: str, job_id: str, state: State) -> None:
        assert file.exists() is (state.ended is None)
        write(run, job_id, state)

    monkeypatch.setattr(records, "write_state", look)
    assert do(run, "pass") == 0
    assert state(run).status == "succeeded"


def test_a_job_that_fails_has_the_error_as_it_was_said(run: str) -> None:
    code = f"{SAYS}\nsay(stage='tokenize'); say(error='no tokenizer\\nmake one'); raise SystemExit(2)"
    assert do(run, code) == 2
    found = state(run)
    assert (found.status, found.exit_code, found.message) == ("failed", 2, "no tokenizer\nmake one")


def test_a_job_that_says_nothing_of_its_failure_has_its_last_line(run: str) -> None:
    assert do(run, "print('before'); print('error: the disk is full'); print('bye'); raise SystemExit(1)") == 1
    assert state(run).message == "the disk is full"


def test_a_job_that_was_killed_says_by_what(run: str) -> None:
    assert do(run, "import os; print('at work', flush=True); os.kill(os.getpid(), 9)") == 137
    assert "was killed (SIGKILL): by the kernel" in state(run).message


def test_a_request_to_stop_lets_it_save_and_is_no_failure_to_its_scheduler(run: str) -> None:
    _, code = at_work(run, LISTENS)
    records.request_stop(run, ID)
    assert code() == 0
    found = state(run)
    assert (found.status, found.last_lines[-1]) == ("stopped", "saves a checkpoint")
    assert found.told.startswith("stop, asked for by")


def test_a_request_to_end_at_once_ends_what_does_not_listen(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_AT_ONCE_SECONDS", 0.1)
    _, code = at_work(run, DEAF)
    records.request_stop(run, ID, now=True)
    assert code() == 0
    assert state(run).status == "stopped"


def test_what_does_not_end_within_the_grace_is_killed(run: str) -> None:
    submit(run, grace=0.2)
    _, code = at_work(run, DEAF)
    records.request_stop(run, ID)
    assert code() == 0
    assert "it had not ended 0.2 s after it was told to" in state(run).message


def test_a_job_that_its_scheduler_ends_is_preempted_and_asks_for_a_further_start(run: str) -> None:
    found, code = at_work(run, LISTENS)
    found._tell("SIGUSR1")
    assert code() == 143
    assert (state(run).status, state(run).told) == ("preempted", "SIGUSR1")


def test_a_job_whose_first_process_is_gone_saves_and_ends(run: str) -> None:
    read_end, write_end = os.pipe()
    _, code = at_work(run, LISTENS, front=read_end)
    os.close(write_end)
    assert code() == 143
    os.close(read_end)
    assert (state(run).status, state(run).last_lines[-1]) == ("preempted", "saves a checkpoint")


SAVES = """
import signal, sys, time
from pathlib import Path
notices = 0
def count(*_):
    global notices
    notices += 1
    print("notice", notices, flush=True)
signal.signal(signal.SIGTERM, count)
print("at work", flush=True)
while not Path(sys.argv[1]).exists(): time.sleep(0.01)
sys.exit(143)
"""
"""Takes as long over its checkpoint as it is let, and says how often it was told."""


def test_a_job_whose_first_process_is_killed_while_it_saves_is_not_told_again(run: str, tmp_path: Path) -> None:
    """As Ray does, 3 s after its notice. A second notice would end the job without its checkpoint."""
    read_end, write_end = os.pipe()
    found, code = at_work(run, SAVES.replace("sys.argv[1]", repr(str(tmp_path / "saved"))))
    found._tell("SIGTERM")
    while "notice 1" not in logs.tail(str(Path(run, "jobs", ID))):
        time.sleep(0.01)
    found._told_at = -math.inf  # long ago
    os.close(write_end)
    found._watch_front(read_end)
    (tmp_path / "saved").touch()
    assert code() == 143
    os.close(read_end)
    assert (state(run).status, state(run).told, state(run).last_lines[-1]) == ("preempted", "SIGTERM", "notice 1")


@pytest.mark.slow
def test_a_job_that_finished_though_it_was_told_to_end_has_succeeded(run: str) -> None:
    finishes = LISTENS.replace("sys.exit(143)", "sys.exit(0)")
    found, code = at_work(run, finishes)
    found._tell("SIGTERM")
    assert (code(), state(run).status) == (0, "succeeded")


def test_a_job_that_its_scheduler_ends_before_it_has_seen_the_request_to_stop_is_stopped(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.Runner, "_obey", lambda *_: None)  # it has not looked yet
    found, code = at_work(run, LISTENS)
    records.request_stop(run, ID)
    found._tell("SIGTERM")
    assert code() == 0
    assert state(run).status == "stopped"


def test_the_scheduler_is_told_the_exit_code_though_storage_does_not_take_the_last_word(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = records.write_state

    def refuse(run: str, job_id: str, state: State) -> None:
        if state.ended is not None:
            raise StorageAwayError("s3 is away")
        write(run, job_id, state)

    monkeypatch.setattr(records, "write_state", refuse)
    assert do(run, "raise SystemExit(3)") == 3
    assert "does not say that it failed: s3 is away" in capsys.readouterr().err


def test_a_further_start_goes_on_as_the_next_attempt_and_keeps_what_the_first_said(run: str) -> None:
    found, code = at_work(run, LISTENS)
    found._tell("SIGTERM")
    code()
    assert do(run, "print('again')") == 0
    second = state(run)
    assert (second.attempt, second.status) == (2, "succeeded")
    assert [(one.attempt, one.status, one.told) for one in second.earlier] == [(1, "preempted", "SIGTERM")]
    assert "".join(records.logs(run, ID)) == "at work\nsaves a checkpoint\nagain\n"


def test_a_start_that_was_killed_with_its_node_is_on_record_as_such(run: str) -> None:
    records.write_state(run, ID, State(status="running", started=1.0, heartbeat=50.0, stage="ingest", node="n1"))
    assert do(run, "pass") == 0
    [before] = state(run).earlier
    assert (before.status, before.ended, before.node) == ("failed", 50.0, "n1")
    assert "was killed" in before.message


def test_a_job_that_was_stopped_is_not_started_again(run: str) -> None:
    records.request_stop(run, ID)
    assert do(run, "print('at work')") == 0
    assert state(run).status == "stopped"
    assert logs.numbers(str(Path(run, "jobs", ID, "log"))) == []


def test_an_old_start_ends_when_a_newer_one_is_at_work_and_leaves_its_record_alone(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "BEAT_SECONDS", 0.0)
    found, code = at_work(run, LISTENS)
    newer = State(status="running", attempt=2, started=1.0, heartbeat=2.0, node="n2")
    while not found._told:  # as the newer start does with each sign of life
        records.write_state(run, ID, newer)
    code()
    assert found._told == "start 2 of this job on n2"
    assert state(run) == newer


def test_a_sign_of_life_is_given(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BEAT_SECONDS", 0.0)
    found, code = at_work(run, LISTENS)
    first = state(run).heartbeat
    while state(run).heartbeat == first:
        time.sleep(0.01)
    found._tell("SIGTERM")
    code()


def test_nothing_of_it_is_left_when_it_was_killed_at_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_AT_ONCE_SECONDS", 0.1)
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}])\n{DEAF}"
    found, code = at_work(run, child)
    assert found._process is not None
    below = psutil.Process(found._process.pid).children()
    records.request_stop(run, ID, now=True)
    code()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
