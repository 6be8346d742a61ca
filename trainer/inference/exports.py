"""Where the export is that a URI means, and on which device it is to run."""

from __future__ import annotations

import torch
import yaml

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text import yaml_dialect

_EXPORT = "export"


def find_export(uri: str, stage: str) -> str:
    """The folder with the card of a finished network: `uri` itself, its export, or that of a stage of the run.

    Args:
        uri: of an export, of a stage's folder, or of a run.
        stage: tokenizer or generator.

    Raises:
        UsageError: if none of them has one.
    """
    uri = uri.rstrip("/")
    places = [uri, storage.join(uri, _EXPORT), storage.join(uri, stage, _EXPORT)]
    for place in places:
        if storage.exists(storage.join(place, "card.json")):
            return place
    raise UsageError(
        f"no finished {stage} at {uri}: there is no card.json in it, in {_EXPORT} or in {stage}/{_EXPORT}. Give a run, "
        f"or the folder of its {stage}, once train-{stage} has finished"
    )


def find_tokenizer(generator: str) -> str:
    """The tokenizer on whose tokens a generator was trained: of the same run, or the one that this run was given.

    Args:
        generator: the folder with its card.

    Raises:
        UsageError: if the run has none, or the generator lies in no run.
    """
    folder, _, name = generator.rpartition("/")
    run, _, _ = folder.rpartition("/")
    places = [storage.join(run, "tokenizer", _EXPORT), *_given_tokenizer(folder)] if name == _EXPORT and run else []
    for place in places:
        if storage.exists(storage.join(place, "card.json")):
            return place
    raise UsageError(f"there is no tokenizer beside {generator}: give tokenizer= the one that made its tokens")


def _given_tokenizer(folder: str) -> list[str]:
    """What the config of a stage names as `inputs.tokenizer`, if it has one: the place that the stage has found."""
    try:
        text = storage.read_bytes(storage.join(folder, "config.yaml"), yaml_dialect.MOST_BYTES)
    except FileNotFoundError:
        return []
    try:
        config = yaml_dialect.parse(text)
    except (ValueError, yaml.YAMLError):  # then the stage's folder says nothing of it
        return []
    inputs = config.get("inputs") if isinstance(config, dict) else None
    given = inputs.get("tokenizer") if isinstance(inputs, dict) else None
    return [given] if isinstance(given, str) else []


def find_device(name: str) -> torch.device:
    """A device of this machine.

    Raises:
        ValueError: if torch knows none of this name, or this machine has it not.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used on this machine ({reason}): give cpu, or cuda") from None
    return device
