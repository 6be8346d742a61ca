"""Which folders are ours by their records, and which names in them are ours by their shape.

A folder is ours if it holds one of

    manifest.json          of an image or token data set
    settings.json          of a training stage, or export/card.json of a finished one
    lease/000012.json      of a driver at work in it, now or once
    stages.json            of a run

Everything else that lies there, beside or below, is somebody else's, whatever it is called.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases import lease
from data_pipeline.leases.lease_record import Holder
from data_pipeline.shards.manifest import MANIFEST_NAME
from data_pipeline.storage import upload_marks

SETTINGS, CARD, STAGES = "settings.json", "export/card.json", "stages.json"
_DATA_SETS = ("images", "tokens")
_LEASE = re.compile(r"(?:(.+)/)?lease/\d{6,12}\.json")

SHARD = re.compile(r"((?:images|tokens)-\d{5,})\.(?:tar|json|index\.json)")
"""A shard, its index or its record."""
CHECKPOINT_FILE = re.compile(r"rank_\d{4,}(?:-[0-9a-f]+)?\.(?:safetensors|json)|index\.json|state\.json|DAMAGED")
"""What a checkpoint consists of, besides its marker and what a user puts there."""
UPLOAD_MARK = re.compile(r"(?:.+/)?\.foldtrain-uploads/[0-9a-f]{32}\.json")
_OWN_NAME = (
    rf"{SHARD.pattern}|{CHECKPOINT_FILE.pattern}|COMPLETE|\d{{6,12}}\.json|(?:metrics|events|ledger|quarantine)\.jsonl"
    r"|(?:manifest|control|progress|settings|lineage|environment|card|quarantine|stages|metrics|generated)\.json"
    r"|[0-9a-f]{12}-[0-9a-f]{12}-[0-9a-f]{8}|[0-9a-f]{16}(?:\.columns)?"
    r"|part-\d{5,}\.parquet|(?:listing|plan)\.json"
    r"|(?:shards|index)\.bin|config\.yaml|metrics\.prom|report\.html|(?:model|ema)\.safetensors|[0-9a-f]{32}\.json"
)
_CHECKPOINT_FILES = re.compile(
    rf"{CHECKPOINT_FILE.pattern}|\.foldtrain-uploads/[0-9a-f]{{32}}\.json|\.tmp-[0-9a-f]+-(?:{CHECKPOINT_FILE.pattern}|COMPLETE)"
)
_PLACE = (
    r"(?:(?:train|validation|held_out|quarantine|export|lease|checkpoints|(?:train|validation)/quarantine"
    r"|(?:listing|plan)/[0-9a-f]{32}"
    r"|(?:metrics|events|ledger)\.(?:segments|columns)|checkpoints/step_\d{8,})/)?(?:\.foldtrain-uploads/)?"
)
_OWN_FILE = re.compile(rf"{_PLACE}(?:{_OWN_NAME})")
_OWN_DRAFT = re.compile(rf"{_PLACE}\.tmp-[0-9a-f]+-(?:{_OWN_NAME})")


@dataclass
class Owned:
    """A folder of ours, by what it holds."""

    name: str
    """Relative to what was listed; empty for that itself."""
    manifest: dict[str, Any] | None = None
    is_stage: bool = False
    holder: Holder | None = None
    """Of its newest lease."""
    lease_written: float | None = field(default=None)
    """When that gave its last sign of life, in seconds since 1970 by the storage's clock."""

    def rest(self, name: str) -> str | None:
        """A listed name relative to this folder; None if it lies elsewhere."""
        prefix = f"{self.name}/" if self.name else ""
        return name.removeprefix(prefix) if name.startswith(prefix) else None

    def has_place_for(self, name: str) -> bool:
        """Whether a listed name is one of our files, where we put them."""
        rest = self.rest(name)
        return rest is not None and _OWN_FILE.fullmatch(rest) is not None

    def has_draft(self, name: str) -> bool:
        """Whether a listed name is a local file of ours that was not finished."""
        rest = self.rest(name)
        return rest is not None and _OWN_DRAFT.fullmatch(rest) is not None


def find_owned(root: str, listing: Mapping[str, storage.Entry]) -> list[Owned]:
    """The folders of ours in a listing."""
    found: dict[str, Owned] = {}

    def owned(name: str) -> Owned:
        return found.setdefault(name, Owned(name))

    for name, entry in listing.items():
        folder, _, base = name.rpartition("/")
        if base == MANIFEST_NAME:
            record = read(storage.join(root, name))
            if isinstance(record, dict) and record.get("kind") in _DATA_SETS:
                owned(folder).manifest = record
        elif base == SETTINGS and _is_settings(read(storage.join(root, name))):
            owned(folder).is_stage = True
        elif (name == CARD or name.endswith(f"/{CARD}")) and _is_card(read(storage.join(root, name))):
            owned(name.removesuffix(CARD).rstrip("/")).is_stage = True
        elif base == STAGES and _is_times(read(storage.join(root, name))):
            owned(folder)
        elif match := _LEASE.fullmatch(name):
            holder = _holder(read(storage.join(root, name)))
            if holder is not None:  # names come in order, so the newest is last
                here = owned(match[1] or "")
                here.holder, here.lease_written = holder, entry.modified
    return [found[name] for name in sorted(found)]


