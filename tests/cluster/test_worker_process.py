"""A training worker says how its stage ended, listens meanwhile, and has forgotten it before the next one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cluster.session.ray_processes import NOTICES
from cluster.training.worker_process import TrainWorker
from data_pipeline.errors import CorruptShardError
from trainer.loop.ending import Ending, EndRequest

SECONDS = 60.0
JOB: Any = object()
Run = Callable[[Any, torch.device, EndRequest, float], tuple[Ending, int]]


@pytest.fixture
def worker() -> Iterator[TrainWorker]:
    """One for the CPU, in this process."""
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in NOTICES}
    before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    yield TrainWorker(threads)
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Sets what training does."""
    return lambda run: monkeypatch.setattr("trainer.loop.worker.run_worker", run)


def until_asked(_job: Any, _device: torch.device, request: EndRequest, _asked: float) -> tuple[Ending, int]:
    """Train until somebody asks for the end."""
    wait = threading.Event()
    while not (request.stop_asked or request.pause_asked):
        wait.wait(0.001)
    return (Ending.STOPPED if request.stop_asked else Ending.PAUSED), 7


def test_a_stage_is_trained_beside_the_thread_that_listens(worker: TrainWorker, trains: Callable[[Run], None]) -> None:
    trains(until_asked)
    worker.train(JOB, 0.0, Ending.STOPPED)
    assert worker.wait(0.01) is None
    worker.end(Ending.PAUSED)
    outcome = worker.wait(SECONDS)
    assert outcome is not None
    assert (outcome.ending, outcome.step, outcome.error) == (Ending.PAUSED, 7, None)


@pytest.mark.parametrize(("signalled", "ending"), [(Ending.STOPPED, Ending.STOPPED), (Ending.PAUSED, Ending.PAUSED)])
def test_a_signal_to_a_worker_asks_for_the_end_that_fits_its_stage(
    worker: TrainWorker, trains: Callable[[Run], None], signalled: Ending, ending: Ending
) -> None:
    trains(until_asked)
    worker.train(JOB, 0.0, signalled)
    os.kill(os.getpid(), signal.SIGUSR1)
    outcome = worker.wait(SECONDS)
    assert outcome is not None
    assert outcome.ending is ending


def test_a_later_stage_is_not_asked_for_what_an_earlier_one_was(
    worker: TrainWorker, trains: Callable[[Run], None]
) -> None:
    trains(until_asked)
    for ending in (Ending.STOPPED, Ending.PAUSED):
        worker.train(JOB, 0.0, Ending.STOPPED)
        worker.end(ending)
        outcome = worker.wait(SECONDS)
        assert outcome is not None
        assert outcome.ending is ending
        worker.reset()
        assert worker.wait(0) is None


def test_what_a_command_wants_on_record_reaches_the_stage(worker: TrainWorker, trains: Callable[[Run], None]) -> None:
    noted: list[Any] = []

    def until_noted(_job: Any, _device: torch.device, request: EndRequest, _asked: float) -> tuple[Ending, int]:
        while not noted:
            noted.extend(request.take_notes())
        noted.extend(request.take_notes())  # each once
        return Ending.FINISHED, 7

    trains(until_noted)
    worker.train(JOB, 0.0, Ending.STOPPED)
    worker.note("scale", {"min": 1, "max": 2})
    assert worker.wait(SECONDS) is not None
    assert noted == [("scale", {"min": 1, "max": 2})]


def test_an_error_comes_with_its_traceback(worker: TrainWorker, trains: Callable[[Run], None]) -> None:
    error = CorruptShardError("images-0001.tar is damaged")

    def fail(*_: Any) -> tuple[Ending, int]:
        raise error

    trains(fail)
    worker.train(JOB, 0.0, Ending.STOPPED)
    outcome = worker.wait(SECONDS)
    assert outcome is not None
    assert outcome.error is error
    assert "in fail" in outcome.trace


def test_of_an_error_that_cannot_be_sent_its_words_are(worker: TrainWorker, trains: Callable[[Run], None]) -> None:
    class LocalError(Exception):
        """It is known in this function only."""

    def fail(*_: Any) -> tuple[Ending, int]:
        raise LocalError("no space left")

    trains(fail)
    worker.train(JOB, 0.0, Ending.STOPPED)
    outcome = worker.wait(SECONDS)
    assert outcome is not None
    assert repr(outcome.error) == "RuntimeError('LocalError: no space left')"


@pytest.mark.parametrize(("gpu", "device"), [(None, "cpu"), (1, "cuda:1")])
def test_it_computes_on_what_it_reserves_and_sees_the_gpus_of_its_node(
    worker: TrainWorker,
    trains: Callable[[Run], None],
    monkeypatch: pytest.MonkeyPatch,
    gpu: int | None,
    device: str,
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("trainer.loop.libraries.import_stage", lambda *_: None)
    kept: list[str] = []
    monkeypatch.setattr("cluster.training.worker_process.keep_freed_memory", lambda: kept.append("memory"))
    used: list[torch.device] = []

    def run(_job: Any, given: torch.device, *_: Any) -> tuple[Ending, int]:
        used.append(given)
        return Ending.FINISHED, 3

    trains(run)
    worker.prepare("generator", () if gpu is None else ("4", "6"), gpu)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if gpu is None else "4,6")
    worker.train(JOB, 0.0, Ending.STOPPED)
    outcome = worker.wait(SECONDS)
    assert outcome is not None
    assert (outcome.ending, outcome.step) == (Ending.FINISHED, 3)
    assert [str(each) for each in used] == [device]
    assert chosen == ([] if gpu is None else used)
    assert kept == (["memory"] if gpu is None else [])
