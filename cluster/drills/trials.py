"""What all drills share: a reference, trials one after the other, and what is on record of each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from data_pipeline.errors import UsageError

RESTARTS = 3
"""Times that a command which was killed is started again."""
MISSES = 3
"""Times that a trial is tried again because its command ended before it was struck."""


@dataclass
class Trial:
    """What came of a trial."""

    seed: int
    subject: str
    """What was struck: the stage, and how it was run."""
    blows: list[str] = field(default_factory=list)
    """What was struck, and when."""
    exit_codes: list[int] = field(default_factory=list)
    """Of each start of the command; negative for a signal."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """What is wrong in the end."""

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return vars(self) | {"passed": not self.problems}


T = TypeVar("T", bound=Trial)
T_co = TypeVar("T_co", bound=Trial, covariant=True)


class Drill(Protocol[T_co]):
    """What is needed for trials, in a `with` statement."""

    def __enter__(self) -> Self:
        """Start it."""

    def __exit__(self, *_: object) -> None:
        """End all of its processes."""

    def make_reference(self, seed: int) -> None:
        """The undisturbed work to which the trial of a seed is compared.

        Raises:
            FoldtrainError: if it fails.
        """

    def try_seed(self, seed: int) -> T_co:
        """The trial of a seed."""


def until_struck(trial: Callable[[int], T]) -> T:
    """A trial; once more where the command was done before it could be struck. `trial` is given the try's number."""
    for number in range(MISSES):
        done = trial(number)
        if done.blows or done.problems:
            return done
    done.problems.append(f"the command ended before it was struck, {MISSES} times")
    return done


def run_trials(
    make: Callable[[Path, int], Drill[T]],
    seeds: Sequence[int],
    folder: Path | None,
    *,
    keep: bool,
    say: Callable[[str], None] = lambda _text: None,
) -> Generator[T, None, None]:
    """Trials, one after the other. All processes have ended when it has, or is closed.

    Args:
        make: the drill, given its folder and the first seed, which is that of its data, too.
        seeds: of the trials.
        folder: where to work, empty or not there; None for a temporary one.
        keep: leave the folder as it is in the end.
        say: told what goes on.

    Raises:
        UsageError: if the folder is not empty, or SeaweedFS is not installed.
        FoldtrainError: if a command fails without any blow.
    """
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: choose another --folder, or delete it")
    place = Path(tempfile.mkdtemp(prefix="foldtrain-drill-")) if folder is None else folder.absolute()
    place.mkdir(parents=True, exist_ok=True)
    say(f"working in {place}")
    try:
        with make(place, seeds[0]) as drill:
            say("making the reference, undisturbed")
            drill.make_reference(seeds[0])
            for seed in seeds:
                yield drill.try_seed(seed)
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
