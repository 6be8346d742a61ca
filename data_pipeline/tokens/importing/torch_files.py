"""Files of torch.save: pickles, of which nothing is run.

1. the file is a zip archive as torch writes it: stored, not compressed, and no more in it than its bytes
2. the pickle inside is read as a list of instructions, and may name what tensors are made of, plain containers, and
   `argparse.Namespace` (in which training scripts put their options); whatever else it names is refused by name
3. torch loads it with `weights_only`, and maps the tensors' bytes into memory: they are read where they are used
4. no tensor may be larger than the bytes that the file has for it
"""

from __future__ import annotations

import argparse
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

MOST_PICKLE = 16 * 2**20
"""Bytes of the pickle; that of a network with 1,000 tensors and its optimizer has 0.5 MB."""
MOST_ENTRIES = 200_000
"""Files of the archive: one for each tensor, and some."""
MOST_TIED = 2
"""How many times over tensors may name the bytes of the file: tied weights are stored once."""
MOST_OPTIONS = 10_000
"""Values of the options that a file carries along."""
_DEEPEST = 6
_NAMED = 20
_START_OF_ZIP = b"PK\x03\x04"

_CONTAINERS = {"collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex"}
_TENSORS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
}
_STORED = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset({"argparse.Namespace", *_CONTAINERS, *_TENSORS, *(f"torch.{name}Storage" for name in _STORED)})
"""What a pickle may name. All of it makes plain data of what stands in the file; none takes a size from it."""


def load_torch_file(path: Path) -> object:
    """What a file of torch.save holds; its tensors are mapped from the file, which has to stay as it is.

    Hold them against the file's size (`check_sizes`) before they are used.

    Raises:
        ValueError: if it is no such file, or wants what is not allowed; it says what.
    """
    import torch

    check_pickle(read_pickle(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return cast("object", torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # as many kinds as there are ways of not being such a file
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"torch cannot load it ({reason})") from None


def read_pickle(path: Path) -> bytes:
    """The pickle inside the archive, once the archive is found to be plain.

    Raises:
        ValueError: if the file is none of torch.save's, or may unfold to more than its bytes.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_START_OF_ZIP))
        with zipfile.ZipFile(path) as archive:
            _check_archive(start, archive, path.stat().st_size)
            found = [entry for entry in archive.infolist() if entry.filename.count("/") == 1]
            pickles = [entry for entry in found if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"it is a zip archive with {len(pickles)} files data.pkl: torch.save writes one")
            if pickles[0].file_size > MOST_PICKLE:
                raise ValueError(f"its data.pkl has more than {MOST_PICKLE:,} bytes")
            return archive.read(pickles[0])
    except FileNotFoundError:
        raise
    except (
        zipfile.BadZipFile,
        EOFError,
        UnicodeDecodeError,
        OSError,
        RuntimeError,
    ) as error:  # offsets that lead nowhere
        raise ValueError(
            f"it is no archive of torch.save ({error}); files from before torch 1.6 have to be loaded and saved anew, "
            "where you trust them"
        ) from None


def _check_archive(start: bytes, archive: zipfile.ZipFile, size: int) -> None:
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if start != _START_OF_ZIP or archive.comment:
        raise ValueError("something stands before or behind its archive")
    if len(names) != len(entries) or len(entries) > MOST_ENTRIES:
        raise ValueError(f"its archive has {len(entries)} files of {len(names)} names")
    packed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ValueError(f"{packed[:64]} is compressed, which torch.save does not")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its archive says that it holds more bytes than it has")


def check_pickle(data: bytes) -> None:
    """Whether a pickle names nothing but what is allowed. Nothing of it is run.

    Raises:
        ValueError: if it names something else; all of it is named.
    """
    refused: dict[str, None] = {}
    try:
        for name in _globals(data):
            if name not in ALLOWED and not _is_dtype(name):
                refused[name] = None
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({error})") from None
    if refused:
        first, more = list(refused)[:_NAMED], len(refused) - _NAMED
        named = ", ".join(first) + (f" and {more} more" if more > 0 else "")
        raise ValueError(
            f"its pickle wants {named}, which is no plain data, and might run as it is loaded: nothing was run. Only "
            "tensors of real numbers, plain containers and argparse.Namespace are read; where you trust the file, load "
            "it with its own program and save its state dict as safetensors"
        )


def _globals(data: bytes) -> Iterator[str]:
    """What the pickle names, by its name in Python 3."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"[:128]
        elif operation.name in {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"}:
            yield f"something by {operation.name}, which torch.save does not write"


def _is_dtype(name: str) -> bool:
    import torch

    module, _, attribute = name.partition(".")
    return module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)


def check_sizes(tensors: Mapping[str, Tensor], size: int) -> None:
    """Whether no tensor is larger than its own bytes, nor all of them than those of the file.

    Strides of zero make any shape of one number.

    Args:
        tensors: of a file, mapped from it.
        size: bytes of the file.

    Raises:
        ValueError: if one is; it names it.
    """
    total = 0
    for name, tensor in tensors.items():
        held = tensor.numel() * tensor.element_size()
        total += held
        if held > tensor.untyped_storage().nbytes() or total > MOST_TIED * size:
            raise ValueError(f"{name} of shape {list(tensor.shape)} is larger than its bytes in the file")


def options_of(record: object) -> dict[str, Any]:
    """The options that a file carries along (`args` or `config`): plain values by name; empty if there are none."""
    held = record if isinstance(record, Mapping) else {}
    found = next((held[name] for name in ("args", "config") if name in held), None)
    found = vars(found) if isinstance(found, argparse.Namespace) else found
    if not isinstance(found, Mapping):
        return {}
    left = [MOST_OPTIONS]
    plain = _plain(found, left)
    return plain if isinstance(plain, dict) else {}


def _plain(value: object, left: list[int], depth: int = 0) -> object:
    """Numbers, texts, lists and dicts of them; None for whatever else there is, or is too much."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        return None
    if isinstance(value, Mapping):
        named = ((name, inner) for name, inner in value.items() if isinstance(name, str))
        return {name: _plain(inner, left, depth + 1) for name, inner in named}
    if isinstance(value, list | tuple):
        return [_plain(inner, left, depth + 1) for inner in value[:MOST_OPTIONS]]
    return value if isinstance(value, bool | int | float | str) else None
