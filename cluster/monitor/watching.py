"""How the stages of a run stand, read from the files that they leave at any URI. Reading never disturbs a run.

1. stage_readers.py keeps what was read of a stage, and reads what is new
2. `RunReader` asks for as much of a run as a look may cost

A look at a run in object storage that has not changed sends at most `MOST_REQUESTS` requests, however many stages it
has: both files of the stage that is at work are asked for, and the rest in turn. What has changed is read besides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import yaml

from cluster.config.errors import closest
from cluster.monitor.stage_readers import Check, SetReader, StageReader, TrainingReader, look_at_all
from cluster.monitor.stage_view import StageView
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text import yaml_dialect
from trainer.registry import FOLDERS, STAGES, value_at

_PARTS = {*FOLDERS, "evaluation.json", "stages.json", "report.html"}
"""What stages leave in a run."""
_MOST_CHILDREN = 50
"""Folders that are looked into for a run that may have been meant."""
MOST_REQUESTS = 4
"""Of a look at a run in object storage that has not changed."""
_MOST_OF_A_QUESTION = 2
_STARVED_LOOKS = 3
"""Looks at which what changed took all requests; then another question is asked all the same."""
Readers = Mapping[str, Callable[[str, str], StageReader]]
"""By what a stage makes: reads one of a run, given the run's URI and the folder."""
_READERS: Readers = {"network": TrainingReader, "shards": SetReader}


class RunReader:
    """The stages of a run that have begun, look after look.

    Args:
        run: its URI.
        kinds: what reads its stages.
    """

    def __init__(self, run: str, kinds: Readers = _READERS) -> None:
        self._run, self._kinds = run, kinds
        self.names = frozenset[str]()
        """What the folder of the run held when it was last listed."""
        self._readers: dict[str, StageReader] = {}
        self._looks = self._turn = self._starved = 0
        self._changed: dict[str, int] = {}  # the last look at which the stage of a folder had changed

    def look(self, now: float) -> list[StageView]:
        """How they stand, in their order, at a unix time in seconds."""
        self._looks += 1
        if self._looks > 1 and storage.is_remote(self._run):
            self._ask_some(now)
        else:
            for reader in self._readers.values():
                look_at_all(reader)
            self._list()
        return self._views(now)

    def _views(self, now: float) -> list[StageView]:
        views = (self._readers[stage.folder].view(now) for stage in STAGES if stage.folder in self._readers)
        return [view for view in views if view is not None]

    def _ask_some(self, now: float) -> None:
        """The stage at work, and the next of all other questions."""
        before = storage.requests().total()
        at_work = [view.name for view in self._views(now) if not view.has_ended]
        first = max(reversed(at_work), key=lambda folder: self._changed.get(folder, 0), default=None)
        if first is not None:
            for check in self._readers[first].checks:
                self._check(first, check)
        others = [
            (folder, check)
            for folder, reader in self._readers.items()
            for check in (*(reader.checks if folder != first else ()), *reader.seldom)
        ]
        questions: list[Callable[[], None]] = [*(functools.partial(self._check, *each) for each in others), self._list]
        self._starved += 1
        for _ in questions:
            has_room = storage.requests().total() - before + _MOST_OF_A_QUESTION <= MOST_REQUESTS
            if not has_room and self._starved < _STARVED_LOOKS:
                return
            self._turn, self._starved = (self._turn + 1) % len(questions), 0
            questions[self._turn]()

    def _check(self, folder: str, check: Check) -> None:
        if check():
            self._changed[folder] = self._looks

    def _list(self) -> None:
        """Find stages that have begun."""
        self.names = names = frozenset(storage.list_names(self._run))
        for stage in STAGES:
            if stage.product in self._kinds and stage.folder in names and stage.folder not in self._readers:
                self._readers[stage.folder] = self._kinds[stage.product](self._run, stage.folder)
                look_at_all(self._readers[stage.folder])
                self._changed[stage.folder] = self._looks


def read_run(run: str, now: float) -> list[StageView]:
    """The stages of a run that have begun, in their order. `now` is a unix time in seconds."""
    return RunReader(run).look(now)


def read_given(run: str, stages: Sequence[str]) -> dict[str, str]:
    """What a run takes from elsewhere, and from where, as its stages have recorded it; nothing where none has.

    Args:
        run: URI of the run.
        stages: folders of those that have begun, in their order; a later one's record goes before.
    """
    given: dict[str, str] = {}
    for stage in stages:
        try:
            text = storage.read_bytes(storage.join(run, stage, "config.yaml"), yaml_dialect.MOST_BYTES)
            found = value_at(yaml_dialect.parse(text), "inputs") or {}
            given |= {str(name): str(uri) for name, uri in found.items() if uri}
        except (FileNotFoundError, UsageError, yaml.YAMLError, TypeError, AttributeError):
            continue  # not written yet, or edited: whoever needs it says so
    return given


def is_run(names: Sequence[str]) -> bool:
    """Whether a folder that holds these names is that of a run of which a stage has begun."""
    return not _PARTS.isdisjoint(names)


def require_run(run: str) -> None:
    """Make sure that a run is there, whether or not any of its stages have begun.

    Raises:
        UsageError: if there is nothing, or something else; it says what is like it.
    """
    names = storage.list_names(run)
    if is_run(names) or (not names and not storage.is_remote(run) and storage.local_path(run).is_dir()):
        return
    if names:
        runs = [name for name in names[:_MOST_CHILDREN] if is_run(storage.list_names(storage.join(run, name)))]
        hint = f"did you mean {storage.join(run, runs[0])}?" if runs else f"a run has {', '.join(sorted(_PARTS))}"
        raise UsageError(f"{run} is no run: it holds {', '.join(names[:3])}; {hint}")
    raise UsageError(f"there is no run at {run}, or nothing has begun there yet: {_similar_run(run)}")


def _similar_run(run: str) -> str:
    """A hint at what may have been meant."""
    if not storage.is_remote(run):
        path = storage.local_path(run)
        near = closest(path.name, storage.list_names(str(path.parent)))
        if near:
            return f"did you mean {path.parent / near}?"
    return "give the folder that `run` names"
