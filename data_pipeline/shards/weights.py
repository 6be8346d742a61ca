"""Finished networks: safetensors beside a card that says what they are. No pickle.

<uri>/model.safetensors   the weights as trained
<uri>/ema.safetensors     their moving average, if the run kept one
<uri>/card.json           version, kind, config, sha256 of both, lineage, names of the classes, steps of training, and
                          a tokenizer's halves (halves.py); written last: its presence means complete
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.halves import DECODE, ENCODE, Halves, Names, half_fingerprints, settings_of
from data_pipeline.shards.manifest import first_problem
from data_pipeline.shards.measured import Measured
from data_pipeline.shards.safetensors_header import check_safetensors
from data_pipeline.shards.safetensors_writer import stream_safetensors
from data_pipeline.shards.versions import check_version
from data_pipeline.text.names import ClassName, Count, Sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

Config = TypeVar("Config", bound=BaseModel)
Network = TypeVar("Network", bound="nn.Module")

CARD_VERSION = 2


@dataclass(frozen=True)
class Card:
    """What a network is. `fingerprint` names exactly these weights with this config."""

    kind: str
    config: dict[str, Any]
    files: dict[str, str]
    lineage: dict[str, Any]
    classes: tuple[str, ...] = ()
    """Names of the classes of the data that it was trained on, by label; none if they are not known."""
    steps: int | None = None
    """Optimizer steps that it was trained for; None if they are not known."""
    halves: Halves | None = None
    """What encodes and what decodes; None if it is no tokenizer, or tells none apart."""
    measured: Measured | None = None
    """How good a tokenizer is on held-out images; None if it was not measured."""

    def weights(self, ema: bool) -> str:
        """Name of the file to use: the moving average if asked for and kept, else the weights as trained."""
        return "ema" if ema and "ema" in self.files else "model"

    def fingerprint(self, ema: bool = True) -> str:
        """sha256 over kind, config and the bytes of the weights."""
        return storage.fingerprint([self.kind, self.config, self.files[self.weights(ema)]])

    def encoder(self, ema: bool = True) -> str:
        """Fingerprint of what its tokens follow from; of all of it, if it tells no halves apart."""
        return self.fingerprint(ema) if self.halves is None else self.halves.fingerprints[self.weights(ema)][ENCODE]

    def decoder(self, ema: bool = True) -> str:
        """Fingerprint of what images follow from, given tokens; of all of it, if it tells no halves apart."""
        return self.fingerprint(ema) if self.halves is None else self.halves.fingerprints[self.weights(ema)][DECODE]

    def encoder_config(self) -> dict[str, Any]:
        """The settings that its tokens follow from; all of them, if it tells no halves apart."""
        return self.config if self.halves is None else settings_of(self.config, self.halves.names, ENCODE)


def write_weights(
    uri: str,
    kind: str,
    config: dict[str, Any],
    files: dict[str, dict[str, Tensor]],
    lineage: dict[str, Any],
    *,
    classes: Sequence[str] = (),
    steps: int | None = None,
    halves: Names | None = None,
    measured: Measured | None = None,
) -> Card:
    """Commit a network. What was there is gone before it changes.

    Args:
        uri: folder.
        kind: what it is: the name of its stage's folder.
        config: rebuilds it.
        files: maps "model" (and "ema") to state dicts.
        lineage: fingerprints of what it was made from.
        classes: names of the classes of its data, by label.
        steps: of its training.
        halves: which of its parameters encode and which decode (`halves_of`); None tells none apart.
        measured: how good it is.

    Raises:
        ValueError: if a parameter is in no half.
    """
    of_halves = None
    if halves is not None:
        of_halves = Halves(halves, {name: half_fingerprints(config, found, halves) for name, found in files.items()})
    digests = {}
    storage.remove_file(storage.join(uri, "card.json"))
    for name, tensors in files.items():
        digests[name] = stream_safetensors(storage.join(uri, f"{name}.safetensors"), tensors)
    card = Card(kind, config, digests, lineage, tuple(classes), steps, of_halves, measured)
    record = {"version": CARD_VERSION, "kind": kind, "config": config, "files": digests, "lineage": lineage}
    record |= {"classes": list(classes), "steps": steps}
    if of_halves is not None:
        record["halves"] = {"names": of_halves.names, "fingerprints": of_halves.fingerprints}
    if measured is not None:
        record["measured"] = measured.model_dump(mode="json")
    storage.write_json(storage.join(uri, "card.json"), record)
    return card


_Names = Annotated[tuple[Annotated[str, StringConstraints(max_length=512)], ...], Field(max_length=64)]
"""Few, since each is held against every parameter and every setting."""


class _Halves(BaseModel):
    """The JSON of `Halves`."""

    model_config = ConfigDict(extra="forbid")

    names: dict[Literal["encode", "decode", "neither"], _Names]
    fingerprints: dict[Literal["model", "ema"], dict[Literal["encode", "decode"], Sha256]]

    @field_validator("fingerprints")
    @classmethod
    def _check_fingerprints(cls, fingerprints: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        if any(len(found) != 2 for found in fingerprints.values()):
            raise ValueError("each file has a fingerprint of what encodes, and one of what decodes")
        return fingerprints


class _Record(BaseModel):
    """The JSON of a card."""

    model_config = ConfigDict(extra="forbid")

    version: int
    kind: str
    config: dict[str, Any]
    files: dict[Literal["model", "ema"], Sha256]
    lineage: dict[str, Any]
    classes: list[ClassName]
    steps: Count | None
    halves: _Halves | None = None
    measured: Measured | None = None

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, str]) -> dict[str, str]:
        if "model" not in files:
            raise ValueError("there is no model")
        return files

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        if self.halves is not None and self.halves.fingerprints.keys() != self.files.keys():
            raise ValueError("its halves are of other files than it names")
        return self


def read_card(uri: str, kind: str) -> Card:
    """What the network at `uri` is, without its weights and without torch.

    Raises:
        UsageError: if there is none, it is not finished, or it is of another kind.
    """
    path = storage.join(uri, "card.json")
    try:
        record = storage.read_json(path)
    except FileNotFoundError:
        raise UsageError(f"no finished {kind} at {uri} (card.json is missing): run train-{kind} first") from None
    found = record.get("kind") if isinstance(record, dict) else None
    if found != kind:
        held = repr(found[:64]) if isinstance(found, str) else "nothing"
        raise UsageError(f"{path} holds a {held}, but a {kind!r} is needed here")
    remedy = f"train it anew in another run (foldtrain train-{kind}), or use the foldtrain that wrote it"
    check_version(path, f"the card of a {kind}", record.get("version"), CARD_VERSION, remedy)
    try:
        card = _Record.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"{path} is no card ({first_problem(error)}): restore it or train again") from None
    files: dict[str, str] = {str(name): digest for name, digest in card.files.items()}
    halves = None
    if card.halves is not None:
        made = card.halves.model_dump()
        halves = Halves(made["names"], made["fingerprints"])
    return Card(card.kind, card.config, files, card.lineage, tuple(card.classes), card.steps, halves, card.measured)


def read_config(uri: str, card: Card, model: type[Config] | TypeAdapter[Config]) -> Config:
    """A network's config from its card, as the type that it is.

    Args:
        uri: of the network, for the error.
        card: of it.
        model: the type.

    Raises:
        UsageError: if it is none; it names the card and the field.
    """
    try:
        adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
        return adapter.validate_python(card.config)
    except ValidationError as error:
        where = storage.join(uri, "card.json")
        raise UsageError(
            f"{where} has a config that cannot be ({first_problem(error)}): restore it or train again"
        ) from None


def read_weights(uri: str, kind: str, ema: bool = True) -> tuple[Card, dict[str, Tensor]]:
    """A network's card and state dict.

    Raises:
        UsageError: as `read_card`.
        CorruptShardError: if the bytes are not those that were committed, or no weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card = read_card(uri, kind)
    name = card.weights(ema)
    path = storage.join(uri, f"{name}.safetensors")
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing: copy it again or train again") from None
    if storage.sha256(data) != card.files[name]:
        raise CorruptShardError(f"{path} does not have the sha256 of its card.json: copy it again or train again")
    try:
        check_safetensors(data)
        state = dict(load(data))
    except (ValueError, SafetensorError) as error:
        raise CorruptShardError(f"{path} is no safetensors file ({error}): copy it again or train again") from None
    _check_halves(path, card, name, state)
    return card, state


