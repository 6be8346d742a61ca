"""What crashed processes left below a run or a data set: found, and removed when asked for.

Only in folders that are ours by their records, only names of our shapes (owned_folders.py), never through a link of
a local disk. A whole bucket is refused. Where a driver is at work nothing is a leftover; while leftovers of a folder
are removed its lease is held, so that no driver begins meanwhile, and each is looked at once more.

Nothing is a leftover whose last write is less than `older_than` seconds ago, or is not known. Beyond that each kind has
a rule of its own, by which no live run can still need it:

unfinished file     A local `.tmp-*` file. Its writer renames it as soon as it is full; no reader ever opens one.
unfinished upload   Parts of an S3 object that were never put together, with a mark of ours (upload_marks.py). Only the
                    process that began the upload knows its id. The age counts from its beginning: keep it above the
                    time that one object takes to go up.
upload mark         A mark whose upload is gone.
stray shard         A file named like a shard (its tar, index or record) beside a complete manifest.json that does not
                    name it, nor that of a data set below the same folder which was made of this one (edits.py).
                    Without manifest.json there are none: the next run takes up what is there.
old checkpoint      A checkpoint folder without COMPLETE and KEEP, and a complete one of a later step beside it. A run
                    resumes from the newest complete one, and never goes back. Later folders may be in the writing.
stray rank file     A worker's file in a complete checkpoint whose index does not name it: of an attempt at that step
                    which died. A complete checkpoint is not written again.
run file            control.json and progress.json beside a complete manifest.json: they steer and describe work that is
                    done. `foldtrain monitor` then tells the data set from its manifest alone.
"""

from __future__ import annotations

import functools
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases import owned_folders
from data_pipeline.leases.lease import LeaseHeldError, only_driver
from data_pipeline.leases.owned_folders import CHECKPOINT_FILE, SHARD, UPLOAD_MARK, Owned
from data_pipeline.shards.image_shards import INDEX_SUFFIX
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.shard_table import shard_uri
from data_pipeline.storage import upload_marks

OLDER_THAN = 3600.0
"""Seconds since the last write after which a thing may be a leftover."""

