"""The keys of a data set of any size, on scratch disk: is one of them there twice, and which are not in another set?

    1. every key goes to a file, in the order of the data set
    2. its 64-bit hash and its number go to another, in sorted runs of RUN_KEYS
    3. the runs are read bucket by bucket: those hashes with the same first bits, a run's part of them each

Equal keys have equal hashes, so they meet in one bucket, side by side once it is sorted. Whatever has equal hashes is
compared byte for byte, so "none twice" is a proof and not a likelihood, and no key is named that is there once. In
memory are a run or a bucket, some 50 MB whatever the size of the set; on disk 16 bytes a sample, and its key.
The hash has constants of its own in each process, so that nobody can make a data set whose keys share a bucket: what
overfills one are equal keys, and of those a part tells as much as all.
"""

from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DiskError

Keys = npt.NDArray[np.bytes_]
Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

RUN_KEYS = 2**19
"""Keys whose hashes are sorted in memory at a time, and that a bucket has by far at most."""
MOST_BUCKETS = 2**12
_OVERFULL = 4
"""A bucket is read up to so many times RUN_KEYS; on average it has half of one."""
_COMPARED = 1000
"""Keys of equal hashes that are compared; so many that are equal are told without the others."""
_RECORD = np.dtype([("hash", "<u8"), ("number", "<i8")])
_WORDS = 32
"""Words of 8 bytes of the longest key (`names.MOST_KEY_BYTES`)."""
_FACTORS: Hashes = np.frombuffer(os.urandom(8 * (_WORDS + 1)), np.uint64) | np.uint64(1)


