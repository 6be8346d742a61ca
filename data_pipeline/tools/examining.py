"""One shard under the glass: everything about it that is not as it should be, by check, with shard and key.

A shard is read once, in order, with a piece of it in memory at a time. What is kept of it are its keys and labels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.image_shards import ShardIndex
from data_pipeline.shards.manifest import ShardRecord

FILES, CHECKSUMS, SAMPLES, COUNTS = "files", "checksums", "samples", "counts"
TOKENS, LABELS, LINEAGE = "token range", "label range", "lineage"
MORE_BYTES = 2**20
"""A shard that is longer than its manifest says by more than its size and this is not read."""
CORRUPT = "is corrupt (CRC-32 differs)"


@dataclass
class Findings:
    """What was found in one shard."""

    shard: str
    key: npt.NDArray[np.bytes_] = field(default_factory=lambda: np.array([], "S1"))
    label: npt.NDArray[np.int64] = field(default_factory=lambda: np.array([], np.int64))
    index: ShardIndex | None = None
    """Of a shard of images, what its index says."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """What a shard of tokens says that it follows from, beyond what the manifest says."""
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What is wrong, by check."""

    def add(self, check: str, problem: str) -> None:
        """Note what is wrong, after the name of the shard."""
        self.problems[check].append(f"{self.shard}: {problem}")

    def key_at(self, row: int | np.signedinteger[Any]) -> str:
        """The key of a sample, for messages."""
        return f"sample {bytes(self.key[row]).decode(errors='replace')}"

    def check_labels(self, classes: int) -> None:
        """Note labels that name no class."""
        bad = np.flatnonzero((self.label < 0) | (self.label >= classes))
        if len(bad):
            problem = f"{self.key_at(bad[0])} has label {self.label[bad[0]]} of {classes} classes"
            self.add(LABELS, problem + and_more(len(bad)))

    def check_size(self, shard: ShardRecord, size: int | None) -> bool:
        """Note a tar that is missing or has another size than the manifest says; whether it is to be read."""
        if size != shard.bytes:
            self.add(FILES, "is missing" if size is None else f"has {size} bytes, {shard.bytes} in the manifest")
        return size is not None and size <= 2 * shard.bytes + MORE_BYTES


def and_more(found: int) -> str:
    """What a message about the first of some says of the others."""
    return f" (and {found - 1} more)" if found > 1 else ""
