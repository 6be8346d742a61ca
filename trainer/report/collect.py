"""From a run's folder to the data of its report. Only evaluation.json must be there; the rest is shown if it is."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import yaml

from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.jsonl import read_records
from trainer.report.data import Evaluation, Record, ReportData, StageRecords, StageTime

TRAINING_STAGES = ("teacher", "judge", "tokenizer", "generator")


def collect(run_uri: str) -> ReportData:
    """Read what the stages of a run have left in its folder, at any URI.

    Raises:
        UsageError: if the run was not evaluated, or one of its files was cut or edited; it names the file.
    """
    config_yaml = _text(storage.join(run_uri, "config.yaml"))
    model = _tokenizer_model(config_yaml)
    return ReportData(
        run=run_uri,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        evaluation=read_evaluation(storage.join(run_uri, "evaluation.json")),
        stages=_stage_times(storage.join(run_uri, "stages.json")),
        records=tuple(_stage_records(run_uri, stage) for stage in TRAINING_STAGES),
        config_yaml=config_yaml,
        scales=tuple(model.get("scales", ())),
        codebook_size=model.get("codebook_size"),
        reconstructions_png=_optional(storage.join(run_uri, "samples", "reconstructions.png")),
        samples_png=_optional(storage.join(run_uri, "samples", "grid.png")),
    )


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
        return Evaluation(
            mse_per_scale=tuple(reconstruction["mse_per_scale"]),
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
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{uri} is not what `foldtrain evaluate` writes ({error!r}): evaluate again") from error


def in_order_of_steps(records: Iterable[Any]) -> tuple[Record, ...]:
    """One record a step, in order; of a step that was repeated after a restart, the last."""
    by_step = {record["step"]: record for record in records if isinstance(record, dict) and "step" in record}
    return tuple(by_step[step] for step in sorted(by_step))


def _stage_records(run_uri: str, stage: str) -> StageRecords:
    metrics = read_records(storage.join(run_uri, stage, "metrics.jsonl"))
    events = read_records(storage.join(run_uri, stage, "events.jsonl"))
    return StageRecords(stage, in_order_of_steps(metrics), tuple(event for event in events if isinstance(event, dict)))


def _stage_times(uri: str) -> tuple[StageTime, ...]:
    try:
        records = storage.read_json(uri)
    except FileNotFoundError:
        return ()
    try:
        return tuple(StageTime(r["stage"], float(r["seconds"]), int(r["items"]), r["unit"]) for r in records)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{uri} is no list of stages with seconds, items and unit ({error!r}): delete it") from error


def _tokenizer_model(config_yaml: str) -> dict[str, Any]:
    config = yaml.safe_load(config_yaml) or {}
    return dict(config.get("tokenizer", {}).get("model", {}))


def _optional(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def _text(uri: str) -> str:
    return (_optional(uri) or b"").decode(errors="replace")