def _check_halves(path: str, card: Card, name: str, state: dict[str, Tensor]) -> None:
    """The halves are those that the card states."""
    if card.halves is None:
        return
    try:
        found = half_fingerprints(card.config, state, card.halves.names)
    except ValueError as error:
        raise CorruptShardError(f"{path}: {error}: restore its card.json or train again") from None
    wrong = [half for half, fingerprint in found.items() if fingerprint != card.halves.fingerprints[name][half]]
    if wrong:
        raise CorruptShardError(
            f"{path}: what {' and '.join(f'{half}s' for half in wrong)} is not what its card.json states: restore both "
            "or train again"
        )


def restore(uri: str, state: dict[str, Tensor], make: Callable[[], Network]) -> Network:
    """A network with its weights. It is made without memory first, so that a config beyond its weights costs nothing.

    Args:
        uri: of the network, for the error.
        state: its weights.
        make: makes it from its config.

    Raises:
        CorruptShardError: if the weights are not those of such a network; it names the first that differs.
    """
    import torch

    card = storage.join(uri, "card.json")
    try:
        with torch.device("meta"):
            needed = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except (ValueError, RuntimeError, AssertionError) as error:
        raise CorruptShardError(f"{card} describes no network ({error}): restore it or train again") from error
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differs = sorted(name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name))
    if differs:
        name = differs[0]
        raise CorruptShardError(
            f"{card} and the weights beside it are of different networks: {name} is {found.get(name, 'missing')}, the "
            f"config needs {needed.get(name, 'none')} (and {len(differs) - 1} more): restore them or train again"
        )
    network = make()
    network.load_state_dict(state)
    return network