def lease_folder(owned: Owned) -> str:
    """Where a driver that works in a folder takes its lease, relative to what was listed: above its splits."""
    parent, _, base = owned.name.rpartition("/")
    splits = {"images": ("train", "validation"), "tokens": ("held_out",)}
    is_split = owned.manifest is not None and base in splits[owned.manifest["kind"]]
    return parent if is_split else owned.name


def above(uri: str) -> tuple[str, str]:
    """The folder in which a driver of `uri` takes its lease and keeps its records, and `uri` relative to that."""
    if "/" not in uri.rstrip("/"):
        uri = storage.absolute(uri)
    base = uri.rstrip("/")
    for below in (r"checkpoints/step_\d{8,}", "checkpoints", "export", "train", "validation", "held_out"):
        match = re.fullmatch(rf"(.+[^/])/+({below})", base)
        if match and "://" not in match[1][-3:]:
            return match[1], match[2]
    return uri, ""


def records_of(root: str) -> Iterator[tuple[str, storage.Entry]]:
    """The records directly in a folder that is not listed as a whole."""
    names = storage.list_names(root)
    for name in (SETTINGS, STAGES):
        if name in names:
            yield name, storage.Entry(0, None)
    if lease.FOLDER in names:
        for name, entry in storage.entries(storage.join(root, lease.FOLDER)).items():
            yield f"{lease.FOLDER}/{name}", entry


def entries(uri: str) -> dict[str, storage.Entry]:
    """As `storage.entries`, but no link of a local disk is followed, and none is listed.

    Raises:
        UsageError: if a folder cannot be read.
    """
    if storage.is_remote(uri):
        return storage.entries(uri)
    root, found = storage.local_path(uri), dict[str, storage.Entry]()

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise UsageError(f"{error.filename}: {error.strerror}, so it cannot be told what is left over there")

    for folder, _, names in os.walk(root, onerror=refuse):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - many files
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[os.path.relpath(path, root)] = storage.Entry(status.st_size, status.st_mtime)
    return dict(sorted(found.items()))


def is_link(uri: str) -> bool:
    """Whether a local folder is a link to another one."""
    return not storage.is_remote(uri) and storage.local_path(uri.rstrip("/")).is_symlink()


def is_stage(uri: str) -> bool:
    """Whether a folder is a training stage of ours."""
    return _is_settings(read(storage.join(uri, SETTINGS))) or _is_card(read(storage.join(uri, CARD)))


def refuse_foreign_stage(uri: str, checkpoints: str) -> None:
    """Make sure that a folder is a training stage of ours, and its checkpoints lie in it.

    Raises:
        UsageError: if not; it says why.
    """
    if not is_stage(uri):
        raise UsageError(f"{uri} is no stage of foldtrain: it has no {SETTINGS} of one. Its files are left alone")
    linked = next((each for each in (uri, checkpoints) if is_link(each)), None)
    if linked:
        raise UsageError(f"{linked} is a link, and nothing is removed through links: delete what it leads to by hand")


def remove_checkpoint(folder: str) -> None:
    """Remove what is ours of a checkpoint folder: its marker first, so that no half is taken for a whole.

    What others put there stays. On a local disk no link is followed.
    """
    storage.remove_file(storage.join(folder, "COMPLETE"))
    there = entries(folder)
    own = [name for name in there if _CHECKPOINT_FILES.fullmatch(name)]
    for path in (storage.join(folder, name) for name in own if UPLOAD_MARK.fullmatch(name)):
        mark = upload_marks.parse(path, read(path))
        if mark:
            storage.abort_upload(storage.UnfinishedUpload(*mark, 0.0))
    if storage.is_remote(folder) and len(own) == len(there):
        storage.remove_tree(folder)  # many at once
        return
    for name in own:
        storage.remove_file(storage.join(folder, name))
    remove_empty(folder)


def remove_empty(folder: str) -> None:
    """Remove a local checkpoint folder, unless somebody else has something there."""
    if not storage.is_remote(folder):
        path = storage.local_path(folder.rstrip("/"))
        for each in (path / upload_marks.FOLDER, path):
            with suppress(OSError):
                each.rmdir()


def read(path: str) -> Any:
    """A record; None if there is none that is JSON, so none of ours."""
    try:
        return storage.read_json(path)
    except (UsageError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _is_settings(record: Any) -> bool:
    """Whether a record is what a training stage of any name was begun with (trainer/job.py)."""
    fields = {"stage": str, "section": dict, "seed": int, "data": dict, "lineage": dict}
    return isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in fields.items())


def _is_card(record: Any) -> bool:
    """Whether a record is the card of a network of any kind (data_pipeline/shards/weights.py)."""
    fields = {"kind": str, "config": dict}
    return isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in fields.items())


def _is_times(record: Any) -> bool:
    return (
        isinstance(record, list)
        and bool(record)
        and all(isinstance(each, dict) and {"stage", "seconds", "items"} <= each.keys() for each in record)
    )


def _holder(record: Any) -> Holder | None:
    try:
        return Holder.parse(record)
    except (ValueError, TypeError, KeyError):
        return None
