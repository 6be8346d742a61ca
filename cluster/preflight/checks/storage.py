"""The run's storage, from every node: written, read, listed, and the same for all of them; and what is read from."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.preflight.checks.check import Check, listed, or_all_well
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Failure, Nodes
from cluster.preflight.wanted import Wanted
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience

NAME = "storage"
PATIENCE_SECONDS = 4.0
"""For which a node tries again what may pass."""
FOLDER = "preflight"
"""Below the run: of what is written, and removed again."""
_BYTES = 4096
_MOST_SEEN = 8
"""Nodes whose files each node looks for."""
_SECONDS = 15.0


@dataclass(frozen=True)
class Access:
    """What a node can do."""

    error: str = ""
    """Why it cannot write, or read what it has written."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot read what is only read, by URI."""


@contextmanager
def trial_folder(nodes: Nodes, run: str) -> Iterator[str]:
    """A folder below a run to try things in. It is gone afterwards, if storage lets it go."""
    folder = storage.join(run, FOLDER, secrets.token_hex(8))
    try:
        yield folder
    finally:
        first = next(iter(nodes.addresses))
        nodes.each(clear, {first: (run, folder)}, _SECONDS)


def clear(run: str, folder: str) -> None:
    """Remove a folder of trials, and on a disk the folders that were made for it and are empty."""
    with patience(PATIENCE_SECONDS), contextlib.suppress(FoldtrainError, OSError):
        storage.remove_tree(folder)
        if not storage.is_remote(run):
            for each in (storage.local_path(storage.join(run, FOLDER)), storage.local_path(run)):
                each.rmdir()  # raises where anything is in it


def attempt(work: Callable[[], str]) -> str:
    """Why something is wrong, as it says or as storage does; empty if it is not."""
    try:
        with patience(PATIENCE_SECONDS):
            return work()
    except (FoldtrainError, OSError) as error:
        return " ".join(str(error).split())


def look(folder: str, name: str, reads: Sequence[str]) -> Access:
    """Write a file, read it back, and look at what is only read."""
    uri, data = storage.join(folder, name), secrets.token_bytes(_BYTES)

    def write() -> str:
        storage.write_bytes(uri, data)
        if storage.read_bytes(uri, _BYTES) != data or storage.read_range(uri, 1, 2) != data[1:3]:
            return f"{uri}: what is read is not what was written"
        return "" if name in storage.list_names(folder) else f"{folder}: its listing leaves out what was just written"

    unread = {place: why for place in reads if (why := attempt(functools.partial(_read, place)))}
    return Access(attempt(write), unread)


def _read(place: str) -> str:
    return "" if storage.exists(place) else "is not there"


def unseen(folder: str, names: Mapping[str, str]) -> list[str]:
    """Those nodes, of some, whose files are not here."""

    def is_there(name: str) -> bool:
        with patience(PATIENCE_SECONDS), contextlib.suppress(FoldtrainError, OSError):
            return storage.exists(storage.join(folder, name))
        return True  # that storage fails is found by `look`

    return [node for node, name in names.items() if not is_there(name)]


def _measure(nodes: Nodes, wanted: Wanted) -> Mapping[str, tuple[Access, list[str]] | Failure]:
    assert wanted.run is not None
    names = {node: f"node-{number:05d}" for number, node in enumerate(nodes.addresses)}
    with trial_folder(nodes, wanted.run) as folder:
        asked = {node: (folder, name, wanted.reads) for node, name in names.items()}
        found = nodes.each(look, asked, _SECONDS)
        up = {node: access for node, access in found.items() if not isinstance(access, Failure)}
        written = {node: names[node] for node, access in up.items() if not access.error}
        some = dict(list(written.items())[:_MOST_SEEN])
        missed = nodes.each(unseen, dict.fromkeys(written, (folder, some)), _SECONDS) if len(written) > 1 else {}
    return {
        node: access if isinstance(access, Failure) else (access, _answered(missed.get(node, [])))
        for node, access in found.items()
    }


def _answered(missed: list[str] | Failure) -> list[str]:
    return [] if isinstance(missed, Failure) else missed


def judge(facts: Mapping[str, tuple[Access, list[str]]], wanted: Wanted) -> list[Finding]:
    """Nodes that cannot write, read, or do not share what others wrote."""
    findings = _alike({node: access.error for node, (access, _) in facts.items()}, _WRITE)
    for place in wanted.reads:
        why = {node: access.unread.get(place, "") for node, (access, _) in facts.items()}
        findings += _alike({node: f"{place}: {text}" if text else "" for node, text in why.items()}, _READ)
    for node, (_, missed) in facts.items():
        if missed:
            found = f"{wanted.run}: does not see what {listed(missed)} wrote there"
            findings.append(Finding(node, NAME, "error", found, _SHARE))
    return or_all_well(findings, NAME, f"{wanted.run} is written, read and listed by {len(facts)}")


def _alike(why: Mapping[str, str], remedy: str) -> list[Finding]:
    """A finding for each node, or one for all of them where none can."""
    failed = {node: text for node, text in why.items() if text}
    if len(failed) > 1 and len(failed) == len(why):
        return [Finding(EVERY, NAME, "error", next(iter(failed.values())), remedy)]
    return [Finding(node, NAME, "error", text, remedy) for node, text in failed.items()]


def has_run(wanted: Wanted) -> bool:
    """Whether there is storage to try."""
    return wanted.run is not None


_WRITE = (
    "give the node credentials (and AWS_ENDPOINT_URL) that may write and read there, as the others have; on a disk, "
    "mount it and give this user the right to write"
)
_READ = "give the node credentials that may read there, or mount it where the others have it"
_SHARE = "put the run on storage that all nodes share (run: s3://…, or a folder that is mounted on each of them)"
CHECK = Check(
    NAME,
    _measure,
    judge,
    remedy="storage does not answer this node: check its network, its proxy and AWS_ENDPOINT_URL there",
    applies=has_run,
)
