"""What a stage is trained from, and what is looked at while it trains, found and checked before any work starts.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cluster.config.fields import map_places
from cluster.config.run import RunConfig
from cluster.stages.inputs import held_out_images, held_out_tokens, with_found
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.text.counted import counted
from data_pipeline.tools.preflight import check_images, check_tokens
from model.config import GeneratorConfig
from trainer.config import (
    DistanceConfig,
    GeneratorValidationConfig,
    PicturesConfig,
    SampleDistanceConfig,
    ValidationConfig,
)
from trainer.job import HELD_OUT, HELD_OUT_IMAGES


@dataclass(frozen=True)
class Inputs:
    """What a stage is trained from."""

    uris: dict[str, str]
    lineage: dict[str, str]
    """Fingerprint of each."""
    classes: tuple[str, ...] = ()
    """Names of the classes of the data, by label."""
    notes: tuple[str, ...] = ()
    """What the user should know of them."""
    manifests: dict[str, ImageManifest | TokenManifest] = field(default_factory=dict)
    """Of those that are data sets."""

    def plus(self, name: str, uri: str, fingerprint: str, *notes: str) -> Inputs:
        """With another one."""
        uris, lineage = self.uris | {name: uri}, self.lineage | {name: fingerprint}
        return replace(self, uris=uris, lineage=lineage, notes=self.notes + notes)


def with_held_out(inputs: Inputs, config: RunConfig, asked: ValidationConfig) -> Inputs:
    """With images to look at while it trains, which are no part of the lineage."""
    uri = storage.absolute(held_out_images(config))
    if uri == inputs.uris["images"]:
        raise UsageError(
            f"tokenizer.validation looks at images that nothing is trained on, and none were held out beside {uri}: "
            "set data.validation_samples or data.validation_source, or tokenizer.validation to null"
        )
    found = _with_images(inputs, HELD_OUT, uri)
    if asked.distance is not None:
        key = "tokenizer.validation.distance"
        _check_enough(found, HELD_OUT, f"{key}.images", asked.distance.images)
        found = _with_network(found, config, asked.distance, key)
    return found


def _with_images(inputs: Inputs, name: str, uri: str) -> Inputs:
    return replace(inputs, uris=inputs.uris | {name: uri}, manifests=inputs.manifests | {name: check_images(uri)})


def _check_enough(inputs: Inputs, name: str, key: str, asked: int) -> None:
    """Refuse a distance of another number of images than its name says."""
    manifest = inputs.manifests[name]
    assert isinstance(manifest, ImageManifest)
    if manifest.samples < asked:
        raise UsageError(
            f"{key} is {asked}, and {inputs.uris[name]} has {counted(manifest.samples, 'held-out image')}: distances "
            f"of other numbers of images do not compare, so set it to {manifest.samples} at most, or hold out more "
            "(data.validation_samples)"
        )


def _with_network(inputs: Inputs, config: RunConfig, asked: DistanceConfig, key: str) -> Inputs:
    """With the network in whose features images are compared, which is no part of the lineage."""
    file = getattr(asked.network, "file", None)
    if file is not None and not storage.exists(storage.absolute(file)):
        raise UsageError(f"{key}.network.file: there is no {file}: give the place of the weights of that network")
    if asked.network is not None or "teacher" in inputs.uris:
        return inputs
    found = with_found(config, ["teacher"])
    uris = inputs.uris | {"teacher": storage.absolute(found.product("teacher"))}
    if not config.given("teacher") and config.teacher is not None and config.teacher.network is not None:
        return replace(inputs, uris=uris | {"teacher_timm": config.teacher.network})
    weights.read_card(uris["teacher"], "teacher")
    return replace(inputs, uris=uris)


def with_absolute_network(section: Any) -> Any:
    """With the network of its distance from the same place wherever it is read."""
    return section.model_copy(update={"validation": map_places(section.validation, _absolute)})


def _absolute(_: str, place: str) -> str:
    return storage.absolute(place)


def with_held_out_tokens(
    inputs: Inputs, config: RunConfig, asked: GeneratorValidationConfig, model: GeneratorConfig
) -> Inputs:
    """With tokens to look at while it trains, which are no part of the lineage."""
    if asked.pictures is not None:
        _check_pictures(inputs, asked.pictures, model)
    if asked.distance is not None:
        inputs = _with_distance(inputs, config, asked.distance)
    if not asked.samples:
        return inputs
    uri = held_out_tokens(config)
    if uri is None:
        raise UsageError(
            "generator.validation looks at tokens of images that nothing is trained on, and there are none beside "
            f"{inputs.uris['tokens']}: where images were held out (data.validation_samples, data.validation_source), "
            "`foldtrain tokenize` makes them; or name such tokens as inputs.held_out_tokens, set "
            "generator.validation.samples to 0 for pictures alone, or generator.validation to null"
        )
    held_out, tokens = check_tokens(uri), inputs.manifests["tokens"]
    assert isinstance(tokens, TokenManifest)
    _check_held_out(uri, held_out, tokens)
    return replace(inputs, uris=inputs.uris | {HELD_OUT: uri}, manifests=inputs.manifests | {HELD_OUT: held_out})


def _with_distance(inputs: Inputs, config: RunConfig, asked: SampleDistanceConfig) -> Inputs:
    """With what samples are compared with, and by what."""
    key, tokens = "generator.validation.distance", inputs.manifests["tokens"]
    if "tokenizer" not in inputs.uris:
        raise UsageError(
            f"{key}: only the tokenizer of these tokens makes images of them, and the run has none: name it as "
            f"inputs.tokenizer, or set {key} to null"
        )
    found = with_found(config, ["images"]) if config.has("images") else None
    uri = None if found is None else storage.absolute(held_out_images(found))
    if found is None or uri is None or uri == storage.absolute(found.product("images")):
        raise UsageError(
            f"{key} compares samples with images that nothing is trained on, and the run has none: name image shards "
            "with which some were held out as inputs.images, set data.validation_samples or data.validation_source, "
            f"or {key} to null"
        )
    inputs = _with_images(inputs, HELD_OUT_IMAGES, uri)
    there = inputs.manifests[HELD_OUT_IMAGES].classes
    if tokens.classes[: len(there)] != there:
        raise UsageError(
            f"{key}: the held-out images at {uri} have other classes ({len(there)}) than the tokens that are trained "
            f"on ({len(tokens.classes)}), or in another order: name the images of these tokens as inputs.images, or "
            f"set {key} to null"
        )
    _check_enough(inputs, HELD_OUT_IMAGES, f"{key}.samples", asked.samples)
    return _with_network(inputs, config, asked, key)


def _check_held_out(uri: str, held_out: TokenManifest, tokens: TokenManifest) -> None:
    """Refuse held-out tokens that say nothing of a generator of the other tokens."""
    known, there = tokens.classes, held_out.classes
    reason = None
    if held_out.tokenizer.encoder != tokens.tokenizer.encoder or held_out.layout != tokens.layout:
        reason = f"were made by another tokenizer ({held_out.tokenizer}) than those that are trained on"
    elif held_out.fingerprint == tokens.fingerprint or held_out.source == tokens.source:
        reason = "are of the same images as the tokens that are trained on"
    elif known[: len(there)] != there:
        reason = f"have other classes ({len(there)}) than those that are trained on ({len(known)}), or in another order"
    if reason:
        raise UsageError(
            f"inputs.held_out_tokens, or what lies beside inputs.tokens: the tokens at {uri} {reason}: name others, or "
            "set generator.validation to null"
        )


def _check_pictures(inputs: Inputs, asked: PicturesConfig, model: GeneratorConfig) -> None:
    """Refuse pictures that nothing can make of tokens, or of classes that the data have not."""
    if "tokenizer" not in inputs.uris:
        raise UsageError(
            "generator.validation.pictures: only the tokenizer of these tokens makes images of them, and the run has "
            "none: name it as inputs.tokenizer, or set pictures to null"
        )
    known = len(inputs.classes) if model.classes else 0
    wrong = [label for label in asked.classes or () if label >= known]
    if wrong:
        there = f"the data's classes 0 to {known - 1}" if known else "what a generator knows that learns no classes"
        raise UsageError(f"generator.validation.pictures.classes: {wrong} are not among {there}")
    try:
        asked.order_of(model)
    except ValueError as error:
        raise UsageError(f"generator.validation.pictures: {error}") from None
