"""Is a data set right that was made of others (shards/edits.py)? Its parents are checked, then what it takes of them.

1. each parent: there, the one that is named, and right by itself, as `verify` finds out
2. each shard is one of a parent's, with the same digest
3. each sample is one of the parents', with its key and class; none twice, but in a mix
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import FoldtrainError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.edits import Edit, class_map
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.sample_index import SampleIndex, open_sample_index
from data_pipeline.shards.shard_table import shard_folder
from data_pipeline.shards.token_reader import TokenReader, read_parent
from data_pipeline.tools.checks import Check, Report
from data_pipeline.tools.verifying import find_images, verify

Manifest = ImageManifest | TokenManifest
Progress = Callable[[int, int], object]
Place = tuple[str, str]
"""Folder and name of a shard."""

_MOST_PROBLEMS = 100
"""That are kept of a check."""


def verify_edit(
    uri: str, manifest: Manifest, edit: Edit, against: str | None, *, quick: bool, progress: Progress
) -> Report:
    """Check a data set that was made of others.

    Args:
        uri: of the data set.
        manifest: of it.
        edit: how it was made.
        against: of the images that its tokens were made of; by default those that are found.
        quick: as of `verify`; then samples are not looked at.
        progress: called with (shards done, shards in all).

    Raises:
        UsageError: if there is no complete data set at `against`.
    """
    parents: list[tuple[str, Manifest]] = []
    problems: list[str] = []
    for parent in edit.parents:
        try:
            is_images = isinstance(manifest, ImageManifest)
            found = read_parent(uri, parent, ImageManifest) if is_images else read_parent(uri, parent, TokenManifest)
            parents.append((parent.uri, found))
            problems += [f"{parent.uri}: {each}" for each in _problems_of(verify(parent.uri, quick=quick))]
        except FoldtrainError as error:
            problems.append(str(error))
    named = ", ".join(f"{parent.uri} ({parent.fingerprint[:16]})" for parent in edit.parents)
    checks = [
        _check("manifest", f"fingerprint {manifest.fingerprint[:16]} is that of its content"),
        _check("parents", f"{edit.operation} of {named}: each is right", problems),
    ]
    if len(parents) == len(edit.parents):
        checks.append(_shard_check(uri, manifest, parents))
        if not quick:
            checks += _sample_checks(uri, manifest, edit, parents, against, progress)
    return Report(uri, manifest.kind, manifest.fingerprint, manifest.samples, len(manifest.shards), tuple(checks))


def _check(name: str, summary: str, problems: list[str] | None = None) -> Check:
    found = tuple((problems or [])[:_MOST_PROBLEMS])
    return Check(name, not found, summary, found)


def _problems_of(report: Report) -> Iterator[str]:
    for check in report.checks:
        yield from (f"{check.name}: {problem}" for problem in check.problems)


def _places(uri: str, manifest: Manifest) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Where each shard lies, and what is stated of its tar."""
    for record in manifest.shards:
        yield (shard_folder(uri, record.folder), record.name), record.model_dump(exclude={"folder", "samples", "name"})


def _shard_check(uri: str, manifest: Manifest, parents: list[tuple[str, Manifest]]) -> Check:
    there: dict[Place, dict[str, Any]] = {}
    for parent in parents:
        there.update(_places(*parent))
    problems = []
    for (folder, name), stated in _places(uri, manifest):
        found = there.get((folder, name))
        if found != stated:
            state = "is a shard of no parent" if found is None else "is stated otherwise by its parent"
            problems.append(f"{folder}/{name} {state}")
    return _check("shards", f"{len(manifest.shards)} shards, each as its parent states it", problems)


def _sample_checks(
    uri: str,
    manifest: Manifest,
    edit: Edit,
    parents: list[tuple[str, Manifest]],
    against: str | None,
    progress: Progress,
) -> list[Check]:
    try:
        if isinstance(manifest, TokenManifest):
            keys, labels = _token_columns(uri, manifest, progress)
            problems: list[str] = []
        else:
            keys, labels, problems = _image_columns(uri, manifest, parents)
    except FoldtrainError as error:
        return [_check("samples", "each is one of its parents'", [str(error)])]
    checks = [_check("samples", f"{len(keys):,} samples, each one of its parents'", problems)]
    unique, counts = np.unique(keys, return_counts=True)
    twice = [f"sample {key.decode(errors='replace')} is there twice" for key in unique[counts > 1][:_MOST_PROBLEMS]]
    if edit.operation == "mix":
        repeated = int((counts > 1).sum())
        checks.append(_check("exactly once", f"{repeated:,} keys are in several sets of the mix, the others in one"))
    else:
        checks.append(_check("exactly once", f"{len(unique):,} keys, none twice", twice))
    if isinstance(manifest, TokenManifest):
        checks.append(_against_check(uri, manifest, against, keys, labels))
    return checks


