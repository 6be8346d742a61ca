"""Which shards of a plan are committed, and what their records say: a row of numbers for each shard.

    listing    one listing of the output says which tars and records there are, how long they are, and when they were
               written. A shard is committed if its record is there and its tar is as long as the record says
    manifest   a manifest of this very plan says of all shards what their records say. It is believed for each record
               that storage lists as older than the manifest, so that a start with everything done reads one record
    records    what is not known from the manifest is read, many at a time, one request each
    workers    what a worker of this run has just committed is known from the worker; its presence is looked for again

Times are those of the storage's own clock, in one listing; what has the same second as the manifest is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.shards.manifest import (
    COMMIT_VERSION,
    MANIFEST_NAME,
    ShardRecord,
    TokenCommit,
    TokenManifest,
    differences,
)
from data_pipeline.shards.versions import check_version
from data_pipeline.text import json_records
from data_pipeline.tokens.plan import PlannedShard, TokenPlan

READS_AT_ONCE = 64
"""Records that are read at the same time."""
_SUBMITTED = 512
"""Records that wait for it: a future of each of a million would be a gigabyte."""

_REPORTED = np.inf
"""In place of when a record was written: a worker of this run has reported it."""


def record_name(shard: str) -> str:
    """The commit record of a shard."""
    return shard.removesuffix(".tar") + ".json"


def _checked(path: str, record: Any, made_by: dict[str, Any], setting: str) -> TokenCommit:
    """The commit record of a token shard, if it is one of tokens that follow from `made_by`."""
    if isinstance(record, dict):
        remedy = f"choose another {setting}, or delete that folder"
        check_version(path, "a commit record of a token shard", record.get("version"), COMMIT_VERSION, remedy)
    try:
        commit = TokenCommit.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"{path} is no commit record of a token shard: delete it and run again") from error
    found = differences(commit.made_by, made_by)
    if found:
        raise UsageError(
            f"{path} belongs to tokens that were made otherwise (there -> now):\n  "
            + "\n  ".join(found)
            + f"\nChoose another {setting}, or delete that folder."
        )
    if record_name(commit.shard.name) != path.rpartition("/")[2]:
        raise UsageError(f"{path} is the commit record of {commit.shard.name}, another shard: delete it and run again")
    return commit


class Commits:
    """What is known of the shards of a plan; `read_commits` makes it.

    Args:
        plan: of whose shards.
    """

    def __init__(self, plan: TokenPlan) -> None:
        count = len(plan.shards)
        self.plan = plan
        self._bytes = np.zeros(count, np.int64)
        """Length of each tar; 0 for what is not committed."""
        self._sha256 = np.zeros((count, 32), np.uint8)
        self._software = np.zeros(count, np.int32)
        self._written = np.full(count, _REPORTED)
        """When storage says that the record was written."""
        self._softwares: list[dict[str, str]] = []
        self.manifest: TokenManifest | None = None
        """The manifest, if it says all that is here."""
        self._stale = np.empty(0, np.int64)
        """Shards whose tar is not there, or is another one, but that have a record."""

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the shards that are still to be made, ascending."""
        return np.flatnonzero(self._bytes == 0)

    def images(self, numbers: npt.NDArray[np.int64]) -> int:
        """Images of these shards in all."""
        starts = numbers * self.plan.shard_samples
        return int(np.sum(np.minimum(starts + self.plan.shard_samples, self.plan.samples) - starts))

    def add(self, number: int, size: int, sha256: str, software: dict[str, str]) -> None:
        """A worker has committed a shard just now."""
        assert self.manifest is None, "nothing was missing"
        self._put(number, size, sha256, software, _REPORTED)

    def _put(self, number: int, size: int, sha256: str, software: dict[str, str], written: float) -> None:
        if software not in self._softwares:
            self._softwares.append(software)
        self._bytes[number], self._sha256[number] = size, np.frombuffer(bytes.fromhex(sha256), np.uint8)
        self._software[number], self._written[number] = self._softwares.index(software), written

    def records(self) -> Iterator[ShardRecord]:
        """The manifest's entries of all shards, once none is missing."""
        for shard, size, digest in zip(self.plan.shards, self._bytes, self._sha256, strict=True):
            yield ShardRecord(name=shard.name, samples=shard.samples, bytes=int(size), sha256=digest.tobytes().hex())

    def software(self) -> dict[str, list[str]]:
        """The versions of each package of the plan that made the shards."""
        used = [self._softwares[number] for number in np.unique(self._software[self._bytes > 0])]
        return {name: sorted({each.get(name, "not recorded") for each in used}) for name in self.plan.software}

    # ---------------------------------------------------------------------------------------------- what storage says

    def refresh(self) -> None:
        """Look at the output again, and read what is not known yet.

        Raises:
            UsageError: if it holds tokens that this plan would not make; it says what differs.
        """
        plan, listing = self.plan, _list(self.plan)
        if self.manifest is not None:  # of several versions it does not say which made which shard
            self._bytes[:], self.manifest = 0, None
        if not self._bytes.any():
            self._believe_manifest(listing)
        known = (self._written == listing.written) | (self._written == _REPORTED)
        self._bytes[(self._bytes != listing.tar) | (listing.record < 0) | ~known] = 0
        unknown = np.flatnonzero((self._bytes == 0) & (listing.tar >= 0) & (listing.record >= 0))
        lengths = {record_name(plan.shards[number].name): int(listing.record[number]) for number in unknown.tolist()}
        lengths |= listing.strangers
        for name, commit in read_records(plan.output, lengths, list(lengths), plan.made_by(), "tokens.output"):
            number = _number_of(plan, name)
            if number is not None:
                self._take(number, commit, listing)
        missing = self.missing
        self._stale = missing[listing.record[missing] >= 0]
        if len(missing):
            self.manifest = None

    def remove_stale(self) -> None:
        """Delete the records of shards that are missing, before these are made.

        A worker that is killed between a new tar and its record would leave the old one beside it, and the tar of
        another processor may differ and has the same length.
        """
        names = (record_name(self.plan.shards[number].name) for number in self._stale.tolist())
        paths = [storage.join(self.plan.output, name) for name in names]
        with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="commits") as pool:
            list(pool.map(storage.remove_file, paths))
        self._stale = self._stale[:0]

    def _take(self, number: int, commit: TokenCommit, listing: _Listing) -> None:
        shard, found = self.plan.shards[number], commit.shard
        if found.samples != shard.samples:
            path = storage.join(self.plan.output, record_name(shard.name))
            raise UsageError(
                f"{path} states {found.samples} samples, and the shard has {shard.samples}: delete it and run again"
            )
        if found.bytes == listing.tar[number]:
            self._put(number, found.bytes, found.sha256, commit.software, float(listing.written[number]))

    def _believe_manifest(self, listing: _Listing) -> None:
        """Take the rows from a manifest of this plan, but for records that are not older than it.

        Nor of the first shard: its record says what no manifest does, such as the batch. So one is read.
        """
        believed = _surely_before(listing.written, listing.manifest)
        believed[0] = False
        manifest = _manifest_of(self.plan) if believed.any() else None
        if manifest is None:
            return
        is_whole = np.array_equal(np.where(believed, manifest.shards.sizes, -1)[1:], listing.tar[1:])
        if not is_whole and any(len(versions) > 1 for versions in manifest.software.values()):
            return  # which shard was made by which version, only the records say
        one = {name: versions[0] for name, versions in manifest.software.items() if versions}
        for number, said in enumerate(manifest.shards):
            if believed[number]:
                self._put(number, said.bytes, said.sha256, one, float(listing.written[number]))
        self.manifest = manifest if is_whole else None


