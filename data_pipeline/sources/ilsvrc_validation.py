"""ILSVRC2012_img_val.tar: a tar of images without classes, and a text file that has them, in one of three forms."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from pathlib import PurePosixPath

from data_pipeline import storage
from data_pipeline.config import ILSVRCValidationSource
from data_pipeline.errors import UsageError
from data_pipeline.sources.label_text import is_number, read_text
from data_pipeline.sources.parts import WHERE, stamp_files
from data_pipeline.sources.source import Facts, ItemReader, RawItem, Take, safe_key
from data_pipeline.sources.tar_listing import RangeReader, list_tar
from data_pipeline.storage.tar import Member


class ILSVRCValidationImages:
    """Images by their range of the tar. Classes are wnids, in sorted order."""

    prefixes = False

    def __init__(self, config: ILSVRCValidationSource) -> None:
        self._config = config
        self.name = config.path
        self.reader: ItemReader = RangeReader(storage.absolute(config.path))

    def stamp(self) -> str:
        """Of the tar, the labels, the synsets and the config."""
        files = [self._config.path, self._config.labels, *filter(None, [self._config.synsets])]
        return storage.fingerprint([stamp_files(self._config, storage.absolute(file), [""]) for file in files])

    def scan(self, take: Take) -> Facts:
        """List the tar and find each image's class.

        Raises:
            UsageError: if a file is missing or damaged, or the labels do not fit the images.
        """
        try:
            found, skipped = list_tar(self.name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UsageError(f"there is no file {self.name}: {WHERE}") from None
        except tarfile.TarError as error:
            raise UsageError(f"{self.name} is not a tar of images, or is damaged ({error})") from error
        images = sorted((member for member, _ in found), key=lambda member: PurePosixPath(member.name).name)
        wnids = _read_labels(self._config, images)
        classes = tuple(sorted(set(wnids)))
        labels = {wnid: label for label, wnid in enumerate(classes)}
        take(
            [
                RawItem(_key(image), labels[wnid], image.length, image.name, image.offset)
                for image, wnid in zip(images, wnids, strict=True)
            ]
        )
        return Facts(classes, skipped.counts())


def _key(image: Member) -> str:
    return safe_key(PurePosixPath(image.name).stem)


def _read_labels(config: ILSVRCValidationSource, images: Sequence[Member]) -> list[str]:
    """The wnid of each image."""
    rows = _read_rows(config.labels)
    if any(len(row) > 1 for row in rows):
        return _by_name(config, images, rows)
    column = [row[0] for row in rows]
    if len(column) != len(images):
        raise UsageError(f"{config.labels} has {len(column)} labels, but {config.path} holds {len(images)} images")
    return _by_id(config, column) if all(is_number(word) for word in column) else column


def _by_name(config: ILSVRCValidationSource, images: Sequence[Member], rows: list[list[str]]) -> list[str]:
    """Rows that begin with a file name (or its stem) and a wnid; the first may be a heading."""
    keys = [PurePosixPath(image.name).stem for image in images]
    known = set(keys)
    wnids: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        stem = PurePosixPath(row[0]).stem
        if stem in known and len(row) > 1 and stem not in wnids:
            wnids[stem] = row[1]
        elif number > 1:
            fault = "again" if stem in wnids else "without a wnid" if stem in known else f"which {config.path} lacks"
            raise UsageError(f"{config.labels} names the image {row[0]} in line {number}, {fault}")
    lost = next((key for key in keys if key not in wnids), None)
    if lost is not None:
        raise UsageError(f"{config.labels} has no label for {lost}, which is in {config.path}")
    return [wnids[key] for key in keys]


def _by_id(config: ILSVRCValidationSource, column: list[str]) -> list[str]:
    """ILSVRC ids, from 1 on."""
    if config.synsets is None:
        raise UsageError(
            f"{config.labels} has ILSVRC ids: set data.source.synsets to a file with a wnid per line, in their order"
        )
    synsets = [row[0] for row in _read_rows(config.synsets)]
    for number, word in enumerate(column, start=1):
        if not 1 <= int(word) <= len(synsets):
            raise UsageError(f"{config.labels} has the id {word} in line {number}, but synsets are 1 to {len(synsets)}")
    return [synsets[int(word) - 1] for word in column]


def _read_rows(uri: str) -> list[list[str]]:
    """The words of each line that has any, cut at commas and blanks."""
    try:
        text = read_text(uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no file {uri}: {WHERE}") from None
    rows = [[word for word in re.split(r"[,\s]+", line) if word] for line in text.splitlines()]
    return [row for row in rows if row]
