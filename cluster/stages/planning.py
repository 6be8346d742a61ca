"""From a config and options to what `foldtrain plan` is asked: ranks, devices, what is known of the data."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cluster.config.run import RunConfig
from cluster.stages.inputs import find_product, with_found
from cluster.terminal.output import duration
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError, UsageError
from data_pipeline.shards.manifest import MANIFEST_NAME, read_manifest
from data_pipeline.storage.retries import patience
from data_pipeline.text.counted import counted
from model.config import TokenizerConfig
from trainer.planning.blank_stages import StageConfigs, teacher_at, tokenizer_at
from trainer.planning.devices import DEVICES, find_device
from trainer.planning.plan import DataFacts, Request
from trainer.registry import TRAINING, stage_named

if TYPE_CHECKING:
    from cluster.targets.config import TargetSection
    from trainer.planning.sizes import MeasuredRate

_STAGE_FOLDERS = {stage.command: stage.folder for stage in TRAINING}
_ASK_SECONDS = 5.0
"""For which storage is waited for: a plan is made without it, too."""
_SILENT_SECONDS = 60.0
"""For which a bucket that did not answer is not asked again."""
_silent: dict[str, tuple[float, StorageAwayError]] = {}
"""When a bucket did not answer, by this process's clock, and what was said of it."""
T = TypeVar("T")


def ask(uri: str, question: Callable[[], T]) -> T:
    """Ask storage with a short patience, and a bucket that does not answer once only.

    Args:
        uri: that is asked about.
        question: asks.

    Raises:
        StorageAwayError: if it does not answer, or did not a moment ago.
        FoldtrainError, OSError: as the question raises them.
    """
    bucket = "/".join(uri.split("/", 3)[:3])
    known = _silent.get(bucket)
    if known is not None and time.monotonic() - known[0] < _SILENT_SECONDS:
        raise known[1]
    try:
        with patience(_ASK_SECONDS):
            return question()
    except StorageAwayError as error:
        _silent[bucket] = time.monotonic(), error
        raise


def stage_folder(stage: str) -> str:
    """Name of a stage's folder in a run.

    Raises:
        UsageError: if it is no stage that can be planned.
    """
    if stage not in _STAGE_FOLDERS:
        raise UsageError(f"--stage {stage}: only {' and '.join(_STAGE_FOLDERS)} can be planned")
    return _STAGE_FOLDERS[stage]


ASSUMED_CLASSES = 1000
"""Of data that are not there yet, where the config leaves their number to them: as many as ImageNet has."""


def known_classes(config: RunConfig, stage: str) -> tuple[RunConfig, str | None]:
    """The config with a number for each `num_classes` that is null, and a note if that had to be assumed."""
    resolved = config.with_classes(ASSUMED_CLASSES)
    if resolved == config:
        return config, None
    for folder in _data_folders(config, stage, also_tokens=True):
        if _is_there(folder):
            return config.with_classes(len(read_manifest(folder).classes)), None
    if stage == "train-generator" and config.generator and config.generator.model.num_classes is None:
        return resolved, f"the data are not there yet: generator.model.num_classes is taken to be {ASSUMED_CLASSES}"
    return resolved, None


def stage_configs(config: RunConfig, stage: str) -> StageConfigs:
    """The sections that a plan looks at. A tokenizer that the run is given counts by its card.

    Raises:
        UsageError: if a section is missing.
    """
    section = stage_named(stage).section
    if config.section(section) is None:
        raise UsageError(f"this config has no {stage_folder(stage)} to plan: the section {section} is missing")
    given = _given_tokenizer(config) if stage == "train-generator" else None
    teacher = config.teacher
    if config.given("teacher"):
        uri = _reachable(config, "teacher").product("teacher")
        teacher = ask(uri, lambda: teacher_at(uri))
    trained = config.tokenizer, config.generator, teacher
    proxy = _proxy(config, stage)
    return StageConfigs(*trained, config.tokens, config.data.reading, given, config.evaluation.judge, proxy)


