"""Is a set of images right that was made of others (shards/edits.py)? Its parents, and whether it follows from them.

    1. each set that it is made of: there, the one that is named, and right by itself, as `verify` finds out
    2. each shard is one of a parent's, with the same digest
    3. each sample is one of a parent's: its place, checksum, key and class; none is there twice, but in a mix

Sets of tokens are verified as others are, read through their parents (verifying.py); of their shards the second holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import FoldtrainError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.edits import MOST_DEPTH, Edit, Parent, class_map, parent_uri
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.sample_index import SampleIndex, open_sample_index
from data_pipeline.shards.shard_table import shard_folder
from data_pipeline.shards.token_reader import read_parent
from data_pipeline.tools.checks import MOST_PROBLEMS, Check, Report
from data_pipeline.tools.key_spool import KeySpool

Manifest = ImageManifest | TokenManifest
Placed = tuple[str, ImageManifest]
"""URI and manifest of a data set."""
Progress = Callable[[int, int], object]
Place = tuple[str, str]
"""Folder and name of a shard."""

_ROWS = 2**18
"""Samples whose keys are looked at together."""


def verify_image_edit(
    uri: str,
    manifest: ImageManifest,
    edit: Edit,
    verify: Callable[[str], Report],
    *,
    quick: bool,
    progress: Progress,
) -> Report:
    """Check a set of images that was made of others.

    Args:
        uri: of the data set.
        manifest: of it.
        edit: how it was made.
        verify: checks a set that was not made of others.
        quick: compare records alone; then samples are not looked at.
        progress: called with (sets done, sets in all).
    """
    problems: list[str] = []
    ancestors = _ancestors(uri, manifest, problems)
    for done, (place, ancestor) in enumerate(ancestors, start=1):
        if ancestor.edit is None:
            checks = list(verify(place).checks)
        else:
            checks = _checks_of(place, ancestor, ancestor.edit, quick=quick)
        problems += [f"{place}: {check.name}: {problem}" for check in checks for problem in check.problems]
        progress(done, len(ancestors))
    named = ", ".join(f"{parent.uri} ({parent.fingerprint[:16]})" for parent in edit.parents)
    checks = [
        _check("manifest", f"fingerprint {manifest.fingerprint[:16]} is that of its content"),
        _check("parents", f"{edit.operation} of {named}: each is right", problems),
        *_checks_of(uri, manifest, edit, quick=quick),
    ]
    return Report(uri, manifest.kind, manifest.fingerprint, manifest.samples, len(manifest.shards), tuple(checks))


def _ancestors(uri: str, manifest: ImageManifest, problems: list[str]) -> list[Placed]:
    """All sets that a set is made of, each once; what is wrong with those that cannot be read is noted."""
    found: dict[str, Placed] = {}
    generation: list[Placed] = [(uri, manifest)]
    for _ in range(MOST_DEPTH + 1):
        parents: dict[str, Placed] = {}
        for child, its in generation:
            for parent in its.edit.parents if its.edit is not None else ():
                try:
                    parents[parent.fingerprint] = _read(child, parent)
                except FoldtrainError as error:
                    problems.append(str(error))
        generation = [each for name, each in parents.items() if name not in found]
        found |= parents
    if generation:
        problems.append(f"{uri} is made of others for more than {MOST_DEPTH} generations")
    return list(found.values())


def _read(child: str, parent: Parent) -> Placed:
    return parent_uri(child, parent), read_parent(child, parent, ImageManifest)


def _checks_of(uri: str, manifest: ImageManifest, edit: Edit, *, quick: bool) -> list[Check]:
    """Whether a set follows from its parents, whatever these are worth."""
    try:
        parents = [_read(uri, each) for each in edit.parents]
    except FoldtrainError:
        return []  # the check of the parents says so
    text = f"{len(manifest.shards)} shards, each as its parent states it"
    shards = _check("shards", text, list(shard_problems(uri, manifest, parents)))
    return [shards] if quick else [shards, *_sample_checks(uri, manifest, edit, parents)]


def _check(name: str, summary: str, problems: list[str] | None = None) -> Check:
    found = tuple((problems or [])[:MOST_PROBLEMS])
    return Check(name, not found, summary, found)


def _places(uri: str, manifest: Manifest) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Where each shard lies, and what is stated of its tar."""
    for record in manifest.shards:
        yield (shard_folder(uri, record.folder), record.name), record.model_dump(exclude={"folder", "samples", "name"})


def shard_problems(uri: str, manifest: Manifest, parents: Sequence[tuple[str, Manifest]]) -> Iterator[str]:
    """Shards of a set that was made of others which are none of a parent's, or stated otherwise."""
    there: dict[Place, dict[str, Any]] = {}
    for parent in parents:
        there.update(_places(*parent))
    for (folder, name), stated in _places(uri, manifest):
        found = there.get((folder, name))
        if found != stated:
            state = "is a shard of no parent" if found is None else "is stated otherwise by its parent"
            yield f"{folder}/{name} {state}"


def _sample_checks(uri: str, manifest: ImageManifest, edit: Edit, parents: Sequence[Placed]) -> list[Check]:
    try:
        own = open_sample_index(uri, manifest, NodeCache())
        problems = list(_moved_samples(uri, manifest, own, parents))
    except FoldtrainError as error:
        return [_check("samples", "each is one of its parents'", [str(error)])]
    with KeySpool(manifest.samples) as keys:
        for start in range(0, manifest.samples, _ROWS):
            keys.add(own.key[start : start + _ROWS])
        repeated, more = keys.twice(MOST_PROBLEMS)
    twice = [f"sample {each.key.decode(errors='replace')} is there {each.times} times" for each in repeated]
    checks = [_check("samples", f"{manifest.samples:,} samples, each one of its parents'", problems)]
    if edit.operation == "mix":
        text = f"{len(twice) + more:,} keys are in several sets of the mix, the others in one"
        return [*checks, _check("exactly once", text)]
    return [*checks, _check("exactly once", f"{manifest.samples:,} keys, none twice", twice)]


def _moved_samples(uri: str, manifest: ImageManifest, own: SampleIndex, parents: Sequence[Placed]) -> Iterator[str]:
    """Samples that are not as their parent says."""
    shards = defaultdict(list)  # a set may be mixed with a part of itself
    for where, parent in parents:
        index, starts = open_sample_index(where, parent, NodeCache()), parent.shards.starts
        labels = class_map(parent.classes, manifest.classes)
        for number, (place, _) in enumerate(_places(where, parent)):
            shards[place].append((index, slice(int(starts[number]), int(starts[number + 1])), labels))
    starts = manifest.shards.starts
    for number, (place, _) in enumerate(_places(uri, manifest)):
        here = slice(int(starts[number]), int(starts[number + 1]))
        moved = [set(_moved(own, here, *one)) for one in shards[place]]
        for key in sorted(set.intersection(*moved)) if moved else ():
            yield f"{place[0]}/{place[1]}: sample {key} is not as its parent says"


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
