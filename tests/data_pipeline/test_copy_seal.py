"""The seal of a copy is checked in little memory, whatever its size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from data_pipeline.node.copy_seal import content_bytes, find_damage, seal


def test_every_byte_is_compared_in_a_few_mebibytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * (12 * 2**12) + b"end"
    with (tmp_path / "copy").open("w+b") as copy:
        copy.write(content)
        tracemalloc.start()
        seal(copy, "copy")
        assert find_damage(copy, "copy", every_byte=True) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert content_bytes(copy) == len(content)
        for damaged in (0, 2**20, len(content) - 1):  # in the first piece, in a later one, in the last
            copy.seek(damaged)
            copy.write(b"\xfe")
            copy.flush()
            assert find_damage(copy, "copy", every_byte=True) == "its CRC-32 differs"
            copy.seek(damaged)
            copy.write(content[damaged : damaged + 1])
    assert peak < 4 * 2**20
