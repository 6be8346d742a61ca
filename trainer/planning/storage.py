"""What a training stage reads from storage and writes to it: bytes, requests, seconds."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.storage.object_reads import PIECE_BYTES
from data_pipeline.storage.object_writes import VIEW_PART_BYTES
from model.layout import TokenLayout

_ROW = 4 + 4 + 48
"""Bytes of a condition, a checksum and a key in a token shard, about."""


@dataclass(frozen=True)
class Reading:
    """What the nodes read from the data set, over the whole run."""

    samples: int
    """In the data set."""
    bytes: int | None
    """None if nobody knows the images' sizes yet: no manifest."""
    requests: int
    """GET requests, without those that are tried again."""
    node_bytes: int | None
    """What each node keeps: on disk, memory-mapped, one copy for all its ranks."""
    how: str
    """In words."""


@dataclass(frozen=True)
class Checkpoints:
    """What checkpoints come to."""

    bytes: int
    """Of one, all ranks together."""
    rank_bytes: int
    """Of one, of one rank: also the snapshot in host memory."""
    count: int
    """Over the run."""
    requests: int
    """PUT requests and parts of one."""
    seconds: float
    """Of the upload of one, in the background."""


def token_bytes(layout: TokenLayout, samples: int, views: int) -> int:
    """Token shards of so many images: 2 or 4 bytes a token, and a condition and key per image.

    Of ImageFolder's tokenizer that is 1.47 GB per view of ImageNet. One large vocabulary makes all tokens wider.
    """
    token = {"uint16": 2, "uint32": 4}[layout.dtype]
    return samples * (views * layout.positions * layout.folds * token + _ROW)


def read_tokens(samples: int, size: int, shards: int, nodes: int) -> Reading:
    """Each node copies every shard once, in pieces."""
    pieces = shards * max(1, -(-size // max(1, shards) // PIECE_BYTES))
    return Reading(samples, size * nodes, pieces * nodes, size, "each node copies the token shards once")


def read_images(samples: int, size: int | None, shards: int, nodes: int, seen: int, *, cached: bool) -> Reading:
    """Images: copies on each node, or a range read for each that is seen."""
    if cached:
        pieces = shards * max(1, -(-(size or 0) // max(1, shards) // PIECE_BYTES))
        how = "each node copies the image shards once"
        return Reading(samples, None if size is None else size * nodes, pieces * nodes, size, how)
    total = None if size is None else round(size / samples * seen)
    return Reading(samples, total, seen, 0, "one range read per image that is seen")


def checkpoint_cost(parameters: int, world: int, nodes: int, count: int, bandwidth: float, *, ema: bool) -> Checkpoints:
    """Masters, two moments and the moving average, float32, each once over all ranks.

    Args:
        parameters: of the network.
        world: ranks; each writes a file and its part of the index.
        nodes: that share the upload.
        count: checkpoints over the run.
        bandwidth: bytes per second from a node to storage.
        ema: whether there is a moving average.
    """
    size = 4 * (3 + ema) * parameters
    rank = -(-size // world)
    parts = 1 if rank <= VIEW_PART_BYTES else -(-rank // VIEW_PART_BYTES) + 2  # begin, parts, end
    return Checkpoints(size, rank, count, world * (parts + 1) + 3, size / (bandwidth * nodes))
