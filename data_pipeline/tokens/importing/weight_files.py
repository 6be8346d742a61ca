"""Files of published weights, at any URI: found, hashed, and mapped into memory in the format that they have.

What lies in object storage is copied to $TMPDIR first, where it stays while its tensors are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.safetensors_header import check_safetensors
from data_pipeline.storage.local_disk import disk_errors
from data_pipeline.text import yaml_dialect
from data_pipeline.tokens.importing import torch_files

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""What files of weights end in. The content tells the format."""
USUAL = ("model.safetensors", "pytorch_model.bin")
"""What a hub folder calls its weights."""
OPTIONS = "config.json"
"""Beside the weights: the published options."""
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that is mapped into memory."""

    uri: str
    sha256: str
    """Of all its bytes."""
    size: int
    """In bytes."""
    record: object
    """What it holds: a dict of tensors, or of other things (model/published/containers.py)."""
    options: dict[str, Any]
    """Published options that it carries along; empty for most files."""


def find_weights(uri: str) -> str:
    """The file of weights that a URI means: itself, or the one in the folder that it is.

    Raises:
        UsageError: if there is no file, no folder, or a folder with none or several such files.
    """
    uri = uri.rstrip("/") or "/"
    names = storage.list_names(uri)
    if not names:
        return uri
    held = [name for name in names if name.endswith(ENDINGS)]
    usual = [name for name in USUAL if name in held] or held
    if any(name.endswith(".index.json") for name in names) and not set(USUAL) & set(held):
        raise UsageError(f"{uri} holds weights in several parts (…index.json): join them to one file and give that")
    if not usual:
        raise UsageError(f"{uri} holds no file of weights ({', '.join(ENDINGS)}): name the file")
    if len(usual) > 1 and usual[0] not in USUAL:
        raise UsageError(f"{uri} holds several files of weights ({', '.join(usual[:8])}): name the one to import")
    return storage.join(uri, usual[0])


@contextlib.contextmanager
def open_weights(uri: str) -> Iterator[WeightFile]:
    """A file of weights, mapped into memory: its bytes are read where they are used, and no second time.

    Args:
        uri: of the file.

    Raises:
        UsageError: if there is none, or it is in no format that is read; it names the file and says why.
    """
    with contextlib.ExitStack() as places:
        try:
            path, digest = _local(uri, places)
            record = _load(path)
        except FileNotFoundError:
            raise UsageError(f"there is no file {uri}: give a file of published weights, or its folder") from None
        except ValueError as error:
            raise UsageError(f"{uri} cannot be read as weights: {error}") from None
        yield WeightFile(uri, digest, path.stat().st_size, record, torch_files.options_of(record))


def _local(uri: str, places: contextlib.ExitStack) -> tuple[Path, str]:
    """The file on this machine, and its sha256; it is copied here if it lies elsewhere."""
    digest = hashlib.sha256()
    with storage.open_reader(uri) as source:
        if not storage.is_remote(uri):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
            return storage.local_path(uri), digest.hexdigest()
        folder = Path(tempfile.gettempdir())
        with disk_errors(folder):
            copy = Path(places.enter_context(tempfile.TemporaryDirectory(prefix="weights-"))) / "weights"
            with copy.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
        return copy, digest.hexdigest()


def _load(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(16)
    if start[:2] == b"PK":
        if path.name.endswith(".safetensors"):  # torch goes by the name
            raise ValueError("it is a file of torch.save that is named as a safetensors file: name it .pt")
        return torch_files.load_torch_file(path)
    if start[8:9] == b"{":
        return _load_safetensors(path)
    if start[:1] == b"\x80" or not start:
        raise ValueError(
            "it is a bare pickle, or empty: files from before torch 1.6, of numpy or of other programs are not read"
        )
    raise ValueError("it is neither a safetensors file nor one of torch.save")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        check_safetensors(data)
    try:
        with safe_open(path, framework="pt") as found:
            return {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file ({error})") from None


def read_options(uri: str) -> dict[str, Any]:
    """Published options: a JSON file, or a YAML file as training scripts have it.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if it holds no options; it names the file.
    """
    import yaml

    if not uri.endswith((".yaml", ".yml")):
        options = storage.read_json(uri)
    else:
        text = storage.read_bytes(uri, yaml_dialect.MOST_BYTES)
        try:
            options = yaml_dialect.parse(text)
        except (ValueError, yaml.YAMLError) as error:
            raise UsageError(f"{uri} is no YAML of options ({str(error).splitlines()[0]})") from None
    if not isinstance(options, dict):
        raise UsageError(f"{uri} holds no options, but {type(options).__name__}")
    return options
