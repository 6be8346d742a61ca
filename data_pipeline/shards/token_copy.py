"""How samples lie in a copy on a node, of one shard or of a whole data set: memory-mapped by all processes there.

    uint16 or uint32 [samples * views, positions * folds]    tokens
    int32  [samples]                                         conditions
    S      [samples]                                         keys, as wide as the widest

Shape suffixes: N samples, W views, L positions, F folds, R rows (samples * views), T tokens of a row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline.node.copy_seal import content_bytes
from data_pipeline.shards.token_shards import Tokens
from data_pipeline.text.names import MOST_KEY_BYTES
from model.layout import TokenLayout

_ALIGNMENT = 64


@dataclass(frozen=True)
class MappedTokens:
    """A copy, memory-mapped and read-only."""

    rows_RT: Tokens
    conditions: npt.NDArray[np.int32]
    keys: npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class TokenCopy:
    """Where the parts of a copy are."""

    samples: int
    views: int
    layout: TokenLayout

    @property
    def condition_offset(self) -> int:
        """Bytes of the tokens."""
        layout = self.layout
        tokens = self.samples * self.views * layout.positions * layout.folds * np.dtype(layout.dtype).itemsize
        return -(-tokens // _ALIGNMENT) * _ALIGNMENT

    @property
    def most_bytes(self) -> int:
        """What a copy may take; what its keys do not need is given back by `finish`."""
        return self.condition_offset + self.samples * (4 + MOST_KEY_BYTES)

    def write_tokens(self, draft: BinaryIO, start: int, tokens_NWLF: Tokens) -> None:
        """Write the tokens of the samples from `start` on into a copy in the making; threads may do so together.

        Written in one piece, a shard lies in huge pages of the page cache where the file system has them, and a gather
        from a map of the copy finds its rows faster than in one that was written through a map, page by page.
        """
        rest = np.ascontiguousarray(tokens_NWLF).reshape(-1).view(np.uint8).data
        at = start * self.views * self.layout.positions * self.layout.folds * np.dtype(self.layout.dtype).itemsize
        while rest:
            written = os.pwrite(draft.fileno(), rest, at)
            rest, at = rest[written:], at + written

    def finish(self, draft: BinaryIO, conditions: npt.NDArray[np.int32], keys: npt.NDArray[np.bytes_]) -> None:
        """Write what follows the tokens, and cut the draft there."""
        draft.seek(self.condition_offset)
        draft.write(conditions.tobytes())
        draft.write(keys.tobytes())
        draft.truncate()

    def map(self, copy: BinaryIO) -> MappedTokens:
        """A finished copy with its seal. The maps keep it from being removed until they are gone."""
        key_offset = self.condition_offset + 4 * self.samples
        key_width = (content_bytes(copy) - key_offset) // self.samples
        width = self.layout.positions * self.layout.folds

        def mapped(dtype: str, offset: int, *shape: int) -> npt.NDArray[Any]:
            # np.asarray: a plain array over the same map is sliced and gathered faster than np.memmap, a subclass.
            return np.asarray(np.memmap(copy, dtype, "r", offset, shape))

        return MappedTokens(
            mapped(self.layout.dtype, 0, self.samples * self.views, width),
            mapped("<i4", self.condition_offset, self.samples),
            mapped(f"S{key_width}", key_offset, self.samples),
        )
