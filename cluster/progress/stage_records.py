"""What a run has on record of its stages. It is written once a stage has accepted what it was asked.

<run>/images/config.yaml    the resolved config that ingest was last begun with; <run>/tokens/config.yaml for tokenize
<run>/stages.json           how long each stage took

Where shards go elsewhere (`data.images`, `tokens.output`), config.yaml is beside them, too: the one in the run says
where they are. Training stages have their own (trainer/records/run_directory.py); what sampling and evaluation were
asked is in samples/samples.json and evaluation.json (cluster/stages/results.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.run import RunConfig
from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError
from data_pipeline.text import yaml_dialect
from trainer.registry import stage_in, stage_named, value_at

CONFIG = "config.yaml"
START = "start"
"""In place of a stage: starting a command that runs several."""


def record_config(config: RunConfig, folder: str) -> None:
    """Put on record that a stage has accepted a config, and is about to make shards."""
    own = storage.absolute(storage.join(config.run, folder))
    _write_config(config, dict.fromkeys((storage.absolute(config.folder(folder)), own)))


def _write_config(config: RunConfig, folders: Iterable[str]) -> None:
    from cluster.config.loading import resolved_yaml

    text = resolved_yaml(with_absolute_paths(config)).encode()
    for uri in folders:
        storage.write_bytes(storage.join(uri, CONFIG), text)


def record_place(config: RunConfig, folder: str) -> None:
    """Put on record where the finished shards of a run are, if they are elsewhere and the run does not say so yet."""
    if storage.absolute(config.folder(folder)) == storage.absolute(storage.join(config.run, folder)):
        return
    if not storage.exists(storage.join(config.run, folder, CONFIG)):
        _write_config(config, [storage.join(config.run, folder)])


def recorded_folder(run: str, folder: str) -> str:
    """Where the shards of a run are, as its stage has recorded it; in the run, if there is no record that says so."""
    inside = storage.join(run, folder)
    try:
        record: Any = yaml_dialect.parse(storage.read_bytes(storage.join(inside, CONFIG), yaml_dialect.MOST_BYTES))
        given = value_at(record, stage_in(folder).place)
    except (FileNotFoundError, NotADirectoryError, CorruptShardError, yaml.YAMLError, KeyError, TypeError):
        return inside
    return given if isinstance(given, str) and given else inside


def record_time(run: str, stage: str, seconds: float, items: int) -> None:
    """Add to the time of a stage that did something; of samples and evaluations the last call counts.

    Args:
        run: URI of the run.
        stage: its command, or `START`.
        seconds: wall-clock time of this call.
        items: what it worked through: images of this call; of training, samples so far.
    """
    uri = storage.join(run, "stages.json")
    try:
        entries = storage.read_json(uri)
    except FileNotFoundError:
        entries = []
    if not isinstance(entries, list):
        raise FoldtrainError(f"{uri} is no list of stages: it was edited; delete it")
    known = next((entry for entry in entries if isinstance(entry, dict) and entry.get("stage") == stage), None)
    if known is None:
        unit = "commands" if stage == START else stage_named(stage).unit
        known = {"stage": stage, "seconds": 0.0, "items": 0, "unit": unit}
        entries.append(known)
    adds_up = stage == START or stage_named(stage).adds_up
    replaced = not adds_up and stage_named(stage).product == "results"
    known["seconds"] = seconds if replaced else known["seconds"] + seconds
    known["items"] = known["items"] + items if adds_up else items
    storage.write_json(uri, entries)
