"""From a config to what is trained: what it is trained from, found and checked before any work starts, and its lineage.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.run import RunConfig
from cluster.stages.inputs import find_product
from cluster.stages.job_inputs import Inputs, with_absolute_network, with_held_out, with_held_out_tokens
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import Card
from data_pipeline.text.counted import counted
from data_pipeline.tools.preflight import check_images, check_tokens
from model.config.titok import NO_TOKENS
from trainer.config import (
    GeneratorStageConfig,
    TeacherConfig,
    TokenizerStageConfig,
)
from trainer.job import INITIAL, PROXY, StageSection, TrainJob
from trainer.registry import RunStage


def train_job(config: RunConfig, stage: RunStage) -> TrainJob:
    """What a stage trains.

    Args:
        config: of the run; what it is given has been found (`cluster.stages.inputs.with_found`).
        stage: one that trains something.

    Raises:
        UsageError: if the config trains no such network, or something that it is trained from is missing or wrong.
    """
    section = config.section(stage.section)
    if section is None or is_pretrained(section):
        reason = f"{stage.section} is missing" if section is None else f"{stage.section}.timm names a pretrained one"
        raise UsageError(f"this config has no {stage.folder} to train: {reason}")
    inputs = (_token_inputs if "tokens" in stage.needs else _image_inputs)(config, stage)
    config = config.with_classes(len(inputs.classes))
    section, knows_classes = config.section(stage.section), stage.section in config.class_sections()
    if knows_classes:
        check_classes(stage.section, section.model.classes, inputs.classes)
    folder = storage.absolute(config.folder(stage.folder))
    if isinstance(section, TokenizerStageConfig) and section.model.needs_proxy:
        inputs = inputs.plus(PROXY, *_found_proxy(config, section))
    if isinstance(section, TokenizerStageConfig) and section.validation is not None:
        inputs = with_held_out(inputs, config, section.validation)
        section = with_absolute_network(section)
    if isinstance(section, GeneratorStageConfig) and section.validation is not None:
        inputs = with_held_out_tokens(inputs, config, section.validation, section.model)
        section = with_absolute_network(section)
    if section.init_except and not section.init_from:
        raise UsageError(
            f"{stage.section}.init_except is of given weights, and init_from names none: set both, or none"
        )
    if section.init_from:
        section = _with_absolute_initial(section)
        inputs = _with_initial(inputs, stage, section, folder)
    for note in inputs.notes:
        console().print(f"{stage.command}: {note}", markup=False)
    return TrainJob(
        stage=stage.folder,
        folder=folder,
        section=section,
        seed=config.seed,
        fit=config.data.fit,
        reading=config.data.reading,
        inputs=inputs.uris,
        lineage=inputs.lineage,
        config=with_absolute_paths(config).model_dump(mode="json"),
        classes=inputs.classes if not knows_classes or section.model.classes else (),
        tracking=config.tracking,
        peak_tflops=config.cluster.peak_tflops,
        accept_changes=config.accept_changes,
        manifests=inputs.manifests,
    )


def is_pretrained(section: Any) -> bool:
    """Whether a section names a network with published weights, in place of one to train."""
    return isinstance(section, TeacherConfig) and section.timm is not None


def check_classes(section: str, known: int, names: Sequence[str], *, say: bool = True) -> None:
    """See that a network has room for the classes of the data.

    Args:
        section: of the network, in the config.
        known: classes that it has room for.
        names: those of the data.
        say: whether to say that it has more room than that.

    Raises:
        UsageError: if not.
    """
    key, present = f"{section}.model.num_classes", len(names)
    if known == 0:  # a generator that learns none
        if say:
            classes = counted(present, "class of the data is", "classes of the data are")
            console().print(f"{key} is 0: the {classes} not learnt")
        return
    classes = counted(present, "class", "classes")
    if present > known:
        raise UsageError(f"{key} is {known}, but the data have {classes}: set it to null, which takes theirs")
    if present < known and say:
        unused = counted(known - present, "is", "are")
        console().print(f"{key} is {known}, and the data have {classes}: {unused} never used")


def _image_inputs(config: RunConfig, stage: RunStage) -> Inputs:
    uri = storage.absolute(config.product("images"))
    images = check_images(uri)
    lineage = {"images": images.fingerprint}
    inputs = Inputs({"images": uri}, lineage, images.classes, manifests={"images": images})
    if "teacher" not in stage.needs or not config.has("teacher"):
        return inputs
    teacher = storage.absolute(config.product("teacher"))
    if not config.given("teacher") and config.teacher is not None and config.teacher.timm:
        network = config.teacher.network
        assert network is not None
        named = inputs.plus("teacher", teacher, network)
        return replace(named, uris=named.uris | {"teacher_timm": network})
    return inputs.plus("teacher", teacher, weights.read_card(teacher, "teacher").fingerprint())


def check_proxy(config: RunConfig) -> None:
    """Find out before anything is run whether the proxy is there that the tokenizer learns from, and fits it.

    Raises:
        UsageError: if not.
    """
    trained = None if config.given("tokenizer") else config.tokenizer
    if trained is not None and trained.model.needs_proxy:
        _found_proxy(config, trained)


def _found_proxy(config: RunConfig, section: TokenizerStageConfig) -> tuple[str, str]:
    """Its export, and its fingerprint: codes follow from the one half of it, and what paints them from the other."""
    assert config.inputs.proxy is not None  # the config is refused without
    uri = find_product("tokenizer", config.inputs.proxy, "inputs.proxy")
    card = weights.read_card(uri, "tokenizer")
    try:
        section.model.check_proxy(tokenizer_config(uri, card))
    except ValueError as error:
        raise UsageError(f"inputs.proxy: {uri} is no proxy for tokenizer.model: {error}") from None
    return uri, card.fingerprint()


def check_makes_tokens(config: RunConfig) -> None:
    """Refuse a tokenizer that makes no tokens, where tokens are wanted.

    Raises:
        UsageError: if this run's makes none, or the one that it is given; it says why.
    """
    given = config.given("tokenizer")
    if config.given("tokens"):
        return
    if given is not None:
        uri = find_product("tokenizer", given, "inputs.tokenizer")
        where, model = f"inputs.tokenizer, {uri}", tokenizer_config(uri, weights.read_card(uri, "tokenizer"))
    else:
        assert config.tokenizer is not None  # a config without tokens has one
        where, model = "tokenizer.model", config.tokenizer.model
    if not model.has_tokens:
        raise UsageError(f"{where}: {NO_TOKENS}")


def _token_inputs(config: RunConfig, _stage: RunStage) -> Inputs:
    """Token shards, and the tokenizer that made them, where there is one."""
    check_makes_tokens(config)
    uri = storage.absolute(config.product("tokens"))
    card = None
    if config.has("tokenizer"):
        tokenizer = storage.absolute(config.product("tokenizer"))
        card = weights.read_card(tokenizer, "tokenizer")
    tokens = check_tokens(uri)
    lineage = {"tokens": tokens.fingerprint, "tokenizer": tokens.tokenizer.encoder}
    inputs = Inputs({"tokens": uri}, lineage, tokens.classes, manifests={"tokens": tokens})
    if card is None:
        _check_ids_suffice(config, uri, tokens.tokenizer)
        _check_layout(config, tokens, None)
        return inputs
    check_tokenizer(tokens, card)
    _check_layout(config, tokens, tokenizer_config(tokenizer, card).forcing_width)
    return inputs.plus("tokenizer", tokenizer, card.encoder())


def _check_layout(config: RunConfig, tokens: TokenManifest, forcing_width: int | None) -> None:
    """Refuse a generator that cannot predict such tokens, before any worker starts."""
    assert config.generator is not None
    try:
        config.generator.model.check(tokens.layout, forcing_width)
    except ValueError as error:
        raise UsageError(f"generator.model: {error}") from None


def _check_ids_suffice(config: RunConfig, uri: str, made_by: TokenizerRecord) -> None:
    """Refuse a generator that cannot be trained without the tokenizer whose tokens it learns."""
    assert config.generator is not None
    if not config.generator.model.needs_forcing:
        return
    if made_by.imported_from is None:
        remedy = "name it, its run or its export, as inputs.tokenizer"
    else:
        remedy = (
            "there is none of foldtrain's for them. Train a generator on them that learns token ids alone "
            "(generator.model), or tokenize the images with a tokenizer of foldtrain's (docs/inputs.md)"
        )
    raise UsageError(
        f"inputs.tokens: the tokens at {uri} were made by {made_by}, and this generator predicts each scale from the "
        f"sums of the codes before it, which only that tokenizer can make: {remedy}"
    )


def _with_initial(inputs: Inputs, stage: RunStage, section: StageSection, folder: str) -> Inputs:
    """With the weights that training starts from. Where it has a checkpoint to go on from, they are not looked at."""
    uri = str(section.init_from)
    known = _recorded_initial(folder, uri)
    if known is not None:
        return inputs.plus(INITIAL, uri, known)
    found, card = _find_initial(stage, uri)
    _check_initial_classes(stage, section, card, found, inputs)
    return inputs.plus(INITIAL, found, card.fingerprint(), *_notes(stage, section, card, found, inputs))


def check_initial(config: RunConfig, stage: RunStage) -> None:
    """Find out before anything is run whether the weights that a stage is to start from are there.

    Raises:
        UsageError: if not, or they are of another kind of network.
    """
    section = config.section(stage.section)
    if section is None or not section.init_from or config.given(stage.folder):
        return
    uri = storage.absolute(section.init_from)
    if _recorded_initial(storage.absolute(config.folder(stage.folder)), uri) is None:
        _find_initial(stage, uri)


def _find_initial(stage: RunStage, uri: str) -> tuple[str, Card]:
    found = find_product(stage.folder, uri, f"{stage.section}.init_from")
    return found, weights.read_card(found, stage.folder)


def _recorded_initial(folder: str, uri: str) -> str | None:
    """Fingerprint of the weights that a run has started from, if it has come further since; None if not."""
    from trainer.checkpoints.catalog import latest_step

    finished = storage.exists(storage.join(folder, "export", "card.json"))
    if not finished and latest_step(storage.join(folder, "checkpoints")) is None:
        return None
    try:
        record = storage.read_json(storage.join(folder, "settings.json"))
        same = record["section"]["init_from"] == uri
        return str(record["lineage"][INITIAL]) if same else None
    except (FileNotFoundError, KeyError, TypeError):
        return None


_CLASS_PARAMETERS = {"generator": "[class_embed] of the generators that have such a table"}
"""What depends on the classes, by stage, for people."""


def _check_initial_classes(stage: RunStage, section: StageSection, card: Card, uri: str, inputs: Inputs) -> None:
    there = card.config.get(stage.folder, card.config).get("num_classes")
    here = getattr(section.model, "num_classes", None)
    if there == here or section.init_except:
        return
    key = f"{stage.section}.model.num_classes"
    has_room = isinstance(there, int) and there >= len(inputs.classes)
    leave = f"set {key} to {there}, of which the data have {len(inputs.classes)}, or " if has_room else ""
    raise UsageError(
        f"{stage.section}.init_from: the {stage.folder} at {uri} knows {there} classes, and this one is to know "
        f"{here}: {leave}name what depends on them as {stage.section}.init_except, which then starts anew "
        f"({_CLASS_PARAMETERS.get(stage.folder, 'head')}), or train it without init_from, from random weights"
    )


def _notes(stage: RunStage, section: StageSection, card: Card, uri: str, inputs: Inputs) -> list[str]:
    """What is allowed, and may be a mistake."""
    found, key, learns = [], f"{stage.section}.init_from", hasattr(section.model, "num_classes")
    if section.init_except:
        found.append(f"{key}: {', '.join(section.init_except)} start anew, all else from {uri}")
        learns = False
    if learns and card.classes and inputs.classes and card.classes != inputs.classes:
        found.append(f"{key}: the network at {uri} has learnt other classes than the data have, or in another order")
    other = card.lineage.get("tokenizer")
    if other is not None and other != inputs.lineage.get("tokenizer"):
        found.append(f"{key}: the network at {uri} has learnt tokens of another tokenizer ({str(other)[:16]})")
    return found


def _with_absolute_initial(section: Any) -> Any:
    """With the initial weights from the same place wherever it is read, and no published ones, which they replace."""
    without = getattr(section.model, "without_pretraining", None)
    model = without() if without else section.model
    return section.model_copy(update={"init_from": storage.absolute(section.init_from), "model": model})