@dataclass(frozen=True)
class _Listing:
    """What storage lists of the output, by shard."""

    tar: npt.NDArray[np.int64]
    """Bytes of each tar; -1 if there is none."""
    record: npt.NDArray[np.int64]
    """Bytes of each commit record; -1 if there is none."""
    written: npt.NDArray[np.float64]
    """When the record was; NaN if there is none, or storage does not say."""
    strangers: dict[str, int]
    """Bytes of the commit records of shards that are not of the plan."""
    manifest: float
    """When the manifest was written; NaN if there is none, or storage does not say."""


def _list(plan: TokenPlan) -> _Listing:
    count, manifest = len(plan.shards), float("nan")
    tar, record, written = np.full(count, -1, np.int64), np.full(count, -1, np.int64), np.full(count, np.nan)
    strangers: dict[str, int] = {}
    is_remote = storage.is_remote(plan.output)
    entries = storage.iter_entries(plan.output) if is_remote else storage.entries(plan.output).items()
    for name, entry in entries:
        when = float("nan") if entry.modified is None else entry.modified
        if name == MANIFEST_NAME:
            manifest = when
        elif _is_record(name):
            number = _number_of(plan, name)
            if number is None:
                strangers[name] = entry.bytes
            else:
                record[number], written[number] = entry.bytes, when
        elif (number := plan.shards.number_of(name)) is not None:
            tar[number] = entry.bytes
    return _Listing(tar, record, written, strangers, manifest)


