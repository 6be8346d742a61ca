"""What crashed processes left below a run or a data set: found, and removed when asked for.

Nothing is a leftover whose last write is less than `older_than` seconds ago, or is not known. Beyond that each kind has
a rule of its own, by which no live run can still need it:

unfinished file     A local `.tmp-*` file. Its writer renames it as soon as it is full; no reader ever opens one.
unfinished upload   Parts of an S3 object that were never put together. Only the process that began the upload knows its
                    id. The age counts from its beginning: keep it above the time that one object takes to go up.
stray shard         A file named like a shard (its tar, index or record) beside a complete manifest.json that does not
                    name it. Without manifest.json there are none: the next run takes up what is there.
old checkpoint      A checkpoint folder without COMPLETE, and a complete one of a later step beside it. A run resumes
                    from the newest complete one, and never goes back. Later folders may be in the writing.
stray rank file     A worker's file in a complete checkpoint whose index does not name it: of an attempt at that step
                    which died. A complete checkpoint is not written again.
run file            control.json and progress.json beside a complete manifest.json: they steer and describe work that is
                    done. `foldtrain monitor` then tells the data set from its manifest alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.image_shards import INDEX_SUFFIX
from data_pipeline.manifest import MANIFEST_NAME, ImageManifest, TokenManifest

OLDER_THAN = 3600.0
"""Seconds since the last write after which a thing may be a leftover."""

_SHARD = re.compile(r"((?:images|tokens)-\d{5,})\..+")
_STEP = re.compile(r"(.*/)?step_(\d{8})/([^/]+)")
_RUN_FILES = ("control.json", "progress.json")
_MANIFESTS: dict[object, type[ImageManifest] | type[TokenManifest]] = {"images": ImageManifest, "tokens": TokenManifest}


@dataclass(frozen=True)
class Leftover:
    """A thing that nobody needs any more."""

    kind: str
    """As above."""
    uri: str
    """Where it is; ends in / if it is a whole folder."""
    bytes: int | None
    """Its size; None if the storage does not say, as for unfinished uploads."""
    age: float
    """Seconds since it was last written."""
    upload: storage.UnfinishedUpload | None = None
    """What to abort, for an unfinished upload."""


Listing = dict[str, storage.Entry]
Candidate = tuple[str, str, list[str]]
"""Kind, name of the file or folder, and the files that it consists of."""


def find_leftovers(uri: str, older_than: float = OLDER_THAN, clock: Callable[[], float] = time.time) -> list[Leftover]:
    """What may be removed below a folder, sorted by place.

    Args:
        uri: a run, a data set, or any folder that holds some.
        older_than: seconds since its last write; younger things are left alone.
        clock: seconds since 1970.

    Raises:
        UsageError: if a manifest is damaged; it names it.
    """
    listing = storage.entries(uri)
    uploads = storage.unfinished_uploads(uri)
    now = clock()
    found = []
    for kind, name, parts in _candidates(uri, listing):
        written = [listing[part].modified for part in parts]
        if all(when is not None and now - when >= older_than for when in written):
            age = now - max(when for when in written if when is not None)
            size = sum(listing[part].bytes for part in parts)
            found.append(Leftover(kind, storage.join(uri, name) + "/" * name.endswith("/"), size, age))
    found += [
        Leftover("unfinished upload", upload.uri, None, now - upload.started, upload)
        for upload in uploads
        if now - upload.started >= older_than
    ]
    return sorted(found, key=lambda leftover: (leftover.uri, leftover.kind))


def remove(leftovers: Iterable[Leftover]) -> Iterator[Leftover]:
    """Remove them; yields each one when it is gone."""
    for leftover in leftovers:
        if leftover.upload is not None:
            storage.abort_upload(leftover.upload)
        elif leftover.uri.endswith("/"):
            storage.remove_tree(leftover.uri)
        else:
            storage.remove_file(leftover.uri)
        yield leftover


def _candidates(uri: str, listing: Listing) -> Iterator[Candidate]:
    """All but the unfinished uploads, whatever their age."""
    old = list(_old_checkpoints(listing))
    inside = {part for _, _, parts in old for part in parts}
    yield from old
    yield from _stray_rank_files(uri, listing)
    for name in listing:
        if name.rsplit("/", 1)[-1].startswith(storage.TEMPORARY) and name not in inside:
            yield "unfinished file", name, [name]
    for name in listing:
        folder, _, base = name.rpartition("/")
        if base == MANIFEST_NAME:
            yield from _beside_manifest(uri, folder, listing)


def _beside_manifest(uri: str, folder: str, listing: Listing) -> Iterator[Candidate]:
    path = storage.join(uri, folder) if folder else uri
    record = storage.read_json(storage.join(path, MANIFEST_NAME))
    kind = _MANIFESTS.get(str(record.get("kind"))) if isinstance(record, dict) else None
    if kind is None:
        return
    named = {shard.name.removesuffix(".tar") for shard in kind.read(path).shards}
    prefix = f"{folder}/" if folder else ""
    empty = set(_quarantined_shards(path, named)) if kind is ImageManifest else set()
    for name in listing:
        base = name.removeprefix(prefix)
        if not name.startswith(prefix) or "/" in base:
            continue
        match = _SHARD.fullmatch(base)
        if match and match[1] not in named and match[1] not in empty:
            yield "stray shard", name, [name]
        elif base in _RUN_FILES:
            yield "run file", name, [name]


def _quarantined_shards(path: str, named: set[str]) -> Iterator[str]:
    """Shards of which nothing is left: the manifest does not name them, and ingest knows by them what it has done."""
    for name in storage.list_names(path):
        stem = name.removesuffix(INDEX_SUFFIX)
        if name.endswith(INDEX_SUFFIX) and stem not in named:
            index = storage.read_json(storage.join(path, name))
            if isinstance(index, dict) and index.get("quarantined") and not index.get("key"):
                yield stem


def _old_checkpoints(listing: Listing) -> Iterator[Candidate]:
    folders: dict[str, dict[int, list[str]]] = {}
    for name in listing:
        match = _STEP.fullmatch(name)
        if match:
            folders.setdefault(match[1] or "", {}).setdefault(int(match[2]), []).append(name)
    for parent, steps in folders.items():
        names = {step: f"{parent}step_{step:08d}/" for step in steps}
        complete = [step for step, parts in steps.items() if f"{names[step]}COMPLETE" in parts]
        for step, parts in steps.items():
            if step not in complete and step < max(complete, default=-1):
                yield "old checkpoint", names[step], parts


def _stray_rank_files(uri: str, listing: Listing) -> Iterator[Candidate]:
    folders = {name.removesuffix("COMPLETE") for name in listing if (m := _STEP.fullmatch(name)) and m[3] == "COMPLETE"}
    for folder in sorted(folders):
        if f"{folder}index.json" not in listing:
            continue
        try:
            index = storage.read_json(storage.join(uri, f"{folder}index.json"))
        except UsageError:  # a damaged checkpoint: whose files are whose cannot be told
            continue
        named = {file["name"].partition(".")[0] for file in index.get("files", ())}
        for name in listing:
            base = name.removeprefix(folder)
            if name.startswith(f"{folder}rank_") and base.partition(".")[0] not in named:
                yield "stray rank file", name, [name]
