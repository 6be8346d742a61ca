"""The samples of a token data set by number.

Every process of a node reads one memory-mapped copy of the data set, on the node's own disk (node_cache.py), so that a
batch is one gather and eight ranks hold the tokens once:

    <fingerprint of the manifest>.tokens
      uint16 or uint32 [samples * views, positions * folds]    all shards, one after another
      int32  [samples]                               classes
      S      [samples]                               keys

Each shard is compared with its sha256 when the copy is made, and the copy with its seal when a process opens it.
Shape suffixes: B samples asked for, N samples, W views, L positions, F folds, R rows (samples * views), T tokens of a
row (positions * folds).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.node.copy_seal import content_bytes
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.conditions import check_classes
from data_pipeline.shards.manifest import ShardRecord, TokenManifest
from data_pipeline.shards.shard_table import shard_uri
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.token_shards import REMEDY, Tokens, first_outside
from data_pipeline.text.names import MOST_KEY_BYTES
from model.layout import TokenLayout

_ALIGNMENT = 64
_DOWNLOADS = 4


class TokenShards:
    """The samples of a token data set by number, in the order of its shards; memory-mapped, so opening reads little.

    Args:
        uri: the data set.
        cache: where this node keeps its copy.

    Raises:
        UsageError: if there is no complete data set at `uri`, or the cache is too small for it.
        CorruptShardError: if a shard is not the one that the manifest names.
    """

    def __init__(self, uri: str, cache: NodeCache | None = None) -> None:
        self.uri = uri
        self.manifest = TokenManifest.read(uri)
        if not self.manifest.samples:
            raise UsageError(f"{uri} holds no samples: {TokenManifest.remedy} on images first")
        self.count = self.manifest.samples
        self._views, self._sample = len(self.manifest.views), (self.layout.positions, self.layout.folds)
        self._copy = _open_copy(uri, self.manifest, cache or NodeCache())
        self._rows_RT, self.conditions, self.keys = _map_copy(self._copy, self.manifest)

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


def _condition_offset(manifest: TokenManifest) -> int:
    layout = manifest.layout
    tokens = manifest.samples * len(manifest.views) * layout.positions * layout.folds * np.dtype(layout.dtype).itemsize
    return -(-tokens // _ALIGNMENT) * _ALIGNMENT


def _open_copy(uri: str, manifest: TokenManifest, cache: NodeCache) -> BinaryIO:
    most = _condition_offset(manifest) + manifest.samples * (4 + MOST_KEY_BYTES)  # what keys do not need is given back
    return cache.open(f"{manifest.fingerprint}.tokens", most, lambda draft: _write_copy(uri, manifest, draft))


def _map_copy(copy: BinaryIO, manifest: TokenManifest) -> tuple[Tokens, npt.NDArray[np.int32], npt.NDArray[np.bytes_]]:
    """Tokens by row, conditions and keys, all memory-mapped."""
    samples, condition_offset = manifest.samples, _condition_offset(manifest)
    key_offset = condition_offset + 4 * samples
    key_width = (content_bytes(copy) - key_offset) // samples
    layout, rows = manifest.layout, samples * len(manifest.views)

    def mapped(dtype: str, offset: int, *shape: int) -> npt.NDArray[Any]:
        # np.asarray: a plain array over the same map is sliced and gathered faster than np.memmap, a subclass.
        return np.asarray(np.memmap(copy, dtype, "r", offset, shape))

    tokens_RT = mapped(layout.dtype, 0, rows, layout.positions * layout.folds)
    return tokens_RT, mapped("<i4", condition_offset, samples), mapped(f"S{key_width}", key_offset, samples)


def _write_copy(uri: str, manifest: TokenManifest, draft: BinaryIO) -> None:
    """Fill a copy from the shards, a few of them at a time."""
    layout, samples = manifest.layout, manifest.samples
    sample = (len(manifest.views), layout.positions, layout.folds)
    tokens_NWLF = np.memmap(draft, layout.dtype, "r+", 0, (samples, *sample))

    def copy_shard(start: int, shard: ShardRecord) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bytes_]]:
        block = read_token_shard(uri, shard)
        path = shard_uri(uri, shard)
        _check_shape(path, block.tokens_NWLF, (shard.samples, *sample), layout)
        check_classes(path, block.condition, len(manifest.classes), REMEDY)
        _check_tokens(path, block.tokens_NWLF, layout)
        tokens_NWLF[start : start + shard.samples] = block.tokens_NWLF
        return block.condition.copy(), block.key.copy()  # copies: a view would keep the shard's bytes alive

    with ThreadPoolExecutor(_DOWNLOADS, "copy") as pool:
        parts = list(pool.map(copy_shard, manifest.shards.starts[:-1].tolist(), manifest.shards))
    tokens_NWLF.flush()
    draft.seek(_condition_offset(manifest))
    for column in zip(*parts, strict=True):
        draft.write(np.concatenate(column).tobytes())
    draft.truncate()


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
