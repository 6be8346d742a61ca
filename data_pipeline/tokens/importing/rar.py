"""Tokens as RAR's pretokenization writes them (arXiv 2411.00776): a JSON object per line.

    {"class_id": 207, "tokens": [133, 4, ...]}

With its ten crops, ten lines that follow each other are the views of one image. Without, it writes the images of a
batch and then their mirror images, so that lines that follow each other are different images: import these with one
view. The file does not name its images; the number of the first line becomes the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text import json_records

STRIDE = 1000
"""Samples between two places in the file that are remembered."""


class RARTokens:
    """The tokens of a file. It is read twice: once to count its lines, once for the tokens; never held as a whole.

    Args:
        path: the file, at any URI.
        views: lines that follow each other and are views of one image.

    Raises:
        UsageError: if the file is missing or empty, or has no whole number of images.
    """

    program = "rar"

    def __init__(self, path: str, views: int = 1) -> None:
        if views < 1:
            raise UsageError(f"--views {views}: an image has at least one")
        self.name, self.views = path, views
        lines, self._sha256, self._places = self._survey()
        if not lines:
            raise UsageError(f"{path} is empty")
        if lines % views:
            raise UsageError(f"{path} has {lines} lines, which is no multiple of --views {views}")
        self.samples = lines // views
        self.length = len(self._parse(next(self._lines(0)), 1)[1])

    def fingerprint(self) -> str:
        """sha256 of the file's bytes and of how its lines are grouped."""
        return storage.fingerprint([self.program, self._sha256, self.views])

    def where(self, sample: int) -> str:
        """File and line."""
        return f"{self.name}, line {sample * self.views + 1}"

    def read(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
        """Tokens [N, W, L], labels [N] and keys (the number of the first line, in nine digits)."""
        tokens_NWL = np.empty((stop - start, self.views, self.length), np.int64)
        label_N = np.empty(stop - start, np.int64)
        lines = self._lines(start)
        with closing(lines):
            for row in range(stop - start):
                for view in range(self.views):
                    number = (start + row) * self.views + view + 1
                    label, tokens = self._parse(next(lines), number)
                    if view and label != label_N[row]:
                        raise UsageError(
                            f"{self.name}, line {number}: class {label}, but the line before has {label_N[row]}; "
                            f"{self.views} lines that follow each other should be views of one image (--views)"
                        )
                    label_N[row] = label
                    tokens_NWL[row, view] = self._checked(tokens, number)
        keys = [f"{sample * self.views + 1:09d}" for sample in range(start, stop)]
        return tokens_NWL, label_N, keys

    def _survey(self) -> tuple[int, str, list[int]]:
        """Lines of the file, its digest, and where every STRIDE-th sample starts."""
        digest, places, lines, offset = hashlib.sha256(), [], 0, 0
        try:
            with storage.open_reader(self.name) as file:
                for line in self._whole_lines(file):
                    if lines % (STRIDE * self.views) == 0:
                        places.append(offset)
                    digest.update(line)
                    offset += len(line)
                    lines += 1
        except (FileNotFoundError, IsADirectoryError):
            raise UsageError(f"{self.name} is no file") from None
        return lines, digest.hexdigest(), places

    def _lines(self, sample: int) -> Generator[bytes, None, None]:
        """The lines from the first of a sample on."""
        with storage.open_reader(self.name) as file:
            file.seek(self._places[sample // STRIDE])
            for _ in range(sample % STRIDE * self.views):
                file.readline()
            yield from self._whole_lines(file)

    def _whole_lines(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines of a file, none of which is longer than a line may be."""
        while line := file.readline(json_records.MOST_LINE_BYTES + 1):
            if len(line) > json_records.MOST_LINE_BYTES:
                raise UsageError(f"{self.name} has a line of more than {json_records.MOST_LINE_BYTES} bytes")
            yield line

    def _parse(self, line: bytes, number: int) -> tuple[int, list[Any]]:
        try:
            record = json_records.parse(line)
            label, tokens = record["class_id"], record["tokens"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f'{self.name}, line {number}: not {{"class_id": .., "tokens": [..]}} ({error})') from error
        if type(label) is not int or not isinstance(tokens, list):
            raise UsageError(f"{self.name}, line {number}: class_id should be a whole number, tokens a list of them")
        return label, tokens

    def _checked(self, tokens: list[Any], number: int) -> npt.NDArray[np.int64]:
        where = f"{self.name}, line {number}"
        if len(tokens) != self.length:
            raise UsageError(f"{where}: {len(tokens)} tokens, the first line has {self.length}")
        if not all(type(token) is int for token in tokens):
            raise UsageError(f"{where}: tokens should be whole numbers")
        try:
            return np.array(tokens, np.int64)
        except OverflowError as error:
            raise UsageError(f"{where}: a token is out of range ({error})") from error