def request_of(
    config: RunConfig, stage: str, ranks: tuple[int, int], device: str | None, samples: int | None
) -> Request:
    """What a plan is asked for by the config and the data alone.

    Args:
        config: with a number for each `num_classes`.
        stage: to plan.
        ranks: nodes, and ranks on each.
        device: as `check_device` gives it.
        samples: images in the data set, if they were given.

    Raises:
        UsageError: if a section is missing.
    """
    nodes, per_node = ranks
    return Request(
        stage=stage,
        configs=stage_configs(config, stage),
        nodes=nodes,
        ranks_per_node=per_node,
        device=device,
        data=find_data(config, stage, samples),
        peak_tflops=config.cluster.peak_tflops,
    )


def note_of(config: RunConfig, stage: str, device: str | None, classes_note: str | None) -> str | None:
    """All that a plan assumes or leaves out, in words; None if nothing."""
    notes = (
        _device_note(device, config.cluster.peak_tflops),
        classes_note,
        _tokenizer_note(config, stage),
        _proxy_note(config, stage),
        _distance_note(config, stage),
    )
    return "; ".join(note for note in notes if note) or None


def _reachable(config: RunConfig, *products: str) -> RunConfig:
    """The config with the places of the products themselves; what is not there, or does not answer, stays as it is."""
    for name in products:
        if uri := config.given(name):
            with contextlib.suppress(FoldtrainError, OSError):
                config = ask(uri, functools.partial(with_found, config, [name]))
    return config


def _proxy(config: RunConfig, stage: str) -> TokenizerConfig | None:
    """The tokenizer whose codes are learnt, by its card; None without one, or where it cannot be reached from here."""
    if stage != "train-tokenizer" or config.tokenizer is None or not config.tokenizer.model.needs_proxy:
        return None
    if config.inputs.proxy is None:
        return None
    uri = config.inputs.proxy
    try:
        return ask(uri, lambda: tokenizer_at(find_product("tokenizer", uri, "inputs.proxy")))
    except (FoldtrainError, OSError):
        return None


def _proxy_note(config: RunConfig, stage: str) -> str | None:
    """What a plan leaves out of a proxy, in words; None if nothing."""
    needs = stage == "train-tokenizer" and config.tokenizer is not None and config.tokenizer.model.needs_proxy
    if not needs or _proxy(config, stage) is not None:
        return None
    return f"inputs.proxy, {config.inputs.proxy}, cannot be reached from here: its time and memory are not counted"


def _tokenizer_note(config: RunConfig, stage: str) -> str | None:
    """That the sizes of a tokenizer are not those of the one that is given, in words; None if they are."""
    uri = config.given("tokenizer")
    if stage != "train-generator" or uri is None or _given_tokenizer(config) is not None:
        return None
    return f"inputs.tokenizer, {uri}, cannot be read from here: its sizes are those of the section tokenizer"


