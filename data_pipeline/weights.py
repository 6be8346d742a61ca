"""Finished networks: safetensors beside a card that says what they are. No pickle.

<uri>/model.safetensors   the weights as trained
<uri>/ema.safetensors     their moving average, if the run kept one
<uri>/card.json           kind, config, sha256 of both, lineage, the names of the classes and the steps of training;
                          written last: its presence means complete
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

CARD_VERSION = 1


@dataclass(frozen=True)
class Card:
    """What a network is. `fingerprint` names exactly these weights with this config."""

    kind: str
    config: dict[str, Any]
    files: dict[str, str]
    lineage: dict[str, Any]
    classes: tuple[str, ...] = ()
    """Names of the classes that the data had, by label; none if it has to do with none."""
    steps: int | None = None
    """Optimizer steps that it was trained for; None if they are not known."""

    def weights(self, ema: bool) -> str:
        """Name of the file to use: the moving average if asked for and kept, else the weights as trained."""
        return "ema" if ema and "ema" in self.files else "model"

    def fingerprint(self, ema: bool = True) -> str:
        """sha256 over kind, config and the bytes of the weights."""
        return storage.fingerprint([self.kind, self.config, self.files[self.weights(ema)]])


def write_weights(
    uri: str,
    kind: str,
    config: dict[str, Any],
    files: dict[str, dict[str, Tensor]],
    lineage: dict[str, Any],
    *,
    classes: Sequence[str] = (),
    steps: int | None = None,
) -> Card:
    """Commit a network: `files` maps "model" (and "ema") to state dicts. What was there is gone before it changes."""
    from safetensors.torch import save

    digests = {}
    storage.remove_file(storage.join(uri, "card.json"))
    for name, tensors in files.items():
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in sorted(tensors.items())})
        storage.write_bytes(storage.join(uri, f"{name}.safetensors"), data)
        digests[name] = storage.sha256(data)
    card = Card(kind, config, digests, lineage, tuple(classes), steps)
    record = {"version": CARD_VERSION, "kind": kind, "config": config, "files": digests, "lineage": lineage}
    record |= {"classes": list(classes), "steps": steps}
    storage.write_json(storage.join(uri, "card.json"), record)
    return card


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
    if record.get("version") != CARD_VERSION or record.get("kind") != kind:
        raise UsageError(
            f"{path} holds a {record.get('kind')!r} of version {record.get('version')}, "
            f"but a {kind!r} of version {CARD_VERSION} is needed here"
        )
    classes, steps = record.get("classes") or [], record.get("steps")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UsageError(f"{path}: classes are no list of names: the file was edited, restore it or train again")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)):
        raise UsageError(f"{path}: steps are no whole number: the file was edited, restore it or train again")
    return Card(record["kind"], record["config"], record["files"], record["lineage"], tuple(classes), steps)


def read_weights(uri: str, kind: str, ema: bool = True) -> tuple[Card, dict[str, Tensor]]:
    """A network's card and state dict.

    Raises:
        UsageError: as `read_card`.
        CorruptShardError: if the bytes are not those that were committed.
    """
    from safetensors.torch import load

    card = read_card(uri, kind)
    name = card.weights(ema)
    path = storage.join(uri, f"{name}.safetensors")
    data = storage.read_bytes(path)
    if storage.sha256(data) != card.files[name]:
        raise CorruptShardError(f"{path} does not have the sha256 of its card.json: copy it again or train again")
    return card, dict(load(data))
