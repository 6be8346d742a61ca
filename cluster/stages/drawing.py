"""What `foldtrain sample RUN --out …` asks for, found out and checked before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ValidationError

from cluster.config.loading import load_config
from cluster.config.run import ClusterConfig
from cluster.pool.sampling import SampleWork, draw_all, fingerprints
from cluster.stages.inputs import with_found
from cluster.stages.train_jobs import train_job
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.text import yaml_dialect
from data_pipeline.text.json_records import first_problem
from trainer.config import SamplingConfig
from trainer.config.evaluation import Rounding
from trainer.evaluation.samples.label_plan import MOST_PLAN_BYTES, LabelPlan, parse_classes, parse_plan, plan_of
from trainer.evaluation.samples.sample_files import PART_IMAGES, Kind, SamplePlan
from trainer.evaluation.samples.sampler import check_order, check_tokenizer, class_names
from trainer.registry import stage_named

if TYPE_CHECKING:
    import torch

    from data_pipeline.shards.weights import Card
    from trainer.evaluation.samples.sampler import Sampler
    from trainer.inference.given_images import Fit
    from trainer.stages.trained_generator import GeneratorSource

_FEW = 16
"""Images that are drawn where neither a number nor classes are given."""
_STEPS = {"last", "best"}


@dataclass(frozen=True)
class Wanted:
    """What was typed."""

    run: str
    """A run, the folder of its generator, or an export."""
    output: str
    kind: Kind | None = None
    """None for what the output's name says."""
    classes: tuple[str, ...] = ()
    plan: str | None = None
    count: int | None = None
    seed: int | None = None
    settings: dict[str, Any] | None = None
    """Of `sampling`, in place of the run's."""
    checkpoint: str | None = None
    raw: bool | None = None
    """Weights as trained (True), their moving average (False), or the latter where there is one (None)."""
    tokenizer: str | None = None
    reference: str | None = None
    keep: str | None = None
    rounding: Rounding = "nearest"
    fit: Fit = "crop"
    device: str = "cpu"
    cluster: ClusterConfig | None = None
    """Whose workers draw; None draws in this process."""


@dataclass(frozen=True)
class Drawn:
    """What came of it."""

    plan: SamplePlan
    now: int
    """Images that this call has drawn."""


def draw(wanted: Wanted) -> Drawn:
    """Draw what is missing of what is wanted.

    Raises:
        UsageError: if something cannot be; nothing is written then.
        FoldtrainError: if parts failed too often.
    """
    if (wanted.reference is None) != (wanted.keep is None):
        raise UsageError("--reference names an image, and --keep what is kept of it: give both, or neither")
    output = storage.absolute(wanted.output)
    kind = _kind(wanted, output)
    config, seed = _settings(wanted)
    source, tokenizer = _networks(wanted)
    card, tokenizer_card = source.card(), weights.read_card(tokenizer, "tokenizer")
    check_tokenizer(f"at {source.uri}", card, tokenizer, tokenizer_card)
    check_order(source.uri, card, config)
    names = class_names(card)
    labels = _labels(wanted, names)
    config = config.model_copy(update={"ema": _takes_average(wanted, source), "classes": None})
    device = _device(wanted)
    work = SampleWork(
        SamplePlan(output, kind, labels, 1, {}), source, tokenizer, config, seed, {}, _gpus(wanted.cluster)
    )
    sampler = work.load(device)
    kept, conditions = _kept(wanted, sampler)
    conditions |= {} if wanted.rounding == "nearest" else {"rounding": wanted.rounding}
    made_by = made_by_of(config, seed, sampler, device.type if wanted.cluster is None else _device_of(wanted.cluster))
    plan = SamplePlan(output, kind, labels, part_images(kind, config, made_by["device"]), made_by | conditions)
    work = SampleWork(
        *(plan, source, tokenizer, config, seed, fingerprints(sampler, config.ema), work.gpus),
        kept_LF=kept,
        rounding=wanted.rounding,
    )
    told = _told(source, tokenizer, card, names, labels, config) | _told_of(wanted)
    return Drawn(plan, draw_all(work, names, told, wanted.cluster or sampler))


