"""Names that come from storage: in manifests, indexes, tars and safetensors files that anybody may have written.

Such a name becomes a path, a tar member or a line in a terminal. So it is checked where it is parsed, by a type of its
own kind; what is not exactly such a name is refused there, and nothing behind that needs to look again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, StringConstraints

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_BYTES = 1024
"""Longest name with its folders, in UTF-8; S3 has the same limit."""
MOST_KEY_BYTES = 256
"""Longest key of a sample, in UTF-8."""
MOST_CLASS_CHARACTERS = 1024
"""Longest name of a class. It is text for people and never a path, so it may hold any characters."""

_PART = r"(?:^|/)\.{0,2}(?:/|$)"
"""A part of a path that is empty, "." or ".."; so a name has no "/" at its start or end, either."""
_CHARACTERS = r"\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\"
"""Controls (C0 but for the line feed, DEL, C1), ends of lines and paragraphs, half surrogate pairs, the backslash."""
_BAD = re.compile(rf"[{_CHARACTERS}\n]|{_PART}")
_BAD_LINE = re.compile(rf"[{_CHARACTERS}]|{_PART}", re.MULTILINE)


def check_name(name: str, most: int = MOST_BYTES) -> str:
    """A relative name, once it is known to lead to something below its folder and to hold no control characters.

    Raises:
        ValueError: if it is not such a name; it says why.
    """
    if len(name) > most or len(name.encode(errors="replace")) > most:
        raise ValueError(f"a name of more than {most} bytes: {name[:64]!r}...")
    if _BAD.search(name):
        raise ValueError(
            f"{name!r} is no name below a folder: it is absolute, or has an empty part, '.', '..', a backslash or a "
            "control character in it"
        )
    return name


def check_keys(keys: Sequence[str]) -> None:
    """Many keys at once, in one pass over their text.

    Raises:
        ValueError: if one of them is no name below a folder, or too long; it names the first.
    """
    text = "\n".join(keys)
    is_long = max(map(len, keys), default=0) > MOST_KEY_BYTES // 4  # only then can it be too long in UTF-8
    if is_long or (keys and (text.count("\n") != len(keys) - 1 or _BAD_LINE.search(text))):
        for key in keys:
            check_name(key, MOST_KEY_BYTES)


def check_key_bytes(keys: npt.NDArray[np.bytes_]) -> None:
    """As `check_keys`, for keys as numpy stores them; trailing zeros are none of theirs.

    Raises:
        ValueError: as `check_keys`.
    """
    text = b"\n".join(keys.tolist())
    is_short = keys.dtype.itemsize <= MOST_KEY_BYTES
    plain = is_short and text.count(b"\n") == len(keys) - 1 and not text.translate(None, _PLAIN)
    if not plain or any(part in b"/%b/" % text.replace(b"\n", b"/") for part in (b"//", b"/./", b"/../")):
        check_keys([key.decode() for key in keys.tolist()])


_PLAIN = bytes(code for code in range(0x20, 0x7F) if code != ord("\\")) + b"\n"
"""Bytes that no rule is about, but for the slash and the dot."""

StoredName = Annotated[str, AfterValidator(check_name)]
"""A file of a folder of ours, or of one below it."""

SHARD_DIGITS = "[0-9]{5,9}"
"""The number in the name of a shard."""

ShardName = Annotated[str, StringConstraints(pattern=rf"^(images|tokens)-{SHARD_DIGITS}\.tar$")]
"""The tar of a shard."""

CheckpointFileName = Annotated[str, StringConstraints(pattern=r"^rank_[0-9]{4,9}(-[0-9A-Za-z_-]{1,64})?\.safetensors$")]
"""A file of tensors in a checkpoint."""

TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=512)]
"""A parameter or a buffer of a network; an export makes folders of these names."""

EXTENSION = re.compile(r"[a-z0-9]{1,8}")
"""What an image's file ends in."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A digest. Copies in a node's cache have their names from it."""

ClassName = Annotated[str, StringConstraints(max_length=MOST_CLASS_CHARACTERS)]
"""A class, for people."""

MOST_COUNT = 2**50
Count = Annotated[int, Field(strict=True, ge=0, le=MOST_COUNT)]
"""Samples, bytes, elements: from 0 on, and so that products and sums of some are exact in 64 bits."""
