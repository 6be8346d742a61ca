"""WebDataset shards that exist already. Only tar headers and labels are read to list them.

Members <key>.<extension> with the same key are one sample. A key ends at the first dot of the file name.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipeline import storage
from data_pipeline.config import WebDatasetSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.parts import WHERE, check_label, find_parts, name_classes
from data_pipeline.sources.skipped import EMPTY_TARS, NO_EXTENSION, Skipped
from data_pipeline.sources.source import ItemReader, RawItem, safe_key, unique_items
from data_pipeline.sources.tar_listing import RangeReader, in_parallel, list_tar
from data_pipeline.storage.tar import Member

_Fields = dict[str, tuple[Member, bytes]]
"""A sample's members by extension, with the contents of labels."""


class _Sample(NamedTuple):
    part: str
    key: str
    label: int
    image: Member


class _Part(NamedTuple):
    """A tar's listing."""

    samples: list[_Sample]
    skipped: Skipped


class WebDatasetImages:
    """Images by their range of a tar. If two tars share a key, all keys begin with the names of their tars."""

    def __init__(self, config: WebDatasetSource, root: str, samples: list[_Sample], skipped: Mapping[str, int]) -> None:
        self.name = config.path
        self.skipped = skipped
        self.reader: ItemReader = RangeReader(root)
        self.classes: tuple[str, ...] = name_classes(config.path, config.classes, [sample.label for sample in samples])
        prefixed = _share_keys(samples)
        self.items: Sequence[RawItem] = unique_items(
            config.path,
            (
                RawItem(
                    key=safe_key(f"{sample.part.removesuffix('.tar')}/{sample.key}" if prefixed else sample.key),
                    label=sample.label,
                    size=sample.image.length,
                    name=f"{sample.part}/{sample.image.name}",
                    offset=sample.image.offset,
                    part=sample.part,
                )
                for sample in samples
            ),
        )

    def identity(self) -> Any:
        """Nothing beyond the names and sizes of the items."""
        return None


def _share_keys(samples: list[_Sample]) -> bool:
    """Whether a key occurs in two tars. One that a tar holds twice is an error, which comes later."""
    owners: dict[str, str] = {}
    return any(owners.setdefault(safe_key(sample.key), sample.part) != sample.part for sample in samples)


def open_webdataset(config: WebDatasetSource) -> WebDatasetImages:
    """List the tars.

    Raises:
        UsageError: if one is missing or damaged, or a sample has no image or no label.
    """
    root, names, skipped = find_parts(config.path, ".tar")
    samples = []
    for listed in in_parallel(lambda part: _list_part(config, root, part), names):
        samples += listed.samples
        skipped.update(listed.skipped)
    return WebDatasetImages(config, root, samples, skipped.counts())


def _list_part(config: WebDatasetSource, root: str, part: str) -> _Part:
    uri = storage.join(root, part)
    extension, _, field = config.label.partition(":")
    extension = extension.lower().removeprefix(".")
    try:
        members, skipped = list_tar(uri, is_wanted=lambda name: _split(name)[1] == extension)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no file {uri}: {WHERE}") from None
    except tarfile.TarError as error:
        raise UsageError(f"{uri} is not a tar, or is damaged ({error})") from error
    if not members:
        skipped.add(EMPTY_TARS, "", uri)
    samples = []
    for key, fields in _group(uri, members, skipped).items():
        where = f"{uri}: sample {key}"
        image = next((fields[name][0] for name in config.images if name in fields), None)
        if image is None or extension not in fields:
            wanted = f"image ({', '.join(config.images)})" if image is None else f"label ({config.label})"
            raise UsageError(f"{where} has no {wanted}, but only {', '.join(sorted(fields))}: {WHERE}")
        samples.append(_Sample(part, key, _label(where, fields[extension][1], field), image))
    return _Part(samples, skipped)


def _group(uri: str, members: list[tuple[Member, bytes]], skipped: Skipped) -> dict[str, _Fields]:
    samples: dict[str, _Fields] = {}
    for member, data in members:
        key, extension = _split(member.name)
        if not extension:  # it belongs to no sample
            skipped.add(NO_EXTENSION, member.name, uri)
            continue
        fields = samples.setdefault(key, {})
        if extension in fields:
            raise UsageError(f"{uri} holds {member.name} twice: the keys of a tar must differ")
        fields[extension] = (member, data)
    return samples


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member: "a/b.seg.png" is sample "a/b", extension "seg.png"."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else (name, "")


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
