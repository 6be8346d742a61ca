"""The samples of a token data set that is larger than a node's disk, by number: read by shuffle windows.

 1. With `data.reading.shuffle_window` the order of an epoch takes the samples of a few shards at a time
    (order/permutations.py). `follow` is told which positions come next.
 2. Each shard of their windows has a copy of its own in the node's cache, made once for all ranks, mapped by each:
    <digest>.block: tokens, conditions, keys (token_copy.py). Threads make those of the window after it ahead.
 3. Copies of windows that are over are let go; the cache evicts them when it needs their room. So a node holds two
    windows, and one more while a batch reaches over the end of one.

A rank that resumes anywhere reads the window of its position and no earlier one. What is read is the same as through
one whole copy (token_dataset.py), sample for sample.
Shape suffixes: B samples or rows asked for, L positions, F folds, T tokens of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import BinaryIO, Generic, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.node.copy_seal import SEAL_BYTES
from data_pipeline.node.held_copies import HeldCopies
from data_pipeline.node.node_cache import UNSET_LIMIT, NodeCache, NoRoomError
from data_pipeline.order.mixing import Order, upcoming
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_copy import MappedTokens, TokenCopy
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import Tokens
from data_pipeline.text.names import MOST_KEY_BYTES
from model.layout import TokenLayout

TokensHow = Literal["auto", "copy", "windows"]
"""How a node holds tokens."""

_Indices = npt.NDArray[np.int64]
_Element = TypeVar("_Element", np.int32, np.bytes_)
_MORE_BYTES = 64
"""That the copy of a shard may take beyond its tar, which holds the same and more."""
_LOG = logging.getLogger(__name__)


class TokenWindows:
    """As `TokenShards`, with a copy per shard that is held for as long as its window is read.

    Args:
        uri: the data set.
        cache: where this node keeps its copies.
        window: shards that are shuffled together.
        manifest: of the data set, if it was read already.

    Raises:
        UsageError: if there is no complete data set at `uri`, or the cache is too small for two windows of it.
    """

    def __init__(self, uri: str, cache: NodeCache, window: int, manifest: TokenManifest | None = None) -> None:
        self.uri = uri
        manifest = manifest or TokenManifest.read(uri)
        self.manifest = manifest = manifest.through(cache)
        if not self.manifest.samples:
            raise UsageError(f"{uri} holds no samples: {TokenManifest.remedy} on images first")
        _check_room(uri, self.manifest, cache, window)
        self.count, self.window = self.manifest.samples, window
        self._starts = self.manifest.shards.starts
        self._views, self._sample = len(self.manifest.views), (self.layout.positions, self.layout.folds)
        reader = TokenReader(uri, manifest)
        self._copies: HeldCopies[MappedTokens] = HeldCopies(lambda number: _open_block(reader, number, cache))
        self.conditions: Column[np.int32] = Column(self, "conditions")
        self.keys: Column[np.bytes_] = Column(self, "keys")

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(np.diff(self._starts).tolist())

    @property
    def layout(self) -> TokenLayout:
        """What the positions and folds of a sample are."""
        return self.manifest.layout

    @property
    def held(self) -> str:
        """How the tokens are held on this node, for people."""
        return f"by windows of {self.window} shards of {len(self.manifest.shards)}"

    def follow(self, order: Order, first: int, stop: int) -> None:
        """Positions `first` to `stop` - 1 come next: hold the shards of their windows, fetch the window after them."""
        numbers = upcoming(order, first, stop)
        self._copies.keep(number for number in numbers if self._starts[number] < self._starts[number + 1])

    def tokens(self, indices: _Indices) -> Tokens:
        """All views of some samples, [B, views, positions, folds], of the layout's dtype."""
        rows = indices[:, None] * self._views + np.arange(self._views)
        return self.rows(rows.ravel()).reshape(len(indices), self._views, *self._sample)

    def rows(self, rows: _Indices) -> Tokens:
        """Some rows, [B, positions, folds]; row sample * views + view is one view of a sample."""
        width = self._sample[0] * self._sample[1]
        taken_BT = cast("Tokens", np.empty((len(rows), width), self.layout.dtype))
        for number, places in self.by_shard(rows // self._views):
            block_RT = self.block(number).rows_RT
            local = rows[places] - self._starts[number] * self._views
            taken_BT[places] = block_RT.take(local, axis=0, mode="clip")
        return taken_BT.reshape(len(rows), *self._sample)

    def block(self, number: int) -> MappedTokens:
        """The samples of one shard."""
        return self._copies.get(number)

    def by_shard(self, indices: _Indices) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """The shards of some samples, each with the places of its samples among them."""
        shard_B = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(shard_B, kind="stable")
        numbers, firsts = np.unique(shard_B[order], return_index=True)
        if len(numbers):
            yield from zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True)

    def start_of(self, number: int) -> int:
        """The first sample of a shard."""
        return int(self._starts[number])


