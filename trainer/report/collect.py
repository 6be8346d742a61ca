"""From a run's folder to the data of its report. Only evaluation.json must be there; the rest is shown if it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import first_problem
from data_pipeline.text import yaml_dialect
from trainer.evaluation.naming.numbers import Number
from trainer.records.jsonl import read_records
from trainer.records.reading_columns import read_columns
from trainer.records.record_shapes import is_event
from trainer.records.trackers.pictures import FOLDER, picture_step
from trainer.registry import STAGES, TRAINING, RunStage
from trainer.report.belonging import notes
from trainer.report.data import (
    Baselines,
    Evaluation,
    Frame,
    Memorization,
    Record,
    ReportData,
    Samples,
    Shared,
    StageConfig,
    StageRecords,
    StageTime,
    in_order_of_steps,
    is_shown,
)
from trainer.report.generator import pictured_steps
from trainer.report.held_out import looks
from trainer.report.sweeps import read_sweeps

Checked = TypeVar("Checked", Evaluation, StageTime, Baselines, Shared, Memorization)
PICTURES = ("reconstructions", "samples")
"""Names of the film strips' frames (trainer/stages/validation.py, generator_validation.py)."""
MOST_FRAMES, MOST_FRAME_BYTES = 16, 16 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


def collect(run_uri: str) -> ReportData:
    """Read what the stages of a run have left in its folder, at any URI.

    Raises:
        UsageError: if the run was not evaluated, or one of its files was cut or edited; it names the file.
    """
    evaluation = read_evaluation(storage.join(run_uri, "evaluation.json"))
    records = tuple(_stage_records(run_uri, stage.folder) for stage in TRAINING)
    samples = read_samples(run_uri)
    return ReportData(
        run=run_uri,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        evaluation=evaluation,
        stages=stage_times(storage.join(run_uri, "stages.json")),
        records=records,
        configs=tuple(_stage_configs(run_uri, records)),
        film=tuple(frame for each in records for frame in _film(run_uri, each)),
        reconstructions_png=_picture(run_uri, "samples/reconstructions.png", evaluation.files),
        nearest_png=_picture(run_uri, "samples/nearest.png", evaluation.files),
        samples=samples,
        notes=tuple(notes(run_uri, evaluation, samples, records)),
        sweeps=read_sweeps(run_uri),
    )