_STEP = re.compile(r"checkpoints/(step_\d{8,})/([^/]+|\.foldtrain-uploads/[^/]+)")
_RUN_FILES = ("control.json", "progress.json")
_LAST = chr(0x10FFFF)
"""Behind all names in their order."""
_SILENT_SECONDS = 600.0
"""A driver of another machine may be silent for so long and still count as at work, whatever `older_than` says."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Leftover:
    """A thing that nobody needs any more."""

    kind: str
    """As above."""
    uri: str
    """Where it is; ends in / if it is a whole folder."""
    bytes: int | None
    """Its size; None if the storage does not say, as for unfinished uploads."""
    age: float = field(compare=False)
    """Seconds since it was last written."""
    lease: str = ""
    """The folder in which a driver would work that needs it."""
    parts: tuple[tuple[str, float | None], ...] = ()
    """The files that it consists of, and when each was written."""
    upload: storage.UnfinishedUpload | None = None
    """What to abort, for an unfinished upload."""


Listing = dict[str, storage.Entry]
Candidate = tuple[str, str, list[str]]
"""Kind, name of the file or folder, and the files that it consists of."""


def find_leftovers(
    uri: str, older_than: float = OLDER_THAN, clock: Callable[[], float] = time.time, say: Say = lambda _: None
) -> list[Leftover]:
    """What may be removed below a folder, sorted by place.

    Args:
        uri: a run, a data set, or any folder that holds some, but no whole bucket.
        older_than: seconds since its last write; younger things are left alone.
        clock: seconds since 1970.
        say: is told of folders that are passed over, and why.

    Raises:
        UsageError: if a manifest is damaged, or a folder cannot be read; it names it. If `uri` is a whole bucket.
    """
    _refuse_whole(uri)
    place, now = _list(uri), clock()
    if not place.folders:
        say(f"{uri}: nothing there is a record of a run or a data set, so nothing there is ours to remove")
    free = [owned for owned in place.folders if not _is_at_work(place, owned, now, older_than, say)]
    found = [leftover for leftover in _judge(place, free, now) if leftover.age >= older_than]
    return sorted(found, key=lambda leftover: (leftover.uri, leftover.kind))


def remove(leftovers: Iterable[Leftover], say: Say = lambda _: None) -> Iterator[Leftover]:
    """Remove what was found and still is a leftover; yields each one when it is gone.

    Args:
        leftovers: as `find_leftovers` found them.
        say: is told of what is left alone, and why.
    """
    by_lease: dict[str, list[Leftover]] = {}
    for leftover in leftovers:
        by_lease.setdefault(leftover.lease, []).append(leftover)
    for folder, here in by_lease.items():
        try:
            with only_driver(folder, "gc", say=say) as lease:
                place = _list(folder)
                still = {leftover.uri: leftover for leftover in _judge(place, place.folders, time.time())}
                for leftover in here:
                    if still.get(leftover.uri) != leftover:
                        say(f"{leftover.uri} is no leftover any more, and is left alone")
                        continue
                    lease.require()
                    _remove(leftover)
                    yield leftover
        except LeaseHeldError as error:
            say(f"{error}. What is left over there stays for now")


@dataclass(frozen=True)
class _Place:
    """What lies below a folder."""

    uri: str
    """As it was asked for."""
    root: str
    """What names are relative to: the folder itself, or one above it that is a stage or a data set."""
    listing: Listing
    folders: list[Owned]
    """Those of ours."""

    def within(self, owned: Owned) -> list[str]:
        """The listed names below a folder of ours; looking for them does not look at those of other folders."""
        names, prefix = self._names, f"{owned.name}/" if owned.name else ""
        start = bisect_left(names, prefix)
        return names[start : bisect_left(names, prefix + _LAST, start)] if prefix else names

    @functools.cached_property
    def _names(self) -> list[str]:
        return sorted(self.listing)

    @functools.cached_property
    def named_elsewhere(self) -> frozenset[str]:
        """Shards, without their endings, that data sets made of others name in folders that are not their own."""
        found: set[str] = set()
        for owned in self.folders:
            if owned.manifest is not None and owned.manifest.get("edit"):
                uri = storage.absolute(_join(self.root, owned.name))
                manifest = (ImageManifest if owned.manifest["kind"] == "images" else TokenManifest).read(uri)
                found |= {shard_uri(uri, shard).removesuffix(".tar") for shard in manifest.shards if shard.folder}
        return frozenset(found)


def _list(uri: str) -> _Place:
    root, inside = owned_folders.above(uri)
    linked = owned_folders.is_link(uri) or owned_folders.is_link(storage.join(root, "checkpoints"))
    there = {} if inside and linked else owned_folders.entries(uri)
    listing = {f"{inside}/{name}" if inside else name: entry for name, entry in there.items()}
    known = (dict(owned_folders.records_of(root)) if inside else {}) | listing
    return _Place(uri, root, listing, owned_folders.find_owned(root, dict(sorted(known.items()))))


def _refuse_whole(uri: str) -> None:
    if storage.is_remote(uri):
        if "/" not in uri.partition("://")[2].strip("/"):
            raise UsageError(
                f"{uri} is a whole bucket, in which others have objects, too: give the folder of a run or a data set"
            )
    elif storage.local_path(uri).resolve().parent == storage.local_path(uri).resolve():
        raise UsageError(f"{uri} is the whole disk: give the folder of a run or a data set")


def _is_at_work(place: _Place, owned: Owned, now: float, older_than: float, say: Say) -> bool:
    """Whether a driver may be at work in a folder, or in the one above it where its lease is."""
    names = {owned.name, owned_folders.lease_folder(owned)}
    for each in place.folders:
        holder = each.holder
        if each.name not in names or holder is None or holder.released or holder.life() == "dead":
            continue
        silent = None if each.lease_written is None else now - each.lease_written
        if holder.life() == "alive" or silent is None or silent < max(older_than, _SILENT_SECONDS):
            say(f"{_join(place.root, owned.name)}: {holder} is at work there, so it is passed over")
            return True
    return False


def _judge(place: _Place, folders: list[Owned], now: float) -> Iterator[Leftover]:
    """All leftovers in some folders of ours, whatever their age."""
    found: dict[str, Leftover] = {}
    for owned in folders:
        for candidate in _candidates(place, owned):
            made = _leftover(place, owned, candidate, now)
            found.setdefault(made.uri, made)
    yield from found.values()
    yield from _uploads(place, folders, now)


def _leftover(place: _Place, owned: Owned, candidate: Candidate, now: float) -> Leftover:
    kind, name, parts = candidate
    written = [place.listing[part].modified for part in parts]
    known = [when for when in written if when is not None]
    age = now - max(known) if len(known) == len(written) else float("-inf")
    size = sum(place.listing[part].bytes for part in parts)
    files = tuple((_join(place.root, part), when) for part, when in zip(parts, written, strict=True))
    uri = _join(place.root, name.rstrip("/")) + "/" * name.endswith("/")
    return Leftover(kind, uri, size, age, _join(place.root, owned_folders.lease_folder(owned)), files)


def _join(root: str, name: str) -> str:
    return storage.join(root, name) if name else root


def _uploads(place: _Place, folders: list[Owned], now: float) -> Iterator[Leftover]:
    """Unfinished uploads that have a mark in a folder of ours, and marks whose upload is gone."""
    marks: dict[upload_marks.Mark, tuple[Owned, str]] = {}
    for name in filter(UPLOAD_MARK.fullmatch, place.listing):
        owned = next((each for each in folders if each.has_place_for(name)), None)
        mark = (
            upload_marks.parse(_join(place.root, name), owned_folders.read(_join(place.root, name))) if owned else None
        )
        if owned and mark:
            marks[mark] = owned, name
    uploads = storage.unfinished_uploads(place.uri) if marks else []
    unfinished = {upload_marks.Mark(upload.uri, upload.upload_id): upload for upload in uploads}
    for mark, (owned, name) in marks.items():
        made, upload = _leftover(place, owned, ("upload mark", name, [name]), now), unfinished.get(mark)
        if upload is None:
            yield made
        else:
            age = now - upload.started
            yield replace(made, kind="unfinished upload", uri=upload.uri, bytes=None, age=age, upload=upload)


def _remove(leftover: Leftover) -> None:
    if leftover.upload is not None:
        storage.abort_upload(leftover.upload)
    for path, _ in leftover.parts:
        storage.remove_file(path)
    if leftover.uri.endswith("/"):
        owned_folders.remove_empty(leftover.uri)


def _candidates(place: _Place, owned: Owned) -> Iterator[Candidate]:
    """All in a folder of ours but the unfinished uploads."""
    names = place.within(owned)
    old = list(_old_checkpoints(owned, names)) if owned.is_stage else []
    inside = {part for _, _, parts in old for part in parts}
    yield from old
    if owned.is_stage:
        yield from _stray_rank_files(place, owned)
    for name in names:
        if owned.has_draft(name) and name not in inside:
            yield "unfinished file", name, [name]
    if owned.manifest is not None:
        yield from _beside_manifest(place, owned)


def _beside_manifest(place: _Place, owned: Owned) -> Iterator[Candidate]:
    assert owned.manifest is not None
    path, kind = _join(place.root, owned.name), str(owned.manifest["kind"])
    manifest = (ImageManifest if kind == "images" else TokenManifest).read(path)
    named = {shard.name.removesuffix(".tar") for shard in manifest.shards}
    names = place.within(owned)
    rests = [owned.rest(name) or "" for name in names]
    empty = set(_quarantined_shards(path, rests, named)) if kind == "images" else set()
    for name in names:
        rest = owned.rest(name)
        match = SHARD.fullmatch(rest) if rest else None
        is_stray = match and match[1].startswith(kind) and match[1] not in named and match[1] not in empty
        if match and is_stray and storage.join(storage.absolute(path), match[1]) not in place.named_elsewhere:
            yield "stray shard", name, [name]
        elif rest in _RUN_FILES:
            yield "run file", name, [name]


def _quarantined_shards(path: str, names: list[str], named: set[str]) -> Iterator[str]:
    """Shards of which nothing is left: the manifest does not name them, and ingest knows by them what it has done."""
    for name in names:
        stem = name.removesuffix(INDEX_SUFFIX)
        if name.endswith(INDEX_SUFFIX) and "/" not in name and stem not in named:
            index = owned_folders.read(storage.join(path, name))
            if isinstance(index, dict) and index.get("quarantined") and not index.get("key"):
                yield stem


def _steps(owned: Owned, names: list[str]) -> dict[str, dict[str, str]]:
    """For each checkpoint folder of a stage (its name in the listing): its files by their names there."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = _STEP.fullmatch(owned.rest(name) or "")
        if match:
            found.setdefault(name.removesuffix(match[2]), {})[match[2]] = name
    return found