def _kind(wanted: Wanted, output: str) -> Kind:
    is_npz = output.endswith(".npz")
    kind: Kind = wanted.kind or ("npz" if is_npz else "png")
    if (kind == "npz") != is_npz:
        raise UsageError(
            f"--out {wanted.output} --format {kind}: a file that ends in .npz is format npz, and no other is"
        )
    return kind


# ------------------------------------------------------------------------------------------------------ the networks


def _networks(wanted: Wanted) -> tuple[GeneratorSource, str]:
    """The generator, and the export of its tokenizer."""
    from trainer.inference.exports import find_export, find_tokenizer
    from trainer.stages.trained_generator import GeneratorSource, at_checkpoint

    given = find_export(wanted.tokenizer, "tokenizer") if wanted.tokenizer else None
    asked = wanted.checkpoint
    if asked is None or not (asked in _STEPS or asked.isdigit()):
        export = storage.absolute(find_export(asked or wanted.run, "generator"))
        return GeneratorSource(export), storage.absolute(given or find_tokenizer(export))
    stage = stage_named("train-generator")
    config = with_found(load_config(storage.join(_stage_folder(wanted.run), "config.yaml")), stage.needs)
    source = at_checkpoint(train_job(config, stage), asked)
    if given is None and not config.has("tokenizer"):
        raise UsageError(f"{wanted.run} has no tokenizer: give --tokenizer the one that made its tokens")
    return source, storage.absolute(given or config.product("tokenizer"))


def _stage_folder(run: str) -> str:
    """Folder of the stage that trains the generator of a run, which may be meant itself."""
    run = run.rstrip("/")
    for folder in (run, storage.join(run, "generator")):
        if storage.list_names(storage.join(folder, "checkpoints")):
            return folder
    raise UsageError(f"{run} has no checkpoints of a generator, in it or in generator/: is it the folder of a run?")


def _takes_average(wanted: Wanted, source: GeneratorSource) -> bool:
    from trainer.stages.trained_generator import has_average

    if wanted.raw:
        return False
    has = has_average(source)
    if wanted.raw is False and not has:
        raise UsageError(f"--weights ema: no moving average was kept of {source.uri}: give --weights raw")
    return has


# ------------------------------------------------------------------------------------------------------ the settings


def _settings(wanted: Wanted) -> tuple[SamplingConfig, int]:
    """How images are drawn, and the seed: as the run has it, but for what was typed."""
    given, seed = _of_run(wanted.run)
    asked = wanted.settings or {}
    merged = given | asked | {"order": {**given.get("order", {}), **asked.get("order", {})}}
    try:
        config = SamplingConfig.model_validate(merged)
    except ValidationError as error:
        raise UsageError(f"sampling.{first_problem(error)}") from None
    return config, seed if wanted.seed is None else wanted.seed


def _of_run(run: str) -> tuple[dict[str, Any], int]:
    """`sampling` and `seed` of the config that a run's generator was trained with."""
    for folder in (run, storage.join(run, "generator"), run.rstrip("/").rpartition("/")[0]):
        record = _read_config(storage.join(folder, "config.yaml")) if folder else None
        if record is not None:
            sampling, seed = record.get("sampling"), record.get("seed")
            return sampling if isinstance(sampling, dict) else {}, seed if isinstance(seed, int) else 0
    return {}, 0


