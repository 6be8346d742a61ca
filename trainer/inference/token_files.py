"""Tokens of some images in a file: an .npz that numpy reads, with what made them.

    tokens        uint16 or uint32 [N, positions, folds]
    names         of the images, UTF-8 [N]
    encoder       fingerprint of what the tokens follow from (sha256, in hex)
    groups        positions that are predicted together, in their order
    vocabularies  codes of each fold
    image_size    side of the squares that were encoded, in pixels
    fit           how images became squares: crop or pad
    version       of this format

For a few images. A data set, which may be larger than memory, is what `foldtrain tokenize` writes.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.npy import parse_npy
from model.layout import TokenLayout

VERSION = 1
MOST_BYTES = 4 * 2**30
"""Of a file: 1.5 million images of 680 tokens in 16 bits."""
_MEMBERS = ("tokens", "names", "encoder", "groups", "vocabularies", "image_size", "fit", "version")
_MOST_GROUPS = 100_000


@dataclass(frozen=True)
class TokenFile:
    """Tokens and what made them."""

    tokens_NLF: npt.NDArray[Any]
    """Whole numbers."""
    names: tuple[str, ...]
    """Of the images."""
    encoder: str
    """Fingerprint of what the tokens follow from."""
    layout: TokenLayout
    image_size: int
    fit: str

    def write(self, uri: str) -> None:
        """Write the file; the same tokens give the same bytes."""
        arrays = {
            "tokens": self.tokens_NLF.astype(self.layout.dtype),
            "names": np.array([name.encode() for name in self.names], "S"),
            "encoder": np.array([self.encoder.encode()], "S"),
            "groups": np.array(self.layout.groups, np.int64),
            "vocabularies": np.array(self.layout.vocabularies, np.int64),
            "image_size": np.array([self.image_size], np.int64),
            "fit": np.array([self.fit.encode()], "S"),
            "version": np.array([VERSION], np.int64),
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        storage.write_bytes(uri, buffer.getbuffer())


def read_token_file(uri: str) -> TokenFile:
    """Read a file of tokens; nothing of it is run.

    Raises:
        UsageError: if there is none, or it is damaged or of another program; it names the file.
    """
    try:
        data = storage.read_bytes(uri, MOST_BYTES)
    except FileNotFoundError:
        raise UsageError(f"there is no file {uri}: give one that foldtrain encode has written") from None
    try:
        return _parse(_members(data))
    except (ValueError, zipfile.BadZipFile, EOFError, OverflowError, RuntimeError) as error:  # encrypted, for one
        raise UsageError(f"{uri} is no file of tokens that foldtrain encode writes ({error})") from None


def _members(data: bytes) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        wanted = {f"{name}.npy" for name in _MEMBERS}
        if entries.keys() != wanted or len(archive.infolist()) != len(wanted):
            raise ValueError(f"it holds {sorted(entries)[:10]} in place of {sorted(wanted)}")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries.values()) > len(data):
            raise ValueError("it says that it holds more bytes than it has")
        return {name: parse_npy(archive.read(f"{name}.npy")) for name in _MEMBERS}


def _parse(held: dict[str, npt.NDArray[Any]]) -> TokenFile:
    kinds = {name: array.dtype.kind for name, array in held.items()}
    if any(kinds[name] != "S" or held[name].ndim != 1 for name in ("names", "encoder", "fit")):
        raise ValueError("names, encoder and fit should be lists of byte strings")
    numbers = ("groups", "vocabularies", "image_size", "version")
    if any(kinds[name] not in "iu" or held[name].ndim != 1 for name in numbers):
        raise ValueError(f"{', '.join(numbers)} should be lists of whole numbers")
    if any(held[name].shape != (1,) for name in ("encoder", "fit", "image_size", "version")):
        raise ValueError("encoder, fit, image_size and version should have one value")
    version = int(held["version"][0])
    if version != VERSION:
        raise ValueError(f"it is of version {version}, and this foldtrain reads {VERSION}: encode the images again")
    if max(len(held["groups"]), len(held["vocabularies"])) > _MOST_GROUPS:
        raise ValueError(f"its layout has more than {_MOST_GROUPS} groups")
    layout = TokenLayout(tuple(map(int, held["groups"])), tuple(map(int, held["vocabularies"])))
    tokens, names = held["tokens"], held["names"]
    shape = (len(names), layout.positions, layout.folds)
    if kinds["tokens"] not in "iu" or tokens.shape != shape:
        raise ValueError(f"tokens of {tokens.dtype} {list(tokens.shape)} should be whole numbers of {list(shape)}")
    fit = held["fit"][0].decode()
    texts = tuple(name.decode() for name in names.tolist())
    return TokenFile(tokens, texts, held["encoder"][0].decode(), layout, int(held["image_size"][0]), fit)
