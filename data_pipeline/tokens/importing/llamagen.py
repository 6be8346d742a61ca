"""Codes as LlamaGen's extract_codes_c2i writes them (arXiv 2406.06525): two .npy files for each image.

    <folder>/<dataset><size>_codes/<i>.npy     int64 [1, views, height * width]
    <folder>/<dataset><size>_labels/<i>.npy    int64 [1]

i counts the images in the order of their folder tree. Where the number of images is no multiple of the processes that
wrote the files, the sampler padded it: the files from the number of images on repeat the first images.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.npy import parse_npy

MOST_BYTES = 64 * 2**20
"""Bytes of a file: the codes of one image."""
THREADS = 16
"""Files that are read at a time."""


class LlamaGenCodes:
    """The codes of a folder.

    Args:
        folder: at any URI; it holds the two folders, as the script names them.
        codes: the folder of codes, if it is elsewhere; then `labels` is needed, too.
        labels: the folder of labels.
        samples: take files 0 to `samples` - 1 alone, which leaves the sampler's repetitions out.

    Raises:
        UsageError: if a folder or a file is missing, or is not what it should be.
    """

    program = "llamagen"

    def __init__(
        self, folder: str, codes: str | None = None, labels: str | None = None, samples: int | None = None
    ) -> None:
        self.name = folder
        self._codes, self._labels = _folders(folder, codes, labels)
        code_sizes, label_sizes = storage.walk(self._codes), storage.walk(self._labels)
        self.samples = _count(self._codes, code_sizes) if samples is None else samples
        if self.samples < 1:
            raise UsageError(f"--samples {samples}: take at least 1")
        for sizes, where in ((code_sizes, self._codes), (label_sizes, self._labels)):
            absent = next((i for i in range(self.samples) if f"{i}.npy" not in sizes), None)
            if absent is not None:
                raise UsageError(
                    f"{storage.join(where, f'{absent}.npy')} is missing ({self.samples} images are wanted)"
                )
        names = [f"{i}.npy" for i in range(self.samples)]
        self._listing = [[name, code_sizes[name], label_sizes[name]] for name in names]
        self.views, self.length = self._read_codes(0).shape

    def fingerprint(self) -> str:
        """sha256 of names and sizes of all files."""
        return storage.fingerprint([self.program, self._listing])

    def where(self, sample: int) -> str:
        """The file of codes."""
        return storage.join(self._codes, f"{sample}.npy")

    def read(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
        """Tokens [N, W, L], labels [N] and keys (the number of the image, in eight digits)."""
        numbers = range(start, stop)
        with ThreadPoolExecutor(THREADS, "import") as pool:
            tokens = list(pool.map(self._checked_codes, numbers))
            labels = list(pool.map(self._read_label, numbers))
        return np.stack(tokens), np.array(labels, np.int64), [f"{number:08d}" for number in numbers]

    def _checked_codes(self, sample: int) -> npt.NDArray[np.int64]:
        codes_WL = self._read_codes(sample)
        if codes_WL.shape != (self.views, self.length):
            raise UsageError(
                f"{self.where(sample)} has codes of shape {list(codes_WL.shape)}, the first has "
                f"{[self.views, self.length]}: all images need as many views and tokens"
            )
        return codes_WL

    def _read_codes(self, sample: int) -> npt.NDArray[np.int64]:
        array = _load(self.where(sample))
        if array.ndim != 3 or len(array) != 1 or not array.size:
            raise UsageError(f"{self.where(sample)} has shape {list(array.shape)}, not [1, views, tokens]")
        codes_WL: npt.NDArray[np.int64] = array[0]
        return codes_WL

    def _read_label(self, sample: int) -> int:
        path = storage.join(self._labels, f"{sample}.npy")
        array = _load(path)
        if array.size != 1:
            raise UsageError(f"{path} has shape {list(array.shape)}, not [1]: it should be one label")
        return int(array.reshape(()))


def _folders(folder: str, codes: str | None, labels: str | None) -> tuple[str, str]:
    if codes or labels:
        if not (codes and labels):
            raise UsageError("give both --codes and --labels, or neither")
        return codes, labels
    names = storage.list_names(folder)
    stems = [name.removesuffix("_codes") for name in names if name.endswith("_codes")]
    if len(stems) != 1:
        found = ", ".join(f"{stem}_codes" for stem in stems) or "none"
        raise UsageError(f"{folder} should hold one folder <dataset><size>_codes ({found}): give --codes and --labels")
    if f"{stems[0]}_labels" not in names:
        raise UsageError(f"{folder} holds {stems[0]}_codes, but no {stems[0]}_labels: give --codes and --labels")
    return storage.join(folder, f"{stems[0]}_codes"), storage.join(folder, f"{stems[0]}_labels")


def _count(folder: str, sizes: dict[str, int]) -> int:
    numbers = [int(found[1]) for name in sizes if (found := re.fullmatch(r"(\d+)\.npy", name))]
    if not numbers:
        raise UsageError(f"{folder} holds no files <number>.npy")
    return max(numbers) + 1


def _load(path: str) -> npt.NDArray[np.int64]:
    """An .npy file of whole numbers.

    Raises:
        UsageError: if it is none; it names the file.
    """
    try:
        array = parse_npy(storage.read_bytes(path, MOST_BYTES))
    except ValueError as error:
        raise UsageError(f"{path} is no .npy file of numbers ({error})") from error
    if array.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {array.dtype}, not whole numbers")
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:  # int64 would make it negative
        raise UsageError(f"{path} holds the number {int(array.max())}, which has more than 63 bits")
    return array.astype(np.int64)
