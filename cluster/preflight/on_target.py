"""The doctor on a target: its scheduler gives nodes as to any job, and what is found there comes back by the run.

<run>/preflight/<id>/config.yaml    what is checked for, written before the start
<run>/preflight/<id>/found.json     what was found, written by the first node; both are removed in the end
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from uuid import uuid4

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.loading import resolved_yaml
from cluster.config.run import RunConfig
from cluster.preflight.checks.storage import FOLDER, clear
from cluster.preflight.examining import Examined
from cluster.targets.config import TargetSection
from cluster.targets.target import ENDED, JobSpec, Target
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.counted import counted

CONFIG, FOUND = "config.yaml", "found.json"
WAIT_SECONDS = 900.0
"""For which nodes are waited for, and then for what they find."""
_LOOK_SECONDS = 1.0
_AFTER_END_SECONDS = 10.0
"""For which what was found is still looked for once the job has ended."""


def folder_of(run: str, identifier: str) -> str:
    """Where the doctor's two files are."""
    return storage.join(run, FOLDER, identifier)


def examine_on(
    target: Target,
    section: TargetSection,
    config: RunConfig,
    say: Callable[[str], object],
    seconds: float = WAIT_SECONDS,
) -> Examined:
    """Start the doctor on the nodes of a target, and wait for what it finds.

    Args:
        target: that starts it.
        section: its config.
        config: of the run: its storage, which both sides reach, and its needs.
        say: is told what happens.
        seconds: for which it is waited for. It is cancelled then.

    Raises:
        FoldtrainError: if the target cannot start it, or nothing comes back.
    """
    config = with_absolute_paths(config)
    identifier, run = f"doctor-{uuid4().hex[:6]}", storage.absolute(config.run)
    folder = folder_of(run, identifier)
    argv = (section.python, "-P", "-m", "cluster.preflight.process", run, identifier, str(section.fewest_nodes))
    job = JobSpec(id=identifier, stages=(), config=config, run=run, argv=argv)
    for sentence in target.check(job):
        say(sentence)
    storage.write_bytes(storage.join(folder, CONFIG), resolved_yaml(config).encode())
    try:
        handle = target.start(job)
        say(f"{target.name}: {identifier} is started as {handle}, on {counted(section.fewest_nodes, 'node')}")
        try:
            return _wait(target, handle, storage.join(folder, FOUND), seconds)
        except BaseException:
            with contextlib.suppress(FoldtrainError):
                target.cancel(handle)
            raise
    finally:
        clear(run, folder)


def _wait(target: Target, handle: str, found: str, seconds: float) -> Examined:
    until, status = time.monotonic() + seconds, "pending"
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            said = storage.read_json(found)
            if isinstance(said, dict) and isinstance(said.get("error"), str):
                raise FoldtrainError(f"{target.name}: the doctor failed there: {said['error']}")
            return Examined.from_json(said, found)
        state = target.state(handle)
        if state.status in ENDED and status not in ENDED:
            until = min(until, time.monotonic() + _AFTER_END_SECONDS)
        status = state.status
        time.sleep(_LOOK_SECONDS)
    state = target.state(handle)
    why = f" ({state.message})" if state.message else ""
    raise FoldtrainError(
        f"{target.name}: nothing came back from {handle}, which is {state.status}{why}: look at its output there; the "
        "node needs foldtrain, in the interpreter that the target names as `python`, and has to reach the run's folder"
    )
