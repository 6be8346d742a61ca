"""A permutation of 0, 1, …, count - 1 that is computed, not stored: a Feistel network keyed by a seed and a name.

    1. a number n < count is cut into two digits, n = left * right_size + right
    2. each round adds a keyed hash of one digit to the other, modulo that digit's size; the digits take turns
    3. the digits give a number below left_size * right_size, which is count or a little more; a number that is not
       below count goes through the network again until it is (cycle walking)

Each step can be undone, so it is a permutation at any count, and `invert` is the same backwards. (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002: the generalized Feistel cipher.) Digits of any size in place of
halves of the bits leave next to nothing to walk: 1 number of 1,281,168 for 1,281,167, where the next power of two
holds 2,097,152. All of it is arithmetic on unsigned integers of 32 bits, so it is the same on every platform.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_Digits = npt.NDArray[np.uint32]

MOST = 2**54
"""Numbers of a permutation: digits are below 2^28, as what is added to them."""

_ROUNDS, _ROUNDS_OF_FEW, _FEW = 6, 16, 1024
"""Rounds, and rounds of less than so many numbers: there a digit is too small for its hashes to average out in six.
Four rounds are told from a shuffle by the tests, five are not from a thousand numbers on."""
_CHUNK = 8192
"""Numbers that go through the network at once: they and three arrays beside them stay in a core's own cache."""
_CANDIDATES = 256
"""Sizes of the left digit that are tried."""
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
"""Multipliers of Wellons's lowbias32, found by search for the least bias of an integer hash of 32 bits."""
_FOLD, _DROP = np.uint32(15), np.uint32(4)


class Permutation:
    """A permutation of 0, 1, …, count - 1.

    Args:
        seed: of the permutation.
        name: tells permutations of one seed apart.
        count: how many numbers there are, 1 to `MOST`.

    Raises:
        ValueError: if there are none, or too many.
    """

    def __init__(self, seed: int, name: str, count: int) -> None:
        if not 1 <= count <= MOST:
            raise ValueError(f"a permutation is of 1 to {MOST} numbers, not of {count}")
        self.count = count
        self._sizes = digit_sizes(count)
        self._rounds = _ROUNDS if count >= _FEW else _ROUNDS_OF_FEW
        digest = hashlib.shake_256(f"{seed}/{name}".encode()).digest(4 * self._rounds)
        self._keys = np.frombuffer(digest, "<u4").astype(np.uint32)

    def permute(self, numbers: Numbers) -> Numbers:
        """Where the permutation takes each of the numbers, int64 of the same shape."""
        return self._walk(numbers, forward=True)

    def invert(self, numbers: Numbers) -> Numbers:
        """Which numbers the permutation takes to the given ones, int64 of the same shape."""
        return self._walk(numbers, forward=False)

    def _walk(self, numbers: Numbers, *, forward: bool) -> Numbers:
        result = np.array(numbers, np.int64, order="C")
        flat = result.reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.count):
            raise ValueError(f"a permutation of {self.count} numbers was asked for one outside of them")
        for first in range(0, flat.size, _CHUNK):
            chunk = flat[first : first + _CHUNK]
            self._pass(chunk, forward=forward)
            while chunk.max() >= self.count:
                outside = np.flatnonzero(chunk >= self.count)
                again = chunk[outside]
                self._pass(again, forward=forward)
                chunk[outside] = again
        return result

    def _pass(self, numbers: Numbers, *, forward: bool) -> None:
        """Take numbers below left_size * right_size through the network once, in place."""
        right_size = self._sizes[1]
        left_64 = numbers // right_size
        left = left_64.astype(np.uint32)
        left_64 *= right_size
        right = np.subtract(numbers, left_64, out=left_64).astype(np.uint32)
        added, spare = np.empty_like(left), np.empty_like(left)
        for turn in range(self._rounds) if forward else reversed(range(self._rounds)):
            digit, other = (left, right) if turn % 2 == 0 else (right, left)
            size = np.uint32(self._sizes[turn % 2])
            _hash(other, self._keys[turn], added, spare)
            if forward:
                digit += added
            else:  # what was added, modulo the size, is taken from a digit that is made large enough for it
                _modulo(added, size, spare)
                digit += size
                digit -= added
            _modulo(digit, size, spare)
        np.multiply(left, right_size, out=numbers, dtype=np.int64)
        numbers += right


@functools.lru_cache(maxsize=256)
def digit_sizes(count: int) -> tuple[int, int]:
    """Sizes of the left and the right digit: about equal, with the least product of at least `count` that was found."""
    root = math.isqrt(count - 1) + 1
    lefts = range(max(min(2, root), root - min(root // 4, _CANDIDATES)), root + 1)
    left = min(lefts, key=lambda size: -(-count // size) * size)
    return left, -(-count // left)


def _hash(digits: _Digits, key: np.uint32, result: _Digits, spare: _Digits) -> None:
    """28 random bits per digit, into `result`: a digit is added to them without an overflow."""
    np.add(digits, key, out=result)
    result *= _MIX_1
    np.right_shift(result, _FOLD, out=spare)
    result ^= spare
    result *= _MIX_2
    result >>= _DROP  # the low bits of a product are the least mixed


def _modulo(digits: _Digits, size: np.uint32, spare: _Digits) -> None:
    """`digits %= size`, by a division, which numpy vectorizes where it does not the remainder."""
    np.floor_divide(digits, size, out=spare)
    spare *= size
    digits -= spare