def hash_keys(keys: Keys) -> Hashes:
    """A 64-bit hash of each key, which does not depend on how wide the array is."""
    width = keys.dtype.itemsize
    words = np.zeros((len(keys), -(-width // 8)), "<u8")
    words.view(np.uint8)[:, :width] = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), width)
    total = np.zeros(len(keys), np.uint64)
    for number in range(words.shape[1]):  # a word of zeros adds nothing
        total += _mix(words[:, number] * _FACTORS[number % _WORDS])
    return _mix(total * _FACTORS[_WORDS])


def _mix(words: Hashes) -> Hashes:
    """The end of splitmix64: each bit depends on all."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Repeated(NamedTuple):
    """A key that is there more than once."""

    key: bytes
    numbers: list[int]
    """Samples that have it: the first of them, if there are many."""
    times: int
    """How many have it."""


class KeySpool:
    """The keys of one data set. Use it in a `with`: its files have no names, and go with it.

    Args:
        samples: about how many there will be; it decides the number of buckets.
        run_keys: as RUN_KEYS.
    """

    def __init__(self, samples: int, run_keys: int = RUN_KEYS) -> None:
        self.count = 0
        """Keys so far."""
        self._run_keys = run_keys
        buckets = min(MOST_BUCKETS, 1 << max(0, 2 * samples // run_keys).bit_length())
        self._bounds = np.array([(number << 64) // buckets for number in range(1, buckets)], np.uint64)
        self._keys, self._runs = _scratch_file(), _scratch_file()
        self._starts, self._offsets, self._widths = array("q"), array("q"), array("q")
        self._cuts: list[Numbers] = []
        """For each run where in the file its part of each bucket begins, and its end."""
        self._waiting: list[npt.NDArray[Any]] = []
        self._held = 0

    def __enter__(self) -> KeySpool:
        """As it is."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the disk back."""
        self._keys.close()
        self._runs.close()

    def add(self, keys: Keys) -> None:
        """The next keys of the data set, in its order.

        Raises:
            DiskError: if the scratch disk is full.
        """
        if not len(keys):
            return
        self._starts.append(self.count)
        self._offsets.append(_append(self._keys, keys))
        self._widths.append(keys.dtype.itemsize)
        for first in range(0, len(keys), self._run_keys):
            part = keys[first : first + self._run_keys]
            record = np.empty(len(part), _RECORD)
            record["hash"], record["number"] = hash_keys(part), np.arange(self.count, self.count + len(part))
            self.count += len(part)
            self._hold(record)

    def key(self, number: int) -> bytes:
        """A key by its number."""
        at = int(np.searchsorted(np.frombuffer(self._starts, np.int64), number, "right")) - 1
        width = self._widths[at]
        return os.pread(self._keys.fileno(), width, self._offsets[at] + (number - self._starts[at]) * width).rstrip(
            b"\0"
        )

    def buckets(self) -> Iterator[tuple[Hashes, Numbers]]:
        """The hashes in ascending order with the numbers of their keys, a bucket at a time."""
        for hashes, numbers, _ in self._read_buckets():
            yield hashes, numbers

    def twice(self, most: int) -> tuple[list[Repeated], int]:
        """Keys that are there more than once.

        Args:
            most: keys that are listed.

        Returns:
            Those keys in the order of the data set, and how many more hashes there are more than once.
        """
        listed: list[Repeated] = []
        more = 0
        for hashes, numbers, unread in self._read_buckets():
            more += unread
            edges = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1], [True]]))
            for group in np.flatnonzero(np.diff(edges) > 1):
                equal = numbers[edges[group] : edges[group + 1]]
                if len(listed) < most:
                    listed += self._compare(equal)
                else:
                    more += 1
        return sorted(listed, key=lambda each: each.numbers[0]), more

    def _compare(self, numbers: Numbers) -> list[Repeated]:
        """Of keys whose hashes are equal those that are equal themselves."""
        by_key: dict[bytes, list[int]] = {}
        for number in numbers[:_COMPARED].tolist():
            by_key.setdefault(self.key(number), []).append(number)
        beyond = max(0, len(numbers) - _COMPARED)
        return [
            Repeated(key, places, len(places) + beyond) for key, places in by_key.items() if len(places) + beyond > 1
        ]

    def _read_buckets(self) -> Iterator[tuple[Hashes, Numbers, int]]:
        """Hashes and numbers of each bucket, and how many it has beyond what fits into memory."""
        self._write_run()
        for bucket in range(len(self._bounds) + 1):
            parts, room, unread = [], _OVERFULL * self._run_keys, 0
            for cuts in self._cuts:
                held = int(cuts[bucket + 1] - cuts[bucket]) // _RECORD.itemsize
                parts.append(self._part(int(cuts[bucket]), min(held, room)))
                unread += held - len(parts[-1])
                room -= len(parts[-1])
            found = np.concatenate([np.empty(0, _RECORD), *parts])
            found = found[np.argsort(found["hash"], kind="stable")]
            yield np.ascontiguousarray(found["hash"]), np.ascontiguousarray(found["number"]), unread

    def _hold(self, record: npt.NDArray[Any]) -> None:
        if self._held + len(record) > self._run_keys:
            self._write_run()
        self._waiting.append(record)
        self._held += len(record)

    def _write_run(self) -> None:
        if not self._waiting:
            return
        run = np.concatenate(self._waiting)
        self._waiting, self._held = [], 0
        run = run[np.argsort(run["hash"], kind="stable")]
        start = _append(self._runs, run)
        inner = np.searchsorted(run["hash"], self._bounds)
        self._cuts.append(start + _RECORD.itemsize * np.concatenate([[0], inner, [len(run)]]))

    def _part(self, start: int, records: int) -> npt.NDArray[Any]:
        return np.frombuffer(os.pread(self._runs.fileno(), records * _RECORD.itemsize, start), _RECORD)


def missing_from(here: KeySpool, there: KeySpool) -> tuple[int, int]:
    """Of the keys of `there` those that `here` does not have: how many, and the number of the first (-1 if none).

    Both spools are for the same number of samples. Keys are told apart by their hashes alone.
    """
    count, first = 0, -1
    for (hashes, _), (others, numbers) in zip(here.buckets(), there.buckets(), strict=True):
        lost = numbers[~np.isin(others, hashes)]
        if len(lost):
            count += len(lost)
            first = int(lost.min()) if first < 0 else min(first, int(lost.min()))
    return count, first


def _scratch_file() -> IO[bytes]:
    with _scratch_disk():
        return tempfile.TemporaryFile()


def _append(file: IO[bytes], array: npt.NDArray[Any]) -> int:
    """Write the bytes of an array behind all others; returns where."""
    with _scratch_disk():
        start = file.seek(0, os.SEEK_END)
        file.write(array.tobytes())
        file.flush()
    return start


@contextmanager
def _scratch_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        needed = "verify keeps keys there (16 bytes a sample, and its key): set TMPDIR to a folder of a larger disk"
        where = f"the folder for temporary files ({os.environ.get('TMPDIR', '/tmp')})"  # noqa: S108 - a message
        raise DiskError(error.errno or errno.EIO, f"{where}: {error.strerror or error}: {needed}") from error