def _read_config(uri: str) -> dict[str, Any] | None:
    try:
        record = yaml_dialect.parse(storage.read_bytes(uri, yaml_dialect.MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{uri} cannot be read ({error}): restore it, or give the export itself") from None
    return record if isinstance(record, dict) else None


def _labels(wanted: Wanted, names: Sequence[str]) -> LabelPlan:
    if wanted.plan is None:
        labels = parse_classes(wanted.classes, names) if wanted.classes else tuple(range(len(names)))
        return plan_of(labels, wanted.count or (len(labels) if wanted.classes else _FEW))
    if wanted.classes or wanted.count:
        raise UsageError("--plan says of which class how many images are drawn: give no --class and no --n beside it")
    try:
        text = storage.read_bytes(wanted.plan, MOST_PLAN_BYTES).decode()
    except FileNotFoundError:
        raise UsageError(f"--plan: there is no file {wanted.plan}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--plan: {wanted.plan} is no text") from None
    return parse_plan(text, names, wanted.plan)


def part_images(kind: Kind, config: SamplingConfig, device: str) -> int:
    """Images of a part: whole batches, so that an image is drawn beside the same others wherever it is drawn."""
    batch = config.cpu_batch if device == "cpu" else config.batch
    return batch * max(1, round(PART_IMAGES[kind] / batch))


def _device(wanted: Wanted) -> torch.device:
    """Where this process loads the networks, which it does in any case to see what they are."""
    import torch

    from trainer.engine.device import given_device
    from trainer.inference.exports import find_device

    if wanted.cluster is not None:
        return torch.device("cpu")
    if wanted.device == "cpu":
        return given_device(0)
    try:
        return find_device(wanted.device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from None


def _gpus(cluster: ClusterConfig | None) -> int:
    return 0 if cluster is None else cluster.gpus_per_worker


def _device_of(cluster: ClusterConfig) -> str:
    return "cuda" if cluster.gpus_per_worker else "cpu"


# ----------------------------------------------------------------------------------------------------- the reference


def _kept(wanted: Wanted, sampler: Sampler) -> tuple[npt.NDArray[np.int64] | None, dict[str, Any]]:
    """The tokens of a reference that are kept, -1 elsewhere, and what is on record of it."""
    if wanted.reference is None or wanted.keep is None:
        return None, {}
    from trainer.inference.kept_tokens import file_digest, reference_tokens

    kept_LF = reference_tokens(sampler.tokenizer, wanted.reference, wanted.keep, wanted.fit)
    form, _, mask = wanted.keep.partition(":")
    is_mask = form == "mask"
    record = {
        "image": file_digest(wanted.reference),
        "keep": {"mask": file_digest(mask)} if is_mask else wanted.keep,
        "fit": wanted.fit,
        "kept_tokens": int((kept_LF >= 0).sum()),
        "tokens": kept_LF.size,
    }
    return kept_LF, {"reference": record}


# -------------------------------------------------------------------------------------------------------- the record


def made_by_of(config: SamplingConfig, seed: int, sampler: Sampler, device: str) -> dict[str, Any]:
    """What all images of a plan follow from, as JSON."""
    drawn = config.record("samples_per_class", "classes", "ema")
    drawn.pop("batch" if device == "cpu" else "cpu_batch")  # decides nothing there
    return {
        "seed": seed,
        "sampling": drawn,
        "weights": "ema" if config.ema else "raw",
        "generator": sampler.cards["generator"].fingerprint(config.ema),
        "encoder": sampler.cards["tokenizer"].encoder(),
        "decoder": sampler.cards["tokenizer"].decoder(),
        "image_size": sampler.tokenizer.config.image_size,
        "device": device,
    }


def _told(
    source: GeneratorSource, tokenizer: str, card: Card, names: Sequence[str], labels: LabelPlan, config: SamplingConfig
) -> dict[str, Any]:
    schedule = config.guidance_schedule
    generator = {"uri": source.uri, "checkpoint": source.step, "steps": card.steps, "lineage": card.lineage}
    return {
        "generator": generator,
        "tokenizer": {"uri": tokenizer},
        "class_names": {str(label): names[label] for label in labels.labels if label >= 0},
        "guidance_schedule": "the order's own" if schedule is None else schedule.model_dump(mode="json"),
    }


def _told_of(wanted: Wanted) -> dict[str, Any]:
    return {} if wanted.reference is None else {"reference": {"uri": wanted.reference, "keep": wanted.keep}}
