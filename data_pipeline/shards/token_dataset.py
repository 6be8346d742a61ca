"""The samples of a token data set by number.

Every process of a node reads one memory-mapped copy of the data set, on the node's own disk (node_cache.py), so that a
batch is one gather and eight ranks hold the tokens once:

    <fingerprint of the manifest>.tokens    all shards, one after another (token_copy.py)

Each shard is compared with its sha256 when the copy is made, and the copy with its seal when a process opens it.
Shape suffixes: B samples asked for, N samples, W views, L positions, F folds, R rows (samples * views), T tokens of a
row (positions * folds).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.order.mixing import Order
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_copy import TokenCopy
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import Tokens
from model.layout import TokenLayout

_DOWNLOADS = 4


class TokenShards:
    """The samples of a token data set by number, in the order of its shards; memory-mapped, so opening reads little.

    Args:
        uri: the data set.
        cache: where this node keeps its copy.
        manifest: of the data set, if it was read already.

    Raises:
        UsageError: if there is no complete data set at `uri`.
        NoRoomError: if the cache is too small for it.
        CorruptShardError: if a shard is not the one that the manifest names.
    """

    def __init__(self, uri: str, cache: NodeCache | None = None, manifest: TokenManifest | None = None) -> None:
        self.uri = uri
        cache = cache or NodeCache()
        self.manifest = (manifest or TokenManifest.read(uri)).through(cache)
        if not self.manifest.samples:
            raise UsageError(f"{uri} holds no samples: {TokenManifest.remedy} on images first")
        self.count = self.manifest.samples
        self._views, self._sample = len(self.manifest.views), (self.layout.positions, self.layout.folds)
        self._copy = _open_copy(uri, self.manifest, cache)
        mapped = copy_of(self.manifest).map(self._copy)
        self._rows_RT, self.conditions, self.keys = mapped.rows_RT, mapped.conditions, mapped.keys

    window: int | None = None
    """Shards of a window, where the samples are read by windows (token_windows.py)."""

    def follow(self, order: Order, first: int, stop: int) -> None:
        """Positions `first` to `stop` - 1 come next; all of them are here."""

    @property
    def held(self) -> str:
        """How the tokens are held on this node, for people."""
        return "through one copy on each node"

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(np.diff(self.manifest.shards.starts).tolist())

    @property
    def layout(self) -> TokenLayout:
        """What the positions and folds of a sample are."""
        return self.manifest.layout

    def tokens(self, indices: npt.NDArray[np.int64]) -> Tokens:
        """All views of some samples, [B, views, positions, folds], of the layout's dtype."""
        rows = indices[:, None] * self._views + np.arange(self._views)
        return self.rows(rows.ravel()).reshape(len(indices), self._views, *self._sample)

    def rows(self, rows: npt.NDArray[np.int64]) -> Tokens:
        """Some rows, [B, positions, folds]; row sample * views + view is one view of a sample.

        Rows out of bounds are not refused: numpy would need a second buffer for that.
        """
        taken_BT = self._rows_RT.take(rows, axis=0, mode="clip")
        return taken_BT.reshape(len(rows), *self._sample)


def _open_copy(uri: str, manifest: TokenManifest, cache: NodeCache) -> BinaryIO:
    layout = copy_of(manifest)
    return cache.open(copy_name(manifest), layout.most_bytes, lambda draft: _write_copy(uri, manifest, layout, draft))


def copy_of(manifest: TokenManifest) -> TokenCopy:
    """How the samples of a whole data set lie in its copy."""
    return TokenCopy(manifest.samples, len(manifest.views), manifest.layout)


def copy_name(manifest: TokenManifest) -> str:
    """What the copy of a whole data set is called in a node's cache."""
    return f"{manifest.fingerprint}.tokens"


def _write_copy(uri: str, manifest: TokenManifest, layout: TokenCopy, draft: BinaryIO) -> None:
    """Fill a copy from the shards, a few of them at a time."""
    reader = TokenReader(uri, manifest)

    def copy_shard(number: int, start: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bytes_]]:
        block = reader.block(number)
        layout.write_tokens(draft, start, block.tokens_NWLF)
        return block.condition.copy(), block.key.copy()  # copies: a view would keep the shard's bytes alive

    with ThreadPoolExecutor(_DOWNLOADS, "copy") as pool:
        numbers = range(len(manifest.shards))
        parts = list(pool.map(copy_shard, numbers, manifest.shards.starts[:-1].tolist()))
    conditions, keys = zip(*parts, strict=True)
    layout.finish(draft, np.concatenate(conditions), np.concatenate(keys))
