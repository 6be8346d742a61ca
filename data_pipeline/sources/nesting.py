"""Folders that would lie in one another: what one stage writes must not become a part of what another reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import PurePosixPath

from data_pipeline.config import DataConfig, FolderSource, ParquetSource, WebDatasetSource
from data_pipeline.storage.uris import absolute, is_remote


def refuse_nesting(data: DataConfig, written: Mapping[str, str], apart: Mapping[str, str] | None = None) -> None:
    """See that nothing is written into a source, and no source lies in what is written.

    Args:
        data: names the sources.
        written: URIs of the folders that are written, by what the config calls them.
        apart: folders that are written, too, and in which a source may lie, such as the run itself.

    Raises:
        ValueError: if so; it names both.
    """
    for name, source in _folders(data):
        for other, folder in {**(apart or {}), **written}.items():
            if _holds(source, folder):
                raise ValueError(
                    f"{other} is {folder}, in the folder {source} of {name}: what is written there would be taken for "
                    "images or classes. Choose a folder outside of it"
                )
        for other, folder in written.items():
            if _holds(folder, source):
                raise ValueError(
                    f"{name} is {source}, in the folder {folder} of {other}, where other files are written: choose "
                    "another folder for one of them"
                )


def refuse_overlap(written: Mapping[str, str]) -> None:
    """See that no two folders of data sets lie in one another.

    Raises:
        ValueError: if so; it names both.
    """
    for (one, here), (other, there) in combinations(written.items(), 2):
        if _holds(here, there) or _holds(there, here):
            raise ValueError(f"{one} is {here} and {other} is {there}: neither may lie in the other")


def refuse_writing_into(given: Mapping[str, str], written: Mapping[str, str], run: str) -> None:
    """See that nothing is written into what is only read, and that this does not lie in what is written.

    Args:
        given: URIs of what is read, by what the config calls them.
        written: URIs of the folders that are written, likewise.
        run: whose folders these are, unless the config puts them elsewhere; it may itself lie in what is given.

    Raises:
        ValueError: if so; it names both.
    """
    for (name, source), (other, folder) in product(given.items(), written.items()):
        into = _holds(source, folder) and not _holds(source, run)
        if into or _holds(folder, source):
            raise ValueError(
                f"{name} is {source} and {other} is {folder}: what is given is never written to, and neither may lie "
                "in the other. Choose another place for one of them"
            )


def _folders(data: DataConfig) -> Iterator[tuple[str, str]]:
    """The folders that are listed at any depth; a file and a pattern of files are none."""
    for name, source in (("data.source", data.source), ("data.validation_source", data.validation_source)):
        if isinstance(source, FolderSource):
            yield f"{name}.path", source.path
        elif isinstance(source, WebDatasetSource | ParquetSource):
            suffix = ".tar" if isinstance(source, WebDatasetSource) else ".parquet"
            if not source.path.lower().endswith(suffix) and not set("{*") & set(source.path):
                yield f"{name}.path", source.path


def _holds(outer: str, inner: str) -> bool:
    """Whether a folder is another one, or holds it."""
    one, other = _spelt(outer), _spelt(inner)
    return one == other or one in other.parents


def _spelt(uri: str) -> PurePosixPath:
    """A place in the one spelling that its links lead to."""
    if not is_remote(uri):
        return PurePosixPath(absolute(uri))
    scheme, _, rest = uri.partition("://")
    return PurePosixPath("s3" if scheme == "s3a" else scheme, rest)
