"""Inputs in forked children, some hundred in each; a child that hangs or dies costs one finding and no more."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.fuzz.guard import SECONDS, WAITS, Guard, TooLongError
from benchmarks.fuzz.targets import TARGETS, Target
from benchmarks.fuzz.templates import Files
from data_pipeline.errors import FoldtrainError

BATCH = 200
READERS = 2
"""Commands that read an input, drawn anew for each, so that many inputs can be tried in the same time."""
_PATIENCE = 3 * WAITS * SECONDS
"""Seconds without a word after which a child hangs in something that takes no signal."""


@dataclass(frozen=True)
class Finding:
    """An input that did what none may do."""

    number: int
    target: str
    kind: str
    """traceback, memory, seconds, outside, died."""
    text: str


@dataclass
class Outcome:
    """What came of some inputs."""

    inputs: Counter[str] = field(default_factory=Counter)
    """By target."""
    refused: Counter[str] = field(default_factory=Counter)
    """Of them, those that at least one reader refused."""
    findings: list[Finding] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds of processor time of the input that took most."""
    peak_bytes: int = 0
    """Largest resident memory of a child, beyond that which it began with."""


def target_of(number: int, targets: Sequence[Target]) -> Target:
    """Which target an input is of."""
    return targets[number % len(targets)]


def make_input(number: int, seed: int, target: Target, files: Files) -> Files:
    """The files of an input, the same for the same seed."""
    return target.make(random.Random(f"{seed}-{number}"), files)


def try_input(
    target: Target, files: Files, root: Path, guard: Guard, number: int, seed: int
) -> tuple[bool, list[Finding]]:
    """Write an input and have it read. Says whether any reader refused it, and what was found."""
    rng = random.Random(f"{seed}-{number}-readers")
    _write(root, files)
    refused, findings = False, []
    named = files["config.yaml"].decode("utf-8", "replace") if target.name == "config" else ""
    readers = list(target.readers(root))
    for read in rng.sample(readers, min(READERS, len(readers))):
        kind, text = "", ""
        with guard.watching(root, named), contextlib.redirect_stdout(io.StringIO()):
            try:
                read()
            except FoldtrainError as error:
                refused = True
                str(error)
            except TooLongError:
                kind, text = "seconds", f"more than {SECONDS:g} s\n{traceback.format_exc(limit=-6)}"
            except MemoryError:
                kind, text = "memory", traceback.format_exc(limit=-6)
            except BaseException:
                kind, text = "traceback", traceback.format_exc(limit=-8)
        outside = [Finding(number, target.name, "outside", place) for place in guard.opened]
        findings += outside + ([Finding(number, target.name, kind, text)] if kind else [])
    return refused, findings


def warm_up(files: Files, targets: Sequence[Target]) -> None:
    """Read the valid files, so that the children need not import what that takes.

    Raises:
        FoldtrainError: if a reader refuses one, which makes all that it says of others worth nothing.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, contextlib.redirect_stdout(io.StringIO()):
        for readers in dict.fromkeys(target.readers for target in targets):
            _write(Path(place) / "run", files)
            for read in readers(Path(place) / "run"):
                read()


def _write(root: Path, files: Files) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def run(
    numbers: Sequence[int],
    seed: int,
    files: Files,
    targets: Sequence[Target] = TARGETS,
    progress: Callable[[int], None] = lambda _done: None,
) -> Outcome:
    """Try inputs by their numbers.

    Args:
        numbers: of the inputs.
        seed: of their changes.
        files: the valid files.
        targets: what is changed.
        progress: called with the inputs that are done.
    """
    warm_up(files, targets)
    outcome, waiting = Outcome(), list(numbers)
    while waiting:
        done = _run_child(waiting[:BATCH], seed, files, targets, outcome)
        waiting = waiting[done:]
        progress(len(numbers) - len(waiting))
    return outcome


def _run_child(numbers: Sequence[int], seed: int, files: Files, targets: Sequence[Target], outcome: Outcome) -> int:
    """Try inputs in one child; the one at which it hangs or dies is a finding. Returns how many are done."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, numbers, seed, files, targets))
    child.start()
    theirs.close()
    done = 0
    try:
        while done < len(numbers):
            refused, findings, seconds, peak = _word(ours)
            target = target_of(numbers[done], targets).name
            outcome.inputs[target] += 1
            outcome.refused[target] += refused
            outcome.findings += findings
            outcome.slowest, outcome.peak_bytes = max(outcome.slowest, seconds), max(outcome.peak_bytes, peak)
            done += 1
    except EOFError as error:
        child.kill()
        target = target_of(numbers[done], targets).name
        outcome.inputs[target] += 1
        outcome.findings.append(Finding(numbers[done], target, "died", f"the process ended or hung: {error}"))
        done += 1
    child.join()
    ours.close()
    return done


def _word(pipe: Connection) -> tuple[bool, list[Finding], float, int]:
    if not pipe.poll(_PATIENCE):
        raise EOFError(f"no word for {_PATIENCE:g} s")
    said: tuple[bool, list[Finding], float, int] = pipe.recv()
    return said


def _child(pipe: Connection, numbers: Sequence[int], seed: int, files: Files, targets: Sequence[Target]) -> None:
    guard = Guard()
    guard.bound_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        for number in numbers:
            target = target_of(number, targets)
            began = time.process_time()
            made = make_input(number, seed, target, files)
            refused, findings = try_input(target, made, Path(place) / "run", guard, number, seed)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            pipe.send((refused, findings, time.process_time() - began, peak))