def _distance_note(config: RunConfig, stage: str) -> str | None:
    """What a plan leaves out of the distances that are measured while a network trains; None without any."""
    section = {"train-tokenizer": config.tokenizer, "train-generator": config.generator}.get(stage)
    looks = None if section is None else section.validation
    if section is None or looks is None or looks.distance is None:
        return None
    times, most = -(-section.trainer.steps // looks.distance_every), looks.distance.most_seconds
    return (
        f"{stage_named(stage).section}.validation.distance is not counted: {counted(times, 'distance')}, for each of "
        f"which all workers wait some {most:g} s at most, {duration(times * most)} in all"
    )


def _given_tokenizer(config: RunConfig) -> TokenizerConfig | None:
    """The sizes of the tokenizer that a run is given; None if its own section says them."""
    uri = config.given("tokenizer")
    if uri is None:
        if config.tokenizer is None:
            raise UsageError("the sizes of a generator follow from its tokenizer: name one as inputs.tokenizer")
        return None
    try:
        return ask(uri, lambda: tokenizer_at(with_found(config, ["tokenizer"]).product("tokenizer")))
    except Exception as error:
        if config.tokenizer is not None:
            return None  # a bucket that cannot be reached from a laptop: the section is what the run is to be like
        raise UsageError(f"the sizes of a generator follow from its tokenizer, and {error}") from error


def ranks(config: RunConfig, nodes: int | None, per_node: int | None) -> tuple[int, int]:
    """Nodes, and ranks on each. Without options, `cluster.workers` on nodes of 8 devices (on one, if there are none).

    Raises:
        UsageError: if the workers do not fill such nodes.
    """
    workers = config.cluster.most_workers
    if nodes is not None:
        return nodes, per_node or 8
    if config.cluster.gpus_per_worker == 0:
        return 1, per_node or workers
    each = per_node or min(8, workers)
    if workers % each:
        raise UsageError(f"cluster.workers {workers} do not fill nodes of {each}: give --nodes and --gpus-per-node")
    return workers // each, each


def target_of(name: str | None) -> TargetSection | None:
    """The config of a target; None without a name.

    Raises:
        UsageError: if there is no such target, or its config is wrong.
    """
    if name is None:
        return None
    from cluster.targets.opening import load_target

    return load_target(name)[1]


def workers_per_node(config: RunConfig, target: TargetSection | None) -> int | None:
    """Workers that a target's node has room for; None if its config does not say."""
    if target is None:
        return None
    if config.cluster.gpus_per_worker:
        return target.gpus_per_node or None
    return None if target.cpus_per_node is None else max(1, int(target.cpus_per_node / config.cluster.cpus_per_worker))


def node_size(config: RunConfig, per_node: int | None) -> int | None:
    """Workers that a node has room for: as given, or 8 GPUs; None for CPUs, which are then all on one."""
    return per_node or (8 if config.cluster.gpus_per_worker else None)


def check_device(name: str | None) -> str | None:
    """The device's name; None for CPUs. An unknown one is kept, but has no memory and no peak."""
    return None if name is None or name.lower() == "cpu" else name


def known_devices() -> str:
    """The names of the table, for messages."""
    return ", ".join(device.name for device in DEVICES)


def _device_note(name: str | None, peak_tflops: float | None) -> str | None:
    """What cannot be said of a device, in words; None if all can."""
    if name is None or find_device(name) is not None:
        return None
    peak = "" if peak_tflops is not None else "its peak and "
    return f"{name} is not in the table ({known_devices()}): {peak}its memory are not known, and are left out"


def find_data(config: RunConfig, stage: str, samples: int | None) -> DataFacts:
    """What the manifest of the stage's data says, else that of the images, else `samples`."""
    if samples is not None:
        return DataFacts(samples, known_from="--samples")
    folders = _data_folders(config, stage)
    for folder in folders:
        if not _is_there(folder):
            continue
        manifest = read_manifest(folder)
        own = folder == folders[0]
        size = manifest.shards.total_bytes if own else None
        return DataFacts(manifest.epoch_samples, size, len(manifest.shards) if own else None, folder)
    return DataFacts(None)


def rate_of(named: str | None, config: RunConfig, stage: str) -> MeasuredRate | None:
    """What a stage has reached in the run that is named; without one in the config's own, if that answers from here."""
    from trainer.planning.sizes import measured_rate

    folder = storage.join(named or config.run, stage_folder(stage))
    if named:
        return measured_rate(folder)
    try:
        return ask(folder, lambda: measured_rate(folder))
    except StorageAwayError:
        return None


def _data_folders(config: RunConfig, stage: str, *, also_tokens: bool = False) -> list[str]:
    """Where the data of a stage are, its own first."""
    config = _reachable(config, "images", "tokens")
    images, tokens = config.product("images"), config.product("tokens")
    return [tokens, images] if also_tokens or stage == "train-generator" else [images]


def _is_there(folder: str) -> bool:
    """Whether a data set can be seen from here; a bucket that cannot be reached from a laptop is no error."""
    try:
        return ask(folder, lambda: storage.exists(storage.join(folder, MANIFEST_NAME)))
    except Exception:
        return False
