"""A termination notice ends training after the step under way, with a checkpoint and without a failure."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from cluster.drills.drilled_training import write_training
from cluster.drills.victims import PATIENCE, Victim, kill, started, title_of, wait_for
from cluster.session.head_watch import HeadLostError
from cluster.training import notices
from tests.cluster.drills import lines
from trainer.checkpoints.catalog import latest_step

pytestmark = pytest.mark.xdist_group("notices")

WITHOUT_END = 1_000_000


def test_all_that_was_said_of_a_run_is_news_once_and_in_order() -> None:
    notice = notices.Notice()
    assert notice.news() == []
    notice.say("room for 2")
    notice.say("a node will leave")
    notice.say("a node will leave")
    assert notice.news() == ["room for 2", "a node will leave"]
    assert notice.news() == []
    notice.say("room for 3")
    assert notice.news() == ["room for 3"]
    notice._on_signal(signal.SIGTERM, None)
    assert ["told to end" in text for text in notice.news()] == [True]
    assert notice.news() == []


@pytest.mark.parametrize(
    ("numbers", "seconds", "second"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 0.0, False),  # `timeout` signals its command, and then its group
        ((signal.SIGTERM, signal.SIGTERM), 30.0, True),
        ((signal.SIGHUP, signal.SIGTERM), 30.0, True),
        ((signal.SIGHUP, signal.SIGHUP), 30.0, False),  # a shell and the kernel both say that the terminal is gone
        ((signal.SIGTERM, signal.SIGHUP), 30.0, False),
    ],
)
def test_a_notice_that_comes_twice_is_one_notice_and_a_later_one_another(
    numbers: tuple[int, int], seconds: float, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((100.0, 100.0 + seconds))
    monkeypatch.setattr(notices.time, "monotonic", lambda: next(times))
    first = notices.FirstNotice()
    assert [first.is_second(number) for number in numbers] == [False, second]
    assert first.received


def test_under_nohup_a_terminal_that_closes_is_no_notice() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may themselves run under nohup
    try:
        assert signal.SIGHUP in notices.notices_here()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert set(notices.notices_here()) == {signal.SIGTERM, signal.SIGUSR1}
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lost_head_ends_the_command_out_of_rays_call_with_an_error() -> None:
    notice = notices.Notice()
    with pytest.raises(HeadLostError, match="gone"), notice:
        notice.end_without_head(HeadLostError("gone"))


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    """Training on two workers that does not come to an end, nor to a checkpoint, by itself."""
    config = write_training(tmp_path, seed=0)
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "run" / "tokenizer" / "export")
    trainer = {"steps": WITHOUT_END, "checkpoint_every": WITHOUT_END, "zero_stage": 2}
    changes = (f"generator.trainer.{key}={value}" for key, value in trainer.items())
    return ("train-generator", str(config), f"run={tmp_path / 'run'}", *changes)


def until_it_trains(folder: Path, driver: Victim, after: int = 0) -> None:
    records = folder / "run" / "generator" / "metrics.jsonl"
    wait_for("a step", lambda: any(record["step"] > after for record in lines(records)), driver)


def happened(folder: Path, name: str) -> list[int]:
    return [e["step"] for e in lines(folder / "run" / "generator" / "events.jsonl") if e["event"] == name]


@pytest.fixture
def odd_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands start in the folder of other training code, and TMPDIR is too long for Ray's sockets."""
    project, temporary = tmp_path / "project", tmp_path / ("t" * 45)
    for folder in (project, project / "cluster", temporary):
        folder.mkdir()
    for name in ("model", "trainer", "data_pipeline", "utils", "yaml", "torch", "ray"):
        (project / f"{name}.py").write_text("raise ImportError('this is not what is installed')\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("TMPDIR", str(temporary))


@pytest.mark.drill
@pytest.mark.usefixtures("odd_place")
def test_a_notice_to_all_or_to_a_worker_and_a_lost_head_end_all_with_a_checkpoint(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    checkpoints = str(tmp_path / "run" / "generator" / "checkpoints")
    with started(*command) as driver:
        until_it_trains(tmp_path, driver)
        driver.signal_group(signal.SIGTERM)
        assert driver.wait(timeout=PATIENCE) == 0, driver.output()
        first = latest_step(checkpoints)
        assert first is not None
        line = f"generator: stopped at step {first} of {WITHOUT_END} on a termination notice; the same command goes on"
        assert line in driver.output()
    with started(*command) as driver:
        until_it_trains(tmp_path, driver, after=first)
        driver.workers("TrainWorker")[-1].send_signal(signal.SIGUSR1)
        assert driver.wait(timeout=PATIENCE) == 0, driver.output()
        second = latest_step(checkpoints)
        assert second is not None
        assert f"stopped at step {second} of" in driver.output()
    assert second > first
    with started(*command) as driver:
        until_it_trains(tmp_path, driver, after=second)
        family = driver.family()
        kill(next(process for process in family if "gcs_server" in title_of(process)))
        assert driver.wait(timeout=PATIENCE) == 1, driver.output()
        third = latest_step(checkpoints)
        assert (
            "Ray's head (GCS, or the raylet beside it) was lost, killed or cut off; no worker is at work, "
            f"the newest checkpoint is that of step {third}" in driver.output()
        )
        assert "Traceback" not in driver.output()
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
    assert third is not None
    assert third > second
    assert happened(tmp_path, "resume") == [first, second]
    assert happened(tmp_path, "stop") == [first, second, third]
    assert happened(tmp_path, "failure") == happened(tmp_path, "finish") == []


@pytest.mark.drill
def test_a_cluster_of_the_commands_own_whose_raylet_ends_is_lost(command: tuple[str, ...], tmp_path: Path) -> None:
    with started(*command, "cluster.workers=1") as driver:
        until_it_trains(tmp_path, driver)
        family = driver.family()
        kill(next(process for process in family if "raylet/raylet" in title_of(process)))
        assert driver.wait(timeout=PATIENCE) == 1, driver.output()
        assert "the raylet beside it) was lost" in driver.output()
        assert "Traceback" not in driver.output()
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []


@pytest.mark.drill
def test_a_second_notice_ends_the_command_at_once(command: tuple[str, ...], tmp_path: Path) -> None:
    with started(*command, "cluster.workers=1") as driver:
        until_it_trains(tmp_path, driver)
        # The first would be enough if the workers could end.
        for worker in driver.workers("TrainWorker"):
            worker.send_signal(signal.SIGSTOP)
        driver.send_signal(signal.SIGTERM)
        wait_for("a word of the first", lambda: "told to end" in driver.output(), driver)
        while driver.poll() is None:  # a repetition within a second is the same notice
            driver.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=0.2)
        assert driver.wait(timeout=PATIENCE) == -signal.SIGTERM
        assert "stopped at step" not in driver.output()


@pytest.mark.drill
def test_ctrl_c_ends_the_command_at_once_and_leaves_no_worker(command: tuple[str, ...], tmp_path: Path) -> None:
    with started(*command, "cluster.workers=1") as driver:
        until_it_trains(tmp_path, driver)
        family = driver.family()
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=PATIENCE) == 128 + signal.SIGINT, driver.output()
        assert "interrupted; the same command goes on from its last checkpoint" in driver.output()
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
