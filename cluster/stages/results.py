"""What comes of a run: samples, and a report of all of it. Its evaluation is in evaluating.py.

Everything is checked before anything is loaded, and what was asked is recorded beside what came of it:
samples/samples.json says what samples/grid.png was drawn with, and by which networks.

An older record is removed before its picture is replaced, and names the picture's sha256: so a record that is there
belongs to the picture beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.config.run import RunConfig
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.text.counted import counted
from trainer.evaluation.samples.sampler import Sampler, asked_classes, check_order, class_names, read_cards

if TYPE_CHECKING:
    import torch

    from data_pipeline.node.node_cache import NodeCache
    from data_pipeline.shards.weights import Card

PIXELS_WIDE = 96  # of a sample in a grid, so that small images can be judged


def device_of(config: RunConfig) -> torch.device:
    """The device on which this process draws and measures, with all its threads; says so where it is not a GPU."""
    import torch

    from trainer.engine.device import driver_device

    torch.set_num_threads(os.cpu_count() or 1)
    device, note = driver_device(config.cluster.gpus_per_worker)
    if note:
        console().print(note)
    return device


def check_cards(config: RunConfig) -> dict[str, Card]:
    """The cards of generator and tokenizer, which belong together and can be sampled from as the config says.

    Raises:
        UsageError: if not.
    """
    generator = config.product("generator")
    if not config.has("tokenizer"):
        made_by = weights.read_card(generator, "generator").lineage.get("tokenizer", "unknown")
        raise UsageError(
            f"the generator at {generator} draws tokens of tokenizer {str(made_by)[:16]}, and only that makes images "
            "of them: name its export as inputs.tokenizer. For tokens that were imported foldtrain has none"
        )
    cards = read_cards(generator, config.product("tokenizer"))
    check_order(generator, cards["generator"], config.sampling)
    return cards


def sampler_of(config: RunConfig, device: torch.device) -> Sampler:
    """Both networks, loaded."""
    generator, tokenizer = config.product("generator"), config.product("tokenizer")
    return Sampler.load(generator, tokenizer, config.sampling, config.seed, device)


def places(config: RunConfig, products: Iterable[str]) -> dict[str, str]:
    """Where the products are that the run was given, for the record."""
    return {name: storage.absolute(config.product(name)) for name in products if config.given(name)}


def asked(config: RunConfig) -> dict[str, Any]:
    """How images are drawn, for the record."""
    return config.sampling.record() | {"seed": config.seed}


def fingerprints_of(cards: dict[str, Card]) -> dict[str, str]:
    """Of networks, for the record."""
    return {name: card.fingerprint() for name, card in cards.items()}


def commit(run: str, name: str, record: dict[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Write pictures, PNG by their names, and then the record of them."""
    storage.remove_file(storage.join(run, name))
    for picture, png in pictures.items():
        storage.write_bytes(storage.join(run, picture), png)
    files = {picture: storage.sha256(png) for picture, png in pictures.items()}
    storage.write_json(storage.join(run, name), record | {"files": files})


def sample(config: RunConfig) -> int:
    """Draw `samples_per_class` images of each class into samples/grid.png. Returns their number.

    Raises:
        UsageError: if there is no generator yet, it does not belong to the tokenizer, or does not know a class.
    """
    cards = check_cards(config)
    classes, each = asked_classes(cards["generator"], config.sampling), config.sampling.samples_per_class
    names = [class_names(cards["generator"])[label] for label in classes]
    import torch

    from trainer.evaluation.images import image_grid, to_png, to_uint8

    sampler = sampler_of(config, device_of(config))
    label_N = torch.tensor(classes).repeat_interleave(each)
    pixels = np.concatenate([to_uint8(part) for part in sampler.draw(label_N)])
    grid = image_grid(pixels, each, upscale=max(1, PIXELS_WIDE // pixels.shape[1]), row_labels=names)
    record = {"sampling": asked(config), "class_names": names, "fingerprints": fingerprints_of(sampler.cards)}
    record["inputs"] = places(config, sampler.cards)
    commit(config.run, "samples/samples.json", record, {"samples/grid.png": to_png(grid)})
    console().print(f"sample: {counted(len(pixels), 'image')} in {storage.join(config.run, 'samples', 'grid.png')}")
    return len(pixels)


def node_cache(config: RunConfig) -> NodeCache:
    """Where this node keeps copies of indexes and shards."""
    from data_pipeline.node.node_cache import NodeCache

    return NodeCache(config.data.reading.cache_dir, config.data.reading.cache_bytes)


def report(config: RunConfig) -> int:
    """Write report.html. Returns 1, the pages written."""
    from trainer.report import write_report

    console().print(f"report: {write_report(config.run)}")
    return 1
