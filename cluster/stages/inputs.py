"""Where the products are that a run is given: `inputs` names the run that made one, or the product itself.

What is there tells them apart. Of a URI these are tried in turn, and the first that holds a finished product is it:

    URI                    the product itself: a folder with manifest.json, an export with card.json
    URI/export, URI/train  the folder of the stage that made it
    URI/tokenizer/export   the run that made it; its shards, wherever it has put them

The config that a stage works with, and puts on record, names the product itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cluster.config.run import RunConfig
from cluster.pool.scale import PROGRESS
from cluster.progress.stage_records import recorded_folder
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.leases.owned_folders import SETTINGS
from data_pipeline.shards.manifest import MANIFEST_NAME
from data_pipeline.tokens.plan import HELD_OUT
from trainer.registry import RunStage, stage_in

_CARD = "card.json"


def with_found(config: RunConfig, products: Iterable[str]) -> RunConfig:
    """The config with the places of the products themselves, of those that it is given.

    Args:
        config: of the run.
        products: those that are about to be read (`trainer.registry.FOLDERS`).

    Raises:
        UsageError: if one is not there, or not finished; it names the key, the URI and what to do.
    """
    given = {name: uri for name in products if (uri := config.given(name))}
    found = {name: find_product(name, uri, f"inputs.{name}") for name, uri in given.items()}
    return config.model_copy(update={"inputs": config.inputs.model_copy(update=found)})


def with_reachable(config: RunConfig, products: Iterable[str]) -> RunConfig:
    """As `with_found`, but what is not there yet, or cannot be reached from here, stays as it is."""
    for name in products:
        try:
            config = with_found(config, [name])
        except (FoldtrainError, OSError):
            continue
    return config


def find_product(name: str, uri: str, key: str) -> str:
    """URI of a finished product.

    Args:
        name: of the product (`trainer.registry.FOLDERS`).
        uri: of the product, of its stage's folder, or of its run.
        key: of the config that names it, for the error.

    Raises:
        UsageError: if it is not there, or not finished.
    """
    stage, uri = stage_in(name), storage.absolute(uri)
    marker = _CARD if stage.trains else MANIFEST_NAME
    tried = list(dict.fromkeys(_candidates(stage, uri)))
    for candidate in tried:
        if storage.exists(storage.join(candidate, marker)):
            return candidate
    begun = next((folder for folder in (uri, storage.join(uri, stage.folder)) if _is_begun(stage, folder)), None)
    what = f"{begun} is not finished" if begun else f"there is no finished {_named(stage)}"
    remedy = (
        f"let `foldtrain {stage.command}` finish it, with the config of that run"
        if begun
        else f"make it with `foldtrain {stage.command}`, or give the URI of the run that made it, or of the "
        f"{'export' if stage.trains else 'folder of the shards'} itself"
    )
    places = ", ".join(storage.join(each, marker) for each in tried)
    raise UsageError(f"{key} is {uri}, and {what} (looked for {places}): {remedy}")


def _named(stage: RunStage) -> str:
    return f"set of {stage.folder}" if stage.product == "shards" else stage.folder


def _candidates(stage: RunStage, uri: str) -> Iterator[str]:
    def finished(folder: str) -> str:
        return storage.join(folder, stage.finished) if stage.finished else folder

    yield uri
    yield finished(uri)
    yield finished(recorded_folder(uri, stage.folder) if stage.place else storage.join(uri, stage.folder))
    yield finished(storage.join(uri, stage.folder))


def _is_begun(stage: RunStage, folder: str) -> bool:
    """Whether a stage has left something there that is no finished product."""
    try:
        return storage.exists(storage.join(folder, SETTINGS if stage.trains else PROGRESS))
    except FoldtrainError:
        return False


def held_out_images(config: RunConfig) -> str:
    """Real images that nothing was trained on, or the training images where none were held out.

    Of images that the run is given, those count as held out that were ingested with them for validation.
    """
    images = storage.absolute(config.product("images"))
    validation = storage.join(images.rpartition("/")[0], "validation")
    if config.given("images"):
        beside = images.endswith("/train") and storage.exists(storage.join(validation, MANIFEST_NAME))
    else:
        beside = bool(config.data.validation_samples) or config.data.validation_source is not None
    return validation if beside else images


def held_out_to_tokenize(config: RunConfig) -> str | None:
    """Held-out images of which `tokenize` makes tokens; None if there are none, or the run is given their tokens."""
    images = storage.absolute(held_out_images(config))
    is_made = not config.inputs.held_out_tokens and images != storage.absolute(config.product("images"))
    return images if is_made else None


def held_out_tokens(config: RunConfig) -> str | None:
    """Tokens of images that nothing is trained on: those that the run is given, or those beside its tokens.

    Returns:
        Their URI; None if there are none.

    Raises:
        UsageError: if those that it is given are not there, or not finished.
    """
    given = config.inputs.held_out_tokens
    tokens = find_product("tokens", given, "inputs.held_out_tokens") if given else config.product("tokens")
    beside = storage.join(storage.absolute(tokens), HELD_OUT)
    if storage.exists(storage.join(beside, MANIFEST_NAME)):
        return beside
    return tokens if given else None
