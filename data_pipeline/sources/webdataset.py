"""WebDataset shards that exist already. Only tar headers and labels are read to list them.

Members <key>.<extension> with the same key are one sample. A key ends at the first dot of the file name.
"""

from __future__ import annotations

import json
import tarfile
from typing import NamedTuple

from data_pipeline import storage
from data_pipeline.config import WebDatasetSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.parts import WHERE, check_label, find_parts, in_parallel, name_classes, stamp_files
from data_pipeline.sources.skipped import EMPTY_TARS, NO_EXTENSION, Skipped, add_counts
from data_pipeline.sources.source import Facts, ItemReader, RawItem, Take, safe_key, split_member
from data_pipeline.sources.tar_listing import RangeReader, list_tar
from data_pipeline.storage.tar import Member

_Fields = dict[str, tuple[Member, bytes]]
"""A sample's members by extension, with the contents of labels."""


class _Part(NamedTuple):
    """A tar's listing."""

    items: list[RawItem]
    skipped: Skipped


class WebDatasetImages:
    """Images by their range of a tar. If two tars share a key, all keys begin with the names of their tars."""

    prefixes = True

    def __init__(self, config: WebDatasetSource) -> None:
        self._config = config
        self._root, self._names, self._skipped = find_parts(config.path, ".tar")
        self.name = config.path
        self.reader: ItemReader = RangeReader(self._root)

    def stamp(self) -> str:
        """Of the tars and the config."""
        return stamp_files(self._config, self._root, self._names)

    def scan(self, take: Take) -> Facts:
        """List the tars.

        Raises:
            UsageError: if one is missing or damaged, or a sample has no image or no label.
        """
        skipped, highest = self._skipped.counts(), -1
        for part in in_parallel(self._root, lambda name: _list_part(self._config, self._root, name), self._names):
            skipped = add_counts([skipped, part.skipped.counts()])
            highest = max([highest, *(item.label for item in part.items)])
            take(part.items)
        return Facts(name_classes(self.name, self._config.classes, highest), skipped)


def _list_part(config: WebDatasetSource, root: str, part: str) -> _Part:
    uri = storage.join(root, part)
    extension, _, field = config.label.partition(":")
    extension = extension.lower().removeprefix(".")
    try:
        members, skipped = list_tar(uri, is_wanted=lambda name: split_member(name)[1] == extension)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no file {uri}: {WHERE}") from None
    except tarfile.TarError as error:
        raise UsageError(f"{uri} is not a tar, or is damaged ({error})") from error
    if not members:
        skipped.add(EMPTY_TARS, "", uri)
    items = []
    for key, fields in _group(uri, members, skipped).items():
        where = f"{uri}: sample {key}"
        image = next((fields[name][0] for name in config.images if name in fields), None)
        if image is None or extension not in fields:
            wanted = f"image ({', '.join(config.images)})" if image is None else f"label ({config.label})"
            raise UsageError(f"{where} has no {wanted}, but only {', '.join(sorted(fields))}: {WHERE}")
        label = _label(where, fields[extension][1], field)
        items.append(RawItem(safe_key(key), label, image.length, f"{part}/{image.name}", image.offset, part))
    return _Part(items, skipped)


def _group(uri: str, members: list[tuple[Member, bytes]], skipped: Skipped) -> dict[str, _Fields]:
    samples: dict[str, _Fields] = {}
    for member, data in members:
        key, extension = split_member(member.name)
        if not extension:  # it belongs to no sample
            skipped.add(NO_EXTENSION, member.name, uri)
            continue
        fields = samples.setdefault(key, {})
        if extension in fields:
            raise UsageError(f"{uri} holds {member.name} twice: the keys of a tar must differ")
        fields[extension] = (member, data)
    return samples


def _label(where: str, data: bytes, field: str) -> int:
    if not field:
        return check_label(where, data)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} has a .json member that is not JSON ({error})") from error
    if not isinstance(record, dict) or field not in record:
        raise UsageError(f"{where} has no field {field} in its .json member: see data.source.label in the config")
    return check_label(where, record[field])
