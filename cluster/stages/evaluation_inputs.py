"""What an evaluation of a run needs, found and checked before any network is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.config.run import RunConfig
from cluster.pool.drawn_set import DrawnSet
from cluster.pool.sampling import SampleWork, fingerprints
from cluster.stages.drawing import made_by_of
from cluster.stages.results import check_cards, node_cache
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.shards.weights import Card
from data_pipeline.tools.preflight import check_images, check_tokens
from trainer.config.feature_networks import ClassifierNetwork, FeatureNetworkConfig, TimmNetwork, TorchvisionNetwork
from trainer.evaluation.networks.network_rows import Slot
from trainer.evaluation.samples.label_plan import plan_of
from trainer.evaluation.samples.sample_files import SamplePlan
from trainer.evaluation.samples.sampler import UNCONDITIONAL, Sampler, class_names
from trainer.evaluation.set_numbers import Judge

if TYPE_CHECKING:
    import torch

    from data_pipeline.shards.token_dataset import TokenShards
    from data_pipeline.shards.token_windows import TokenWindows

TEACHER, JUDGE, INCEPTION = "teacher", "judge", "inception"


def open_run_tokens(config: RunConfig) -> TokenShards | TokenWindows:
    """The tokens that the generator was trained on."""
    from data_pipeline.shards.token_windows import open_tokens

    reading = config.data.reading
    return open_tokens(config.product("tokens"), node_cache(config), reading.tokens, reading.shuffle_window)


def check_inputs(config: RunConfig, held_out: str) -> tuple[dict[str, Card], ImageManifest, TokenManifest]:
    """What is needed to judge a run: the cards of its networks, real images, tokens; all of the same classes."""
    cards = check_cards(config)
    names = class_names(cards["generator"])
    if config.has("teacher") and timm_teacher(config) is None:
        cards["teacher"] = weights.read_card(config.product("teacher"), "teacher")
    if config.has("judge") and names != (UNCONDITIONAL,):
        cards["judge"] = weights.read_card(config.product("judge"), "judge")
        _check_classes("the judge", config.product("judge"), cards["judge"].classes or names, names)
    images, tokens = check_images(held_out), check_tokens(config.product("tokens"))
    check_tokenizer(tokens, cards["tokenizer"])
    if cards["generator"].classes:
        _check_classes("the real images", held_out, images.classes, names)
    return cards, images, tokens


def _check_classes(what: str, where: str, found: tuple[str, ...], names: tuple[str, ...]) -> None:
    if found == names:
        return
    label = next((n for n, (one, other) in enumerate(zip(found, names, strict=False)) if one != other), None)
    number = f"{len(found)} and not {len(names)}"
    difference = number if label is None else f"label {label} is {found[label]!r} and not {names[label]!r}"
    raise UsageError(
        f"{what} at {where} have other classes than the generator was trained on ({difference}): "
        "they cannot be compared; use the images of this run, and train the judge on them"
    )


def timm_teacher(config: RunConfig) -> str | None:
    """The published network that is the teacher, if one is."""
    return config.teacher.network if config.teacher and not config.given("teacher") else None


def networks_of(config: RunConfig, cards: dict[str, Card]) -> dict[str, FeatureNetworkConfig]:
    """The networks that look at images, by slot: teacher, judge, inception, and others by their number."""
    found: dict[str, FeatureNetworkConfig] = {}
    timm = timm_teacher(config)
    if timm is not None:
        found[TEACHER] = TimmNetwork(kind="timm", network=timm)
    for name in (TEACHER, JUDGE):
        if name in cards:
            found[name] = ClassifierNetwork(kind="classifier", uri=config.product(name))
    if config.evaluation.inception is not None:
        found[INCEPTION] = config.evaluation.inception
    return found | {f"network{number}": each for number, each in enumerate(config.evaluation.networks)}


def open_slots_of(networks: dict[str, FeatureNetworkConfig], device: torch.device) -> tuple[Slot, ...]:
    """The networks with what they are, which only loading them shows.

    Raises:
        UsageError: if one is not there, or is not what it should be.
    """
    from trainer.evaluation.networks.feature_networks import open_network

    found = []
    for name, config in networks.items():
        network = open_network(config, device)
        found.append(Slot(name, config, network.identity(), network.is_fid))
    return tuple(found)


def judges_of(slots: Sequence[Slot], names: Sequence[str]) -> list[Judge]:
    """Classifiers that say which class an image is: the run's own, and torchvision's if they know all classes.

    Of another one a line says why it gives features alone.

    Args:
        slots: of the networks.
        names: of the run's classes.
    """
    from trainer.evaluation.networks.imagenet_classes import imagenet_labels
    from trainer.evaluation.networks.published_classifiers import categories_of

    found = [Judge(slot) for slot in slots if slot.name == JUDGE]
    for slot in slots:
        if not isinstance(slot.config, TorchvisionNetwork):
            continue
        try:
            found.append(Judge(slot, imagenet_labels(names, categories_of(slot.config))))
        except ValueError as error:
            console().print(f"{slot.identity['name']}: {error}, so it judges no classes", markup=False)
    return found


def drawn_set(config: RunConfig, sampler: Sampler, count: int) -> DrawnSet:
    """Images that the run's generator draws, spread evenly over the classes that it was trained on."""
    from trainer.stages.trained_generator import GeneratorSource, has_average

    source = GeneratorSource(storage.absolute(config.product("generator")))
    sampling = config.sampling.model_copy(update={"ema": config.sampling.ema and has_average(source), "classes": None})
    labels = plan_of(range(len(sampler.class_names)), count)
    made_by = made_by_of(sampling, config.seed, sampler, sampler.device.type)
    plan = SamplePlan(config.run, "npz", labels, 1, made_by)
    tokenizer = storage.absolute(config.product("tokenizer"))
    known = fingerprints(sampler, sampling.ema)
    work = SampleWork(plan, source, tokenizer, sampling, config.seed, known, config.cluster.gpus_per_worker)
    return DrawnSet(work, config.evaluation.rounding, sampler)