class Column(Generic[_Element]):
    """One value of each sample, which lies in the copies of the shards: `column[indices]` gathers some."""

    def __init__(self, shards: TokenWindows, name: Literal["conditions", "keys"]) -> None:
        self._shards, self._name = shards, name

    def __len__(self) -> int:
        return self._shards.count

    def __getitem__(self, indices: _Indices) -> npt.NDArray[_Element]:
        """The values of some samples, in their order. Keys are as wide as the widest of the shards that hold them."""
        asked = np.asarray(indices).ravel()
        parts = [
            (places, getattr(self._shards.block(number), self._name)[asked[places] - self._shards.start_of(number)])
            for number, places in self._shards.by_shard(asked)
        ]
        kind = np.result_type(*(part.dtype for _, part in parts)) if parts else np.dtype("i4")
        found = np.empty(asked.shape, kind)
        for places, part in parts:
            found[places] = part
        return cast("npt.NDArray[_Element]", found.reshape(np.shape(indices)))


KeyColumn = npt.NDArray[np.bytes_] | Column[np.bytes_]
"""The keys of a data set, in memory or mapped, or gathered from windows."""


def open_tokens(
    uri: str, cache: NodeCache, how: TokensHow, window: int | None, manifest: TokenManifest | None = None
) -> TokenShards | TokenWindows:
    """The tokens at `uri`, as `data.reading.tokens` says; what `auto` has chosen is told as `held`.

    Args:
        uri: the data set.
        cache: of this node.
        how: one whole copy; windows; or `auto`: a whole copy where there is room for one, else windows.
        window: shards that are shuffled together (`data.reading.shuffle_window`).
        manifest: of the data set, if it was read already.

    Raises:
        UsageError: if there is no complete data set at `uri`, or the cache cannot hold it so.
    """
    if how == "windows":
        if window is None:
            raise UsageError(
                "data.reading.tokens is windows, but all samples are shuffled together: set data.reading.shuffle_window"
            )
        return TokenWindows(uri, cache, window, manifest)
    manifest = manifest or TokenManifest.read(uri)
    try:
        return TokenShards(uri, cache, manifest)
    except NoRoomError as error:
        fits = window is not None and window < len(manifest.shards)
        if how == "auto" and fits and window is not None:
            _LOG.info("%s is read by windows of %d shards: %s", uri, window, error)
            return TokenWindows(uri, cache, window, manifest)
        raise NoRoomError(
            f"{uri} has {manifest.shards.total_bytes:,} bytes of tokens, for which this node's cache "
            f"has no room ({error}). Or {_advice(manifest, cache, window)}"
        ) from None


def _advice(manifest: TokenManifest, cache: NodeCache, window: int | None) -> str:
    most = _largest_window(manifest, cache.capacity())
    if not most:
        return "tokenize with smaller shards (tokens.shard_samples): not two of these fit, so windows do not, either"
    if window is not None and window <= most:
        return "set data.reading.tokens to auto or windows: it is read by its shuffle windows then"
    return (
        f"set data.reading.shuffle_window to at most {most} (of {len(manifest.shards)} shards) and data.reading.tokens "
        "to auto: it is read by windows then, of which two fit"
    )


def _check_room(uri: str, manifest: TokenManifest, cache: NodeCache, window: int) -> None:
    capacity, needed = cache.capacity(), _windows_bytes(manifest, window)
    if needed > capacity:
        most = _largest_window(manifest, capacity)
        remedy = f"to at most {most}" if most else "to 1 and tokenize with smaller shards (tokens.shard_samples)"
        raise NoRoomError(
            f"data.reading.shuffle_window is {window}, and two windows of {uri} take {needed:,} bytes, but this node's "
            f"cache may hold {capacity:,} ({UNSET_LIMIT}): set the window {remedy}, raise the limit, or set "
            "data.reading.cache_dir to a larger disk of the node"
        )


def _windows_bytes(manifest: TokenManifest, window: int) -> int:
    """What two windows take at most: the one that is read, and the next."""
    sets = len(manifest.edit.parents) if manifest.edit is not None and manifest.edit.draws else 1  # each by windows
    sizes = np.sort(_block_bytes(manifest))[-2 * window * sets :]
    return int(sizes.sum()) + len(sizes) * SEAL_BYTES


def _largest_window(manifest: TokenManifest, capacity: int) -> int:
    low, high = 0, len(manifest.shards)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _windows_bytes(manifest, middle) <= capacity else (low, middle - 1)
    return low


def _open_block(reader: TokenReader, number: int, cache: NodeCache) -> MappedTokens:
    manifest = reader.manifest
    layout = TokenCopy(manifest.shards[number].samples, len(manifest.views), manifest.layout)

    def make(draft: BinaryIO) -> None:
        block = reader.block(number)
        layout.write_tokens(draft, 0, block.tokens_NWLF)
        layout.finish(draft, block.condition, block.key)

    name = f"{storage.fingerprint(reader.copy_of(number))}.block"
    with cache.open(name, int(_block_bytes(manifest)[number]), make) as file:
        return layout.map(file)


def _block_bytes(manifest: TokenManifest) -> npt.NDArray[np.int64]:
    """Bytes that the copy of each shard may take: a tar of its own holds the same, and more."""
    if manifest.edit is None:
        return manifest.shards.sizes + _MORE_BYTES
    tokens = manifest.layout.positions * manifest.layout.folds * np.dtype(manifest.layout.dtype).itemsize
    sample = len(manifest.views) * tokens + 4 + MOST_KEY_BYTES
    return np.diff(manifest.shards.starts) * sample + _MORE_BYTES
