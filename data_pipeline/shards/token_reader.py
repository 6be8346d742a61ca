"""The shards of a token data set, whatever it is made of: read from their tars, and edited as the manifest says.

A set that was made of others (edits.py) reads its parents' shards through readers of their own, so that a subset of a
mix of sets with joined views is no case of its own.
Shape suffixes: N samples, W views, L positions, F folds.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.conditions import check_classes
from data_pipeline.shards.edits import MOST_DEPTH, Parent, Selection, class_map, parent_uri
from data_pipeline.shards.manifest import ImageManifest, TokenManifest, differences
from data_pipeline.shards.shard_table import shard_uri
from data_pipeline.shards.token_archive import read_columns, read_rows, read_token_shard
from data_pipeline.shards.token_shards import REMEDY, TokenBlock, Tokens, first_outside
from model.layout import TokenLayout

_MUST_BE_EQUAL = ("layout", "condition", "tokenizer", "image_size", "fit", "decode", "precision")
"""Fields of a manifest in which the parents of a data set agree with it."""


_FEW = 4
"""A shard of which at most one sample in so many is asked for is not read whole."""

_M = TypeVar("_M", ImageManifest, TokenManifest)


class Columns(NamedTuple):
    """What a shard says of its samples, without their tokens."""

    condition: npt.NDArray[np.int32]
    key: npt.NDArray[np.bytes_]


class TokenReader:
    """The shards of a data set by number. Parents are opened when a shard of theirs is read first.

    Args:
        uri: of the data set.
        manifest: of it.
        depth: how many generations of children there are.
    """

    def __init__(self, uri: str, manifest: TokenManifest, depth: int = 0) -> None:
        self.uri, self.manifest, self._depth = uri, manifest, depth

    @functools.cached_property
    def parents(self) -> tuple[TokenReader, ...]:
        """Of a data set that is made of others: those.

        Raises:
            UsageError: if one is gone, or is not what it was, or cannot be a parent of this one.
        """
        edit = self.manifest.edit
        if edit is None:
            return ()
        if self._depth >= MOST_DEPTH:
            raise UsageError(
                f"{self.uri} is made of others, and its children are for {MOST_DEPTH} generations: too many"
            )
        found = tuple(
            TokenReader(parent_uri(self.uri, each), self._read_parent(each), self._depth + 1) for each in edit.parents
        )
        views = [view for parent in found for view in parent.manifest.views]
        wrong = next((each for each in found if each.manifest.samples != self.manifest.samples), None)
        if edit.operation == "views" and (tuple(views) != self.manifest.views or wrong):
            raise UsageError(f"{self.uri} does not have the samples and views of its parents: join them anew")
        if edit.operation == "subset" and (len(found) != 1 or edit.rows is None):
            raise UsageError(f"{self.uri} is no subset of one data set: make it anew")
        return found

    def _read_parent(self, parent: Parent) -> TokenManifest:
        manifest = read_parent(self.uri, parent, TokenManifest)
        found = differences(_of_all(self.manifest), _of_all(manifest))
        edit = self.manifest.edit
        if edit is not None and edit.operation != "views":
            found += differences({"views": self.manifest.views}, {"views": manifest.views})
        if found:
            raise UsageError(f"{self.uri} cannot be made of {parent.uri} ({'; '.join(found)}): make it anew")
        return manifest

    @functools.cached_property
    def _firsts(self) -> npt.NDArray[np.int64]:
        """Of an appended or mixed set: the first shard of each parent, and of what is in no parent."""
        return np.cumsum([0, *(len(parent.manifest.shards) for parent in self.parents)])

    @functools.cached_property
    def selection(self) -> Selection:
        """Of a subset: what it selects.

        Raises:
            CorruptShardError: if its rows.bin is damaged.
        """
        assert self.manifest.edit is not None
        assert self.manifest.edit.rows is not None
        parent = self.parents[0].manifest.shards.starts
        return Selection.read(self.uri, self.manifest.edit.rows, self.manifest.shards.starts, parent)

    def block(self, number: int) -> TokenBlock:
        """The samples of one shard, once they are known to be what the manifest says.

        Raises:
            CorruptShardError: if they are not; it names the shard.
            UsageError: if a parent cannot be read.
        """
        edit = self.manifest.edit
        place = self.origin(number)
        if place is None:
            return self._own_block(number)
        parent, its = place
        is_subset = edit is not None and edit.operation == "subset"
        block = parent.rows(its, self.selection.rows(number)) if is_subset else parent.block(its)
        if edit is not None and edit.operation == "views":
            block = self._with_views(number, block)
        self._check_samples(number, len(block.key))
        return TokenBlock(block.tokens_NWLF, self._labels(parent, block.condition), block.key)

    def rows(self, number: int, rows: npt.NDArray[np.int64]) -> TokenBlock:
        """Some samples of one shard, ascending; few of them are read without the others.

        Raises:
            CorruptShardError: as `block`.
        """
        edit, place = self.manifest.edit, self.origin(number)
        few = len(rows) * _FEW <= self.manifest.shards[number].samples
        if place is None and few:
            shard = self.manifest.shards[number]
            block = read_rows(self.uri, shard, rows)
            self._check_block(number, block, len(rows))
            return block
        if place is None or edit is None or not few or edit.operation == "views":
            block = self.block(number)
            return TokenBlock(block.tokens_NWLF[rows], block.condition[rows], block.key[rows])
        parent, its = place
        block = parent.rows(its, self.selection.rows(number)[rows] if edit.operation == "subset" else rows)
        return TokenBlock(block.tokens_NWLF, self._labels(parent, block.condition), block.key)

    def columns(self, number: int) -> Columns:
        """Conditions and keys of one shard, by a few range reads.

        Raises:
            CorruptShardError: as `block`; tokens are not looked at.
            UsageError: as `block`.
        """
        place = self.origin(number)
        if place is None:
            shard = self.manifest.shards[number]
            condition, key, _ = read_columns(self.uri, shard)
            check_classes(shard_uri(self.uri, shard), condition, len(self.manifest.classes), REMEDY)
            return Columns(condition, key)
        parent, its = place
        condition, key = parent.columns(its)
        if self.manifest.edit is not None and self.manifest.edit.operation == "subset":
            rows = self.selection.rows(number)
            condition, key = condition[rows], key[rows]
        self._check_samples(number, len(key))
        return Columns(self._labels(parent, condition), key)

    def samples(self, start: int, stop: int) -> TokenBlock:
        """The samples `start` to `stop` - 1, of as many shards as hold them.

        Raises:
            CorruptShardError: as `block`.
        """
        starts, parts = self.manifest.shards.starts, []
        while start < stop:
            number = int(np.searchsorted(starts, start, side="right")) - 1
            here = slice(start - int(starts[number]), min(stop, int(starts[number + 1])) - int(starts[number]))
            block = self.block(number)
            parts.append(TokenBlock(block.tokens_NWLF[here], block.condition[here], block.key[here]))
            start = int(starts[number + 1])
        if len(parts) == 1:
            return parts[0]
        tokens: Tokens = np.concatenate([part.tokens_NWLF for part in parts])
        return TokenBlock(
            tokens, np.concatenate([part.condition for part in parts]), np.concatenate([part.key for part in parts])
        )

    def origin(self, number: int) -> tuple[TokenReader, int] | None:
        """The parent that a shard comes from, and its number there; None for a shard of the data set's own."""
        edit = self.manifest.edit
        if edit is None:
            return None
        if edit.operation == "views":
            return self.parents[0], number
        if edit.operation == "subset":
            return self.parents[0], int(self.selection.of[number])
        which = int(np.searchsorted(self._firsts, number, side="right")) - 1
        if which == len(self.parents):
            return None
        return self.parents[which], number - int(self._firsts[which])

    def copy_of(self, number: int) -> dict[str, Any]:
        """What the copy of a shard in a node's cache follows from; the same for a parent where it is the same."""
        edit, place = self.manifest.edit, self.origin(number)
        if place is not None and edit is not None and edit.operation in {"append", "mix"}:
            parent, its = place
            if class_map(parent.manifest.classes, self.manifest.classes) is None:
                return parent.copy_of(its)
        if place is not None:
            return {"set": self.manifest.fingerprint, "shard": number}
        shard, layout = self.manifest.shards[number], self.manifest.layout.to_json()
        checked = {"classes": len(self.manifest.classes), "views": len(self.manifest.views)}
        return {"sha256": shard.sha256, "layout": layout} | checked

    def _own_block(self, number: int) -> TokenBlock:
        shard = self.manifest.shards[number]
        block = read_token_shard(self.uri, shard)
        self._check_block(number, block, shard.samples)
        return block

    def _check_block(self, number: int, block: TokenBlock, samples: int) -> None:
        layout, path = self.manifest.layout, shard_uri(self.uri, self.manifest.shards[number])
        shape = (samples, len(self.manifest.views), layout.positions, layout.folds)
        _check_shape(path, block.tokens_NWLF, shape, layout)
        check_classes(path, block.condition, len(self.manifest.classes), REMEDY)
        _check_tokens(path, block.tokens_NWLF, layout)

    def _with_views(self, number: int, block: TokenBlock) -> TokenBlock:
        """A shard of the first parent, and the same samples of the others beside it."""
        start, stop = self.manifest.shards.starts[number : number + 2].tolist()
        parts = [block.tokens_NWLF]
        for parent in self.parents[1:]:
            other = parent.samples(start, stop)
            if not np.array_equal(other.key, block.key) or not np.array_equal(other.condition, block.condition):
                raise UsageError(
                    f"{parent.uri} has other samples than {self.parents[0].uri} from sample {start} on: they are "
                    "tokens of other images, and their views cannot be joined"
                )
            parts.append(other.tokens_NWLF)
        tokens: Tokens = np.concatenate(parts, axis=1)  # type: ignore[assignment]  # of the layout's dtype
        return TokenBlock(tokens, block.condition, block.key)

    def _labels(self, parent: TokenReader, condition: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        labels = class_map(parent.manifest.classes, self.manifest.classes)
        return condition if labels is None else labels[condition]

    def _check_samples(self, number: int, found: int) -> None:
        shard = self.manifest.shards[number]
        if found != shard.samples:
            raise UsageError(
                f"{self.uri} says that it has {shard.samples} samples of {shard_uri(self.uri, shard)}, where its "
                f"parents have {found}: make it anew"
            )


def read_parent(child: str, parent: Parent, kind: type[_M]) -> _M:
    """The manifest of a parent of the data set at `child`, which is of the same kind.

    Raises:
        UsageError: if it is gone, or another data set is there now.
    """
    try:
        uri = parent_uri(child, parent)
        manifest = kind.read(uri)
    except UsageError as error:
        raise UsageError(f"{child} is made of {parent.uri}, which cannot be read ({error}): restore it") from None
    if manifest.fingerprint != parent.fingerprint:
        raise UsageError(
            f"{child} is made of the data set {parent.fingerprint[:16]} at {uri}, which now holds "
            f"{manifest.fingerprint[:16]}: restore that one, or make {child} anew"
        )
    if len(manifest.shards) != parent.shards or storage.absolute(uri) == storage.absolute(child):
        raise UsageError(f"{child} is said to be made of {parent.shards} shards of {parent.uri}: make it anew")
    return manifest


def _of_all(manifest: TokenManifest) -> dict[str, Any]:
    record = manifest.model_dump(mode="json", include=set(_MUST_BE_EQUAL))
    return record | {"layout": manifest.layout.to_json()}


def _check_tokens(path: str, tokens: Tokens, layout: TokenLayout) -> None:
    outside = first_outside(tokens, layout)
    if outside is not None:
        _, fold, token = outside
        codes = layout.vocabularies[fold]
        raise CorruptShardError(f"{path} holds the token {token} of a codebook of {codes} (fold {fold}); {REMEDY}")


def _check_shape(path: str, tokens: npt.NDArray[Any], shape: tuple[int, ...], layout: TokenLayout) -> None:
    if tokens.shape != shape or tokens.dtype != layout.dtype:
        raise CorruptShardError(
            f"{path} holds {tokens.dtype} {tokens.shape}, but its manifest says {layout.dtype} {shape}; {REMEDY}"
        )