def _surely_before(records: npt.NDArray[np.float64], manifest: float) -> npt.NDArray[np.bool_]:
    """Which records were surely there when the manifest was written. S3 lists whole seconds."""
    is_whole = (np.floor(records) == records) & (np.floor(manifest) == manifest)
    before: npt.NDArray[np.bool_] = np.where(is_whole, records + 1 <= manifest, records < manifest)
    return before


def _number_of(plan: TokenPlan, record: str) -> int | None:
    return plan.shards.number_of(record.removesuffix(".json") + ".tar")


def _is_record(name: str) -> bool:
    return name.startswith("tokens-") and name.endswith(".json")


def _manifest_of(plan: TokenPlan) -> TokenManifest | None:
    """The manifest in the output, if it is one of this plan and whole; whatever else is there is written anew."""
    try:
        manifest = TokenManifest.read(plan.output)
        fields = {**plan.manifest_fields(), "edit": None}
        is_ours = all(getattr(manifest, name) == value for name, value in fields.items())
        if not is_ours or manifest.software.keys() != plan.software.keys() or len(manifest.shards) != len(plan.shards):
            return None
        return manifest if all(map(_is_entry_of, manifest.shards, plan.shards)) else None
    except (FoldtrainError, FileNotFoundError):
        return None


def _is_entry_of(said: ShardRecord, shard: PlannedShard) -> bool:
    return (said.name, said.samples, said.folder) == (shard.name, shard.samples, "")


def read_records(
    uri: str, lengths: Mapping[str, int], names: Sequence[str], made_by: dict[str, Any], setting: str
) -> Iterator[tuple[str, TokenCommit]]:
    """Commit records of a folder, many at a time in a request each; what is gone since the listing is left out.

    Args:
        uri: of the folder.
        lengths: bytes of each record, as they were listed.
        names: of the records.
        made_by: what the tokens have to follow from.
        setting: that names the folder, for the error.

    Raises:
        UsageError: if one is damaged, of another version, or of other tokens; it says what differs.
    """

    def read(name: str) -> TokenCommit | None:
        path = storage.join(uri, name)
        try:
            record = _fetch(path, lengths[name])
        except FileNotFoundError:
            return None
        return _checked(path, record, made_by, setting)

    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="commits") as pool:
        for start in range(0, len(names), _SUBMITTED):
            some = names[start : start + _SUBMITTED]
            for name, commit in zip(some, pool.map(read, some), strict=True):
                if commit is not None:
                    yield name, commit


def _fetch(path: str, length: int) -> Any:
    """A record of the length that was listed, in one request."""
    if length <= json_records.MOST_BYTES:
        data = storage.read_range(path, 0, length)
        try:
            return json_records.parse(data)
        except ValueError:  # it was replaced meanwhile, or is no such record
            pass
    return storage.read_json(path)


def read_commits(plan: TokenPlan) -> Commits:
    """What is committed of a plan: a listing, and the records that no manifest stands for.

    Raises:
        UsageError: if the output holds tokens that this plan would not make; it says what differs.
    """
    commits = Commits(plan)
    commits.refresh()
    return commits
