"""The pictures in a folder.

Shapes: B images, H height, W width.
"""

from __future__ import annotations

import io
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.images.transforms import Pixels, Transform
from trainer.evaluation.sets.image_set import NO_LABEL, ImageReader, Labels

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FolderSet:
    """The pictures in a folder and below it, in the order of their names; as they are, or cut to squares."""

    uri: str
    files: tuple[str, ...] = field(repr=False)
    transform: Transform | None = None
    """None for images that all have one size, which are measured as they are."""
    listed: str = ""
    """Fingerprint of the listing: names, bytes, when each was written, and what the storage calls its version."""

    @classmethod
    def of(cls, uri: str, size: int | None, fit: str = "crop", most: int | None = None) -> FolderSet:
        """All pictures, or the first `most`.

        Raises:
            UsageError: if there are none.
        """
        found = {name: entry for name, entry in storage.entries(uri).items() if name.lower().endswith(PICTURES)}
        names = tuple(sorted(found))[:most]
        if not names:
            raise UsageError(f"{uri} has no pictures ({', '.join(PICTURES)}): name a folder, an npz or image shards")
        transform = None if size is None else Transform(size, fit)
        return cls(uri, names, transform, storage.fingerprint([[name, *astuple(found[name])] for name in names]))

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.files)

    def identity(self) -> dict[str, Any]:
        """The listing of the files, and how they are cut."""
        cut = None if self.transform is None else {"size": self.transform.size, "fit": self.transform.fit}
        return {"kind": "folder", "sha256": self.listed, "count": self.count, "crop": cut}

    def open(self, device: torch.device) -> ImageReader:  # noqa: ARG002 - images of files are read anywhere
        """Nothing is read yet."""
        return _FolderReader(self)


@dataclass(frozen=True)
class _FolderReader:
    images: FolderSet

    def read(self, start: int, stop: int) -> tuple[Pixels, Labels]:
        pixels = [self._picture(name) for name in self.images.files[start:stop]]
        if len({each.shape for each in pixels}) > 1:
            raise UsageError(f"{self.images.uri} has pictures of several sizes: give --size, to which they are cut")
        return np.stack(pixels), np.full(stop - start, NO_LABEL)

    def _picture(self, name: str) -> Pixels:
        from PIL import Image

        uri, transform = storage.join(self.images.uri, name), self.images.transform
        data = storage.read_bytes(uri)
        try:
            if transform is not None:
                return transform(data)
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (OSError, ValueError) as error:
            raise CorruptShardError(f"{uri} cannot be decoded: {error}") from None
