"""Data sets made of others, each a new manifest over shards that are there: append, subset, mix, views (edits.py).

    1. plan: read the parents' manifests, and their keys and labels where the edit asks for them; refuse what does not
       fit; say what it comes to. Nothing is written
    2. write: put what stands beside the manifest, then the table of the shards and the manifest, under a lease

The same edit into the same folder again writes nothing; another one is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases.lease import only_driver
from data_pipeline.shards.edits import (
    MOST_DEPTH,
    Edit,
    Operation,
    Parent,
    Selection,
    class_map,
    join_classes,
)
from data_pipeline.shards.joined_index import IndexPart, JoinedIndex
from data_pipeline.shards.manifest import (
    MANIFEST_NAME,
    FileStatement,
    ImageManifest,
    TokenManifest,
    differences,
    read_manifest,
)
from data_pipeline.shards.shard_table import ShardRecord, shard_folder
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.tools.choosing import Choice, chosen_samples
from data_pipeline.tools.parents import ImageReader, Manifest, Numbers, Reader, columns_of

_ALIKE = ("layout", "condition", "tokenizer", "image_size", "fit", "decode", "precision")
"""Fields in which sets of tokens that are put together agree."""


@dataclass(frozen=True)
class Planned:
    """An edit that can be made."""

    output: str
    manifest: Manifest
    summary: tuple[str, ...]
    """What it comes to, for people."""
    selection: Selection | None = None
    """Of a subset of tokens."""
    index: JoinedIndex | None = None
    """Of images."""

    def write(self, say: Callable[[str], object] = print) -> bool:
        """Put it into its folder. Returns whether there was anything to write.

        Raises:
            UsageError: if another data set is there.
            LeaseHeldError: if a driver is at work there.
        """
        if not storage.exists(storage.join(self.output, MANIFEST_NAME)):
            _refuse_occupied(self.output)
        with only_driver(self.output, f"data {self.manifest.edit.operation if self.manifest.edit else ''}", say=say):
            if storage.exists(storage.join(self.output, MANIFEST_NAME)):
                there = read_manifest(self.output)
                if there.fingerprint == self.manifest.fingerprint:
                    return False
                raise UsageError(
                    f"{self.output} already holds another data set ({there.fingerprint[:16]}): choose another --output"
                )
            if self.selection is not None:
                self.selection.write(self.output)
            if self.index is not None:
                self.index.write(self.output)
            self.manifest.write(self.output)
        return True


def _refuse_occupied(output: str) -> None:
    shards = next((name for name in storage.list_names(output) if name.startswith(("tokens-", "images-"))), None)
    if shards is not None:
        raise UsageError(f"{output} holds shards of its own ({shards}): choose an empty folder as --output")


def append(uris: Sequence[str], output: str, source: str | None = None) -> Planned:
    """The samples of some sets, one set after another.

    Args:
        uris: of the sets, at least two.
        output: folder of the new manifest.
        source: of tokens, URI of the images that all of them were made of, appended in the same order; it becomes the
            source of the tokens. Without it they have no source in common.

    Raises:
        UsageError: if they do not fit each other; it says how they differ.
    """
    parents = _open(uris, output, at_least=2)
    _check_alike(parents, ("views",))
    found = _source_of(parents, source)
    parents = [each for parent in parents for each in appended_of(parent)]
    if all(isinstance(each, ImageReader) for each in parents):
        _refuse_common_keys(parents)
    shards, classes = _joined_shards(parents)
    counts = " + ".join(f"{each.manifest.samples:,}" for each in parents)
    line = f"{counts} = {sum(each.manifest.samples for each in parents):,} samples, {len(classes)} classes"
    return _planned(output, parents, shards, (line,), classes=classes, edit=_edit("append", parents), source=found)


def _refuse_common_keys(parents: Sequence[Reader]) -> None:
    """Images that are in two sets would count as two samples with one name."""
    seen = np.concatenate([columns.key for each in parents for columns in columns_of(each)])
    keys, counts = np.unique(seen, return_counts=True)
    twice = keys[counts > 1]
    if len(twice):
        raise UsageError(
            f"{len(twice)} keys are in two of the sets, the first is {twice[0].decode(errors='replace')}: append a "
            "subset without them"
        )


def appended_of(parent: Reader) -> Sequence[Reader]:
    """The sets that a parent was appended of, so that sets which grow day by day do not become a chain."""
    edit = parent.manifest.edit
    is_whole = edit is not None and sum(each.shards for each in edit.parents) == len(parent.manifest.shards)
    return parent.parents if edit is not None and edit.operation == "append" and is_whole else [parent]


def mix(weights: Mapping[str, float], output: str) -> Planned:
    """Some sets, with the samples of each as often in an epoch as its weight says, on average.

    Args:
        weights: by URI of the set, at least two.
        output: folder of the new manifest.

    Raises:
        UsageError: as `append`, or if a weight leaves a set without a sample.
    """
    parents = _open(list(weights), output, at_least=2)
    _check_alike(parents, ("views",))
    for each in parents:
        if each.manifest.edit is not None and each.manifest.edit.operation == "mix":
            raise UsageError(f"{each.uri} is a mix itself, and its weights would be lost: mix the sets that it is of")
    shards, classes = _joined_shards(parents)
    draws = tuple(round(weight * each.manifest.samples) for each, weight in zip(parents, weights.values(), strict=True))
    for each, weight, count in zip(parents, weights.values(), draws, strict=True):
        if count < 1 or weight * each.manifest.samples > 2**50:
            raise UsageError(f"{each.uri}: the weight {weight:g} takes {count} of its samples into an epoch")
    asked = {f"weight {number}": f"{weight:g}" for number, weight in enumerate(weights.values())}
    edit = _edit("mix", parents, asked=asked, draws=draws)
    lines = [
        f"{each.uri}: {count:,} of its {each.manifest.samples:,} samples in an epoch, each {_times(count, each)}"
        for each, count in zip(parents, draws, strict=True)
    ]
    lines.append(f"{sum(draws):,} samples in an epoch, {len(classes)} classes")
    source = _source_of(parents, None)
    return _planned(output, parents, shards, lines, classes=classes, edit=edit, source=source)


def _times(count: int, each: Reader) -> str:
    often, rest = divmod(count, each.manifest.samples)
    if not rest:
        return "once" if often == 1 else f"{often} times"
    return f"{often} or {often + 1} times ({count / each.manifest.samples:.6g} on average)"


def views(
    uris: Sequence[str], output: str, progress: Callable[[int, int], object] = lambda _done, _all: None
) -> Planned:
    """Sets of tokens of the same images, each with views of its own, as one set with all of these views.

    Args:
        uris: of the sets, at least two; the shards of the first decide how the set is cut.
        output: folder of the new manifest.
        progress: called with (shards read, shards in all).

    Raises:
        UsageError: as `append`, or if they are of other images, or two have a view in common.
    """
    parents = [each for each in _open(uris, output, at_least=2) if isinstance(each, TokenReader)]
    if len(parents) < len(uris):
        raise UsageError("images have no views: only sets of tokens can be joined by them")
    _check_alike(parents, ("source", "classes", "samples"))
    names = tuple(view for each in parents for view in each.manifest.views)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two of the sets have the view {twice}: tokenize only the views that are new")
    total = sum(len(each.manifest.shards) for each in parents)
    done, sums = 0, []
    for each in parents:
        crc = 0
        for columns in columns_of(each):
            crc = zlib.crc32(b"".join(key + b"\0" for key in columns.key.tolist()), crc)
            done += 1
            progress(done, total)
        sums.append(crc)
    other = next((each for each, crc in zip(parents, sums, strict=True) if crc != sums[0]), None)
    if other is not None:
        raise UsageError(
            f"{other.uri} has other samples than {parents[0].uri}, or in another order: both must be whole"
        )
    shards = [_placed(parents[0], record, record.samples) for record in parents[0].manifest.shards]
    line = f"{parents[0].manifest.samples:,} samples with the views {', '.join(names)}"
    return _planned(output, parents, shards, (line,), edit=_edit("views", parents), views=names)


def subset(
    uri: str, output: str, choice: Choice, progress: Callable[[int, int], object] = lambda _done, _all: None
) -> Planned:
    """Some samples of a set, in its order. Its shards are those that hold any of them.

    Args:
        uri: of the set.
        output: folder of the new manifest.
        choice: which samples.
        progress: called with (shards read, shards in all), where keys or classes are chosen by.

    Raises:
        UsageError: if it has no such class or key, or no sample is left.
    """
    (parent,) = _open([uri], output, at_least=1)
    chosen = chosen_samples(parent, choice, progress)
    if not len(chosen):
        raise UsageError(f"no sample of {uri} is left ({choice.asked()}): choose others")
    starts = parent.manifest.shards.starts
    selection = Selection.take(chosen, starts)
    sizes = np.diff(selection.starts)
    records = parent.manifest.shards
    shards = [
        _placed(parent, records[of], size) for of, size in zip(selection.of.tolist(), sizes.tolist(), strict=True)
    ]
    line = f"{len(chosen):,} of {parent.manifest.samples:,} samples, in {len(shards):,} of {len(records):,} shards"
    edit = _edit("subset", [parent], asked=choice.asked())
    if isinstance(parent, ImageReader):
        return _planned(output, [parent], shards, (line,), rows=chosen, edit=edit)
    edit = edit.model_copy(update={"rows": selection.statement()})
    return replace(_planned(output, [parent], shards, (line,), edit=edit), selection=selection)


def _open(uris: Sequence[str], output: str, at_least: int) -> list[Reader]:
    if len(uris) < at_least:
        raise UsageError(f"{len(uris)} data set is given, and at least {at_least} are needed")
    found: list[Reader] = []
    for uri in map(storage.absolute, uris):
        if storage.is_remote(output) and not storage.is_remote(uri):
            raise UsageError(f"{uri} is on this machine, and {output} is not: nodes would not find its shards")
        if uri == storage.absolute(output):
            raise UsageError(f"{uri} is the data set itself: choose another --output")
        manifest = read_manifest(uri)
        if not manifest.samples:
            raise UsageError(f"{uri} holds no samples")
        if isinstance(manifest, ImageManifest):
            found.append(ImageReader(uri, manifest))
        else:
            found.append(TokenReader(uri, manifest))
        if _generations(found[-1], {}) >= MOST_DEPTH:
            raise UsageError(f"{uri} is made of others for {MOST_DEPTH} generations: make this of an earlier one")
    if len({each.manifest.kind for each in found}) > 1:
        raise UsageError("some of the sets hold images and some tokens: put sets of one kind together")
    return found


def _generations(reader: Reader, known: dict[str, int]) -> int:
    """How many times a set was made of others, one after another."""
    name = reader.manifest.fingerprint
    if name not in known:
        known[name] = 1 + max((_generations(each, known) for each in reader.parents), default=-1)
    return known[name]


def _check_alike(parents: Sequence[Reader], more: tuple[str, ...]) -> None:
    def fields(each: Reader) -> dict[str, Any]:
        if isinstance(each, ImageReader):
            return {"split": each.manifest.split}
        record = each.manifest.model_dump(mode="json", include={*_ALIKE, *more})
        return record | {"layout": each.manifest.layout.to_json()}

    for other in parents[1:]:
        found = differences(fields(parents[0]), fields(other))
        if found:
            raise UsageError(
                f"{parents[0].uri} and {other.uri} cannot be put together, they differ (first -> other):\n  "
                + "\n  ".join(text[:500] for text in found)
            )


def _joined_shards(parents: Sequence[Reader]) -> tuple[list[ShardRecord], tuple[str, ...]]:
    shards = [_placed(each, record, record.samples) for each in parents for record in each.manifest.shards]
    return shards, join_classes([each.manifest.classes for each in parents])


def _placed(parent: Reader, record: ShardRecord, samples: int) -> ShardRecord:
    """A shard of a parent as one of another set: with the folder that it lies in."""
    return record.model_copy(update={"folder": shard_folder(parent.uri, record.folder), "samples": samples})


def _edit(operation: Operation, parents: Sequence[Reader], **fields: Any) -> Edit:
    stated = tuple(
        Parent(uri=each.uri, fingerprint=each.manifest.fingerprint, shards=len(each.manifest.shards))
        for each in parents
    )
    return Edit(operation=operation, parents=stated, **fields)


def _planned(
    output: str,
    parents: Sequence[Reader],
    shards: list[ShardRecord],
    summary: Sequence[str],
    rows: Numbers | None = None,
    **fields: Any,
) -> Planned:
    """A set with these shards and the fields of the first parent, but for those that are given."""
    like = parents[0].manifest
    changed = fields | {"shards": tuple(shards), "samples": sum(record.samples for record in shards)}
    if isinstance(like, TokenManifest):
        software: dict[str, set[str]] = {}
        for each in parents:
            for package, versions in getattr(each.manifest, "software", {}).items():
                software.setdefault(package, set()).update(versions)
        changed["software"] = {package: sorted(versions) for package, versions in sorted(software.items())}
        return Planned(output, TokenManifest.build(**_fields(like) | changed), tuple(summary))
    changed.pop("source", None)
    classes = changed.get("classes", like.classes)
    parts = [
        IndexPart(each.index, rows, class_map(each.manifest.classes, classes))
        for each in parents
        if isinstance(each, ImageReader)
    ]
    index = JoinedIndex(tuple(parts))
    written = index.written()
    changed |= {"index": FileStatement(bytes=written.bytes, sha256=written.sha256), "quarantined": 0}
    return Planned(output, ImageManifest.build(**_fields(like) | changed), tuple(summary), index=index)


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "fingerprint"}


def _source_of(parents: Sequence[Reader], images: str | None) -> str:
    """Fingerprint of the images of joined tokens; of images none."""
    found = [each.manifest.source for each in parents if isinstance(each, TokenReader)]
    if not found:
        if images is not None:
            raise UsageError("--images names the images of tokens, and these are images themselves")
        return ""
    sources = list(dict.fromkeys(found))
    if images is None:
        return sources[0] if len(sources) == 1 else storage.fingerprint({"sources": sources})
    manifest = ImageManifest.read(images)
    stated = [parent.fingerprint for parent in manifest.edit.parents] if manifest.edit is not None else []
    if stated != found:
        one, other = (", ".join(each[:16] for each in both) or "none" for both in (stated, found))
        raise UsageError(
            f"{images} is not the images of these tokens, appended in their order: it is made of {one}, and the tokens "
            f"are of {other}"
        )
    return manifest.fingerprint
