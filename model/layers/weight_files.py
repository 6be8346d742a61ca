"""Weights of other people's networks, from a file on a local path: read without pickle's code, checked before use."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor, nn

_CHUNK = 2**20
_LEFT_OUT: ContextVar[bool] = ContextVar("weights are left out", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within this, networks of published weights are made without them, and no file is read: for plans."""
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def are_left_out() -> bool:
    """Whether it is within `without_weights`."""
    return _LEFT_OUT.get()


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody else publishes, under their licence."""

    name: str
    """What it is called there."""
    source: str
    """Where to get it."""
    sha256: str = ""
    """What its sha256 begins with; empty if that is not published."""
    md5: str = ""
    """Its md5, where that is what is published."""


def read_published(file: str | None, published: PublishedFile, what: str, *, verify: bool) -> dict[str, Tensor]:
    """The tensors of a published file.

    Args:
        file: a local path or a file: URI.
        published: which one is wanted.
        what: for whom and in which setting, for messages.
        verify: refuse another file by its hash.

    Raises:
        ValueError: if no file is named, or it is not there, or not what it should be; it says which to get, and where.
    """
    wanted = f"{what} wants {published.name}, from {published.source}"
    if are_left_out():
        return {}
    if file is None:
        raise ValueError(f"{wanted}: name it; nothing is fetched")
    path = local_path(file, what)
    if verify:
        _check_hash(path, published, wanted)
    return read_tensors(path, wanted)


def local_path(file: str, what: str) -> Path:
    """The path of a path or file: URI.

    Raises:
        ValueError: if it is a URI of something else.
    """
    scheme, host, path, *_ = urlsplit(file)
    if scheme == "file" and host in ("", "localhost"):
        return Path(unquote(path))
    if "://" in file:
        raise ValueError(f"{what}: {file} is no local path or file: URI; copy it to where every worker reads it")
    return Path(file)


def read_tensors(path: Path, wanted: str) -> dict[str, Tensor]:
    """A state dict from safetensors or torch's format, of tensors alone.

    Raises:
        ValueError: if it is not there, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{wanted}: {path} cannot be read: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, ValueError, KeyError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{wanted}: {path} is no file of weights: {said[:200]}") from None
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise ValueError(f"{wanted}: {path} holds something else than tensors by name")
    return dict(found)


def fill(
    network: nn.Module, state: Mapping[str, Tensor], wanted: str, name_of: Callable[[str], str] = lambda name: name
) -> None:
    """Put every parameter and persistent buffer of a network in its place, and leave nothing over.

    Args:
        network: what is filled.
        state: from `read_tensors`, of things that are not used rid already.
        wanted: what it is, for messages.
        name_of: from the network's own names to those of the file.

    Raises:
        ValueError: names what is missing, left over or of another shape.
    """
    if are_left_out():
        return
    own = network.state_dict()
    names = {name: name_of(name) for name in own}
    missing = sorted(set(names.values()) - state.keys())
    over = sorted(state.keys() - set(names.values()))
    shapes = [
        f"{theirs} {list(state[theirs].shape)} for {list(own[name].shape)}"
        for name, theirs in names.items()
        if theirs in state and state[theirs].shape != own[name].shape
    ]
    for problem, found in (("it has no", missing), ("it has, too,", over), ("shapes differ:", shapes)):
        if found:
            raise ValueError(f"{wanted}: this is another file: {problem} {', '.join(found[:4])} ({len(found)} in all)")
    network.load_state_dict({name: state[theirs] for name, theirs in names.items()})


def _check_hash(path: Path, published: PublishedFile, wanted: str) -> None:
    for kind, expected in (("sha256", published.sha256), ("md5", published.md5)):
        if not expected:
            continue
        digest = hashlib.new(kind, usedforsecurity=False)
        try:
            with path.open("rb") as stream:
                while part := stream.read(_CHUNK):
                    digest.update(part)
        except OSError as error:
            raise ValueError(f"{wanted}: {path} cannot be read: {error.strerror or error}") from None
        if not digest.hexdigest().startswith(expected):
            raise ValueError(
                f"{wanted}: {path} is another file: its {kind} is {digest.hexdigest()}, and should begin with "
                f"{expected}; get it again, or set verify: false if you know that it is the same network"
            )