def _old_checkpoints(owned: Owned, names: list[str]) -> Iterator[Candidate]:
    steps = _steps(owned, names)
    newest = max((folder for folder, files in steps.items() if "COMPLETE" in files), key=_number, default=None)
    for folder, files in steps.items():
        if newest is not None and _number(folder) < _number(newest) and not {"COMPLETE", "KEEP"} & files.keys():
            parts = [name for base, name in files.items() if CHECKPOINT_FILE.fullmatch(base) or owned.has_draft(name)]
            if parts:
                yield "old checkpoint", folder, parts


def _number(folder: str) -> int:
    return int(folder.rstrip("/").rpartition("_")[2])


def _stray_rank_files(place: _Place, owned: Owned) -> Iterator[Candidate]:
    for folder, files in _steps(owned, place.within(owned)).items():
        if not {"COMPLETE", "index.json"} <= files.keys():
            continue
        index = owned_folders.read(_join(place.root, f"{folder}index.json"))
        try:
            named = {file["name"].partition(".")[0] for file in index["files"]}
        except (TypeError, KeyError, AttributeError):  # a damaged checkpoint: whose files are whose cannot be told
            continue
        for base, name in files.items():
            is_rank_file = base.startswith("rank_") and CHECKPOINT_FILE.fullmatch(base)
            if is_rank_file and base.partition(".")[0] not in named:
                yield "stray rank file", name, [name]