def _token_columns(
    uri: str, manifest: TokenManifest, progress: Progress
) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32]]:
    reader, parts = TokenReader(uri, manifest), []
    for number in range(len(manifest.shards)):
        parts.append(reader.columns(number))
        progress(number + 1, len(manifest.shards))
    return np.concatenate([part.key for part in parts]), np.concatenate([part.condition for part in parts])


def _image_columns(
    uri: str, manifest: ImageManifest, parents: list[tuple[str, Manifest]]
) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32], list[str]]:
    """Keys, labels, and which samples are not as their parent says."""
    own, shards, problems = open_sample_index(uri, manifest, NodeCache()), {}, []
    for parent_uri, parent in parents:
        assert isinstance(parent, ImageManifest)
        index, starts = open_sample_index(parent_uri, parent, NodeCache()), parent.shards.starts
        labels = class_map(parent.classes, manifest.classes)
        for number, (place, _) in enumerate(_places(parent_uri, parent)):
            shards[place] = index, slice(int(starts[number]), int(starts[number + 1])), labels
    starts = manifest.shards.starts
    for number, (place, _) in enumerate(_places(uri, manifest)):
        if place in shards:
            here = slice(int(starts[number]), int(starts[number + 1]))
            moved = _moved(own, here, *shards[place])
            problems += [f"{place[0]}/{place[1]}: sample {key} is not as its parent says" for key in moved]
    return own.key, own.label, problems


def _moved(
    own: SampleIndex, here: slice, its: SampleIndex, there: slice, labels: npt.NDArray[np.int32] | None
) -> list[str]:
    """Keys of the samples of one shard that its parent does not have so."""
    offsets = its.offset[there]
    rows = np.minimum(np.searchsorted(offsets, own.offset[here]), max(0, len(offsets) - 1)) + there.start
    label = its.label[rows] if labels is None else labels[its.label[rows]]
    same = (own.label[here] == label) & (own.key[here] == its.key[rows])
    for name in ("offset", "length", "crc32"):
        same &= getattr(own, name)[here] == getattr(its, name)[rows]
    return [key.decode(errors="replace") for key in own.key[here][~same]]


def _against_check(
    uri: str,
    manifest: TokenManifest,
    against: str | None,
    keys: npt.NDArray[np.bytes_],
    labels: npt.NDArray[np.int32],
) -> Check:
    """Tokens that state a set of images as their source have its samples: all in its order, or some in its order."""
    where = against or find_images(uri, manifest)
    if where is None:
        return _check("against images", "not compared: their images were not found; name them by --against")
    images = ImageManifest.read(where)
    if images.fingerprint != manifest.source:
        found = f"the tokens are of the images {manifest.source[:16]}, but {where} holds {images.fingerprint[:16]}"
        return _check("against images", f"the keys, labels and order of {where}", [found])
    index = open_sample_index(where, images, NodeCache())
    order = np.argsort(index.key)
    places = order[np.minimum(np.searchsorted(index.key, keys, sorter=order), len(order) - 1)]
    names, theirs = np.array(manifest.classes), np.array(images.classes)
    wrong = (index.key[places] != keys) | (theirs[index.label[places]] != names[labels])
    problems = [f"sample {key.decode(errors='replace')} is no image of {where} with this class" for key in keys[wrong]]
    operation = manifest.edit.operation if manifest.edit is not None else None
    if not problems and operation != "mix" and (np.diff(places) <= 0).any():
        problems.append(f"the order differs from that of {where}")
    if not problems and operation in {"append", "views"} and len(keys) != len(index.key):
        problems.append(f"{len(index.key) - len(keys)} samples are missing")
    return _check("against images", f"the keys, labels and order of {where}", problems)