def _checked(kind: type[Checked], **fields: Any) -> Checked:
    """A part of the report whose fields are of their types; null and text where a number belongs are a ValueError."""
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def read_evaluation(uri: str) -> Evaluation:
    """What evaluation.json says.

    Raises:
        UsageError: if there is none, or it is not what `evaluate` writes.
    """
    try:
        record = storage.read_json(uri)
    except FileNotFoundError:
        raise UsageError(f"{uri} is missing: run `foldtrain evaluate` before the report") from None
    try:
        reconstruction, generation = record["reconstruction"], record["generation"]
        return _checked(
            Evaluation,
            prefixes=tuple(reconstruction["prefixes"]),
            mse_of_prefixes=tuple(reconstruction["mse_of_prefixes"]),
            psnr_of_prefixes=tuple(reconstruction.get("psnr_of_prefixes", ())),
            ssim_of_prefixes=tuple(reconstruction.get("ssim_of_prefixes", ())),
            **_beside_errors(record),
            reconstruction_distance=reconstruction["frechet_distance"],
            generation_distance=generation["frechet_distance"],
            samples=generation["samples"],
            class_accuracy=generation.get("class_accuracy"),
            class_accuracy_per_class=tuple(generation.get("class_accuracy_per_class") or ()),
            judge_accuracy_on_real=generation.get("judge_accuracy_on_real"),
            codebook_use=tuple(tuple(branch) for branch in record["codebook_use"]),
            class_names=tuple(str(name) for name in record["class_names"]),
            fingerprints=record.get("fingerprints", {}),
            sampling=record.get("sampling", {}),
            groups=tuple(record.get("tokenizer", {}).get("groups", ())),
            fold_names=tuple(str(name) for name in record.get("tokenizer", {}).get("fold_names", ())),
            vocabularies=tuple(record.get("tokenizer", {}).get("vocabularies", ())),
            real_images=(record.get("real_images") or {}).get("samples"),
            held_out=bool((record.get("real_images") or {}).get("held_out", True)),
            files=dict(record.get("files", {})),
            inputs=dict(record.get("inputs", {})),
            numbers=tuple(map(Number.from_json, record.get("numbers", ()))),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{uri} is not what `foldtrain evaluate` writes ({error!r}): evaluate again") from error


def _beside_errors(record: Record) -> dict[str, Any]:
    """What an evaluation has of the tokenizer's bits, codes and branches; of earlier versions nothing."""
    tokens, baselines, probe = ((record.get(name) or {}) for name in ("tokens", "baselines", "probe"))
    found: dict[str, Any] = {"perplexity_of_positions": tokens.get("perplexity_of_positions", ())}
    names = ("folds", "plain", "shuffled", "entropy")
    found["mutual_information"] = [
        _checked(Shared, **{name: each[name] for name in names}) for each in tokens.get("mutual_information", ())
    ]
    if baselines:
        components = baselines["components"]
        bits, mse = ([each[name] for each in components] for name in ("bits", "mse"))
        kept = {"mean_image": baselines["mean_image"], "square": baselines["square"]}
        found["baselines"] = _checked(Baselines, bits=bits, mse=mse, **kept)
    if near := record.get("memorization"):
        found["memorization"] = _checked(Memorization, **{each.name: near[each.name] for each in fields(Memorization)})
    if probe:
        found["probe"] = dict(probe["branches"]) | {"raw pixels": probe["pixels"]}
    return found


def _film(run_uri: str, records: StageRecords) -> Iterator[Frame]:
    """Frames of looks that are on record: of many, some at even distances, the first and the last among them."""
    folder = storage.join(run_uri, records.stage, FOLDER)
    steps = {event["step"] for event in looks(records)} | pictured_steps(records)
    if not steps:
        return
    names = [(picture_step(name, picture), name) for name in storage.list_names(folder) for picture in PICTURES]
    named = {step: name for step, name in names if step is not None}
    found = sorted(step for step in named if step in steps)
    chosen = {round(place) for place in np.linspace(0, len(found) - 1, min(MOST_FRAMES, len(found)))} if found else ()
    for place in sorted(chosen):
        png = storage.read_bytes(storage.join(folder, named[found[place]]), MOST_FRAME_BYTES)
        if png.startswith(_PNG):
            yield Frame(found[place], png, records.stage)


def read_samples(run_uri: str) -> Samples | None:
    """The grid of samples with its record; None if either is not there, or they do not belong to each other.

    Raises:
        UsageError: if the record is not what `sample` writes.
    """
    uri = storage.join(run_uri, "samples", "samples.json")
    try:
        record = storage.read_json(uri)
    except FileNotFoundError:
        return None
    try:
        files, sampling, made_by = (dict(record[key]) for key in ("files", "sampling", "fingerprints"))
        names = tuple(str(name) for name in record.get("class_names", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{uri} is not what `foldtrain sample` writes ({error!r}): sample again") from error
    png = _picture(run_uri, "samples/grid.png", files)
    return None if png is None else Samples(png, sampling, made_by, names)


def _stage_records(run_uri: str, stage: str) -> StageRecords:
    metrics = read_columns(storage.join(run_uri, stage, "metrics.jsonl"), is_shown)
    events = read_records(storage.join(run_uri, stage, "events.jsonl"), is_event)
    return StageRecords(stage, in_order_of_steps(metrics), tuple(events))


def stage_times(uri: str) -> tuple[StageTime, ...]:
    """How long the stages of a run took, by its stages.json; nothing if there is none.

    Raises:
        UsageError: if the file is no such list.
    """
    try:
        records = storage.read_json(uri)
    except FileNotFoundError:
        return ()
    try:
        return tuple(
            _checked(StageTime, stage=r["stage"], seconds=r["seconds"], items=r["items"], unit=r["unit"])
            for r in records
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{uri} is no list of stages with seconds, items and unit ({error!r}): delete it") from error


def _stage_configs(run_uri: str, records: Iterable[StageRecords]) -> Iterator[StageConfig]:
    """What each stage has recorded that it was asked."""
    changes = {each.stage: tuple(settings_changes(each.events)) for each in records}
    for stage in (stage for stage in STAGES if stage.product != "results"):
        used = used_config(run_uri, stage)
        if used is not None:
            text = yaml.safe_dump(used, sort_keys=False, allow_unicode=True)
            yield StageConfig(stage.folder, text, changes.get(stage.folder, ()))


def used_config(run_uri: str, stage: RunStage) -> dict[str, Any] | None:
    """Of the config that a stage has recorded, the sections that it used; None if it has recorded none.

    Raises:
        UsageError: if the file was cut or edited.
    """
    uri = storage.join(run_uri, stage.folder, "config.yaml")
    try:
        config = yaml_dialect.parse(storage.read_bytes(uri, yaml_dialect.MOST_BYTES))
    except FileNotFoundError:
        return None
    except yaml.YAMLError as error:
        raise UsageError(f"{uri} is not valid YAML: it was cut or edited; run its stage again") from error
    used: dict[str, Any] = {}
    for path in ("seed", "inputs", *stage.reads, stage.section, "cluster"):
        _take(config, path.split("."), used)
    given = used.pop("inputs", None)
    inputs = {name: uri for name, uri in given.items() if uri} if isinstance(given, dict) else {}
    return used | ({"inputs": inputs} if inputs else {})


def settings_changes(events: Iterable[Record]) -> Iterator[str]:
    """What a stage was asked otherwise before, and up to which step, in words."""
    for event in events:
        changes = event.get("changes")
        if event.get("event") == "settings_changed" and isinstance(changes, list):
            yield f"changed at step {event.get('step')}: {', '.join(map(str, changes))}"


def _take(config: Any, path: list[str], into: dict[str, Any]) -> None:
    """Copy the value at a path, if there is one."""
    key, *rest = path
    if not isinstance(config, dict) or key not in config:
        return
    if rest:
        _take(config[key], rest, into.setdefault(key, {}))
    else:
        into[key] = config[key]


def _picture(run_uri: str, name: str, files: Record) -> bytes | None:
    """A picture of a run, if it is the one that a record names."""
    try:
        png = storage.read_bytes(storage.join(run_uri, name))
    except FileNotFoundError:
        return None
    return png if storage.sha256(png) == files.get(name) else None
