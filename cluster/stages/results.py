"""What comes of a run: samples, an evaluation, a report.

Everything is checked before anything is loaded, and what was asked is recorded beside what came of it:

samples/samples.json    what samples/grid.png was drawn with, and by which networks
evaluation.json         the same of the samples that were judged; and what samples/reconstructions.png shows

An older record is removed before its picture is replaced, and names the picture's sha256: so a record that is there
belongs to the picture beside it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.config.run import RunConfig
from cluster.stages.inputs import held_out_images
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.text.counted import counted
from data_pipeline.tools.preflight import check_images, check_tokens
from trainer.evaluation.sampler import UNCONDITIONAL, Sampler, asked_classes, check_order, class_names, read_cards
from trainer.registry import FOLDERS

if TYPE_CHECKING:
    import torch

    from data_pipeline.node.node_cache import NodeCache
    from data_pipeline.shards.manifest import ImageManifest, TokenManifest
    from data_pipeline.shards.token_dataset import TokenShards
    from data_pipeline.shards.token_windows import TokenWindows
    from data_pipeline.shards.weights import Card
    from model.protocols import Tokenizer
    from trainer.evaluation.judging import RealImages

_PIXELS_WIDE = 96  # of a sample in a grid, so that small images can be judged
_RECONSTRUCTED = 12


def _device(config: RunConfig) -> torch.device:
    import torch

    from trainer.engine.device import driver_device

    torch.set_num_threads(os.cpu_count() or 1)
    device, note = driver_device(config.cluster.gpus_per_worker)
    if note:
        console().print(note)
    return device


def _read_cards(config: RunConfig) -> dict[str, Card]:
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


def _sampler(config: RunConfig, device: torch.device) -> Sampler:
    generator, tokenizer = config.product("generator"), config.product("tokenizer")
    return Sampler.load(generator, tokenizer, config.sampling, config.seed, device)


def _places(config: RunConfig, products: Iterable[str]) -> dict[str, str]:
    """Where the products are that the run was given, for the record."""
    return {name: storage.absolute(config.product(name)) for name in products if config.given(name)}


def _asked(config: RunConfig) -> dict[str, Any]:
    return config.sampling.model_dump(mode="json") | {"seed": config.seed}


def _fingerprints(cards: dict[str, Card]) -> dict[str, str]:
    return {name: card.fingerprint() for name, card in cards.items()}


def _commit(run: str, name: str, record: dict[str, Any], picture: str, png: bytes) -> None:
    """Write a picture, and then the record of it."""
    storage.remove_file(storage.join(run, name))
    storage.write_bytes(storage.join(run, picture), png)
    storage.write_json(storage.join(run, name), record | {"files": {picture: storage.sha256(png)}})


def sample(config: RunConfig) -> int:
    """Draw `samples_per_class` images of each class into samples/grid.png. Returns their number.

    Raises:
        UsageError: if there is no generator yet, it does not belong to the tokenizer, or does not know a class.
    """
    cards = _read_cards(config)
    classes, each = asked_classes(cards["generator"], config.sampling), config.sampling.samples_per_class
    names = [class_names(cards["generator"])[label] for label in classes]
    import torch

    from trainer.evaluation.images import image_grid, to_png, to_uint8

    sampler = _sampler(config, _device(config))
    label_N = torch.tensor(classes).repeat_interleave(each)
    pixels = np.concatenate([to_uint8(part) for part in sampler.draw(label_N)])
    grid = image_grid(pixels, each, upscale=max(1, _PIXELS_WIDE // pixels.shape[1]), row_labels=names)
    record = {"sampling": _asked(config), "class_names": names, "fingerprints": _fingerprints(sampler.cards)}
    record["inputs"] = _places(config, sampler.cards)
    _commit(config.run, "samples/samples.json", record, "samples/grid.png", to_png(grid))
    console().print(f"sample: {counted(len(pixels), 'image')} in {storage.join(config.run, 'samples', 'grid.png')}")
    return len(pixels)


def _node_cache(config: RunConfig) -> NodeCache:
    from data_pipeline.node.node_cache import NodeCache

    return NodeCache(config.data.reading.cache_dir, config.data.reading.cache_bytes)


def _open_tokens(config: RunConfig) -> TokenShards | TokenWindows:
    from data_pipeline.shards.token_windows import open_tokens

    reading = config.data.reading
    return open_tokens(config.product("tokens"), _node_cache(config), reading.tokens, reading.shuffle_window)


def _check_inputs(config: RunConfig, held_out: str) -> tuple[dict[str, Card], ImageManifest, TokenManifest]:
    """What is needed to judge a run: the cards of its networks, real images, tokens; all of the same classes."""
    cards = _read_cards(config)
    names = class_names(cards["generator"])
    if config.has("teacher") and _timm(config) is None:
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


def _timm(config: RunConfig) -> str | None:
    """The published network that is the teacher, if one is."""
    return config.teacher.network if config.teacher and not config.given("teacher") else None


def evaluate(config: RunConfig) -> int:
    """Write evaluation.json and samples/reconstructions.png. Returns the number of samples judged.

    Raises:
        UsageError: if something that is needed is not there, or does not belong to the rest.
    """
    held_out = held_out_images(config)
    is_held_out = held_out != storage.absolute(config.product("images"))
    if not is_held_out:
        console().print("evaluate: no images were held out, so it compares with those that were trained on")
    cards, images, tokens = _check_inputs(config, held_out)
    from trainer.evaluation import judging as evaluation
    from trainer.evaluation.teacher import load_classifier, load_teacher
    from trainer.evaluation.tokenizer_record import token_record

    device = _device(config)
    sampler = _sampler(config, device)
    size, samples = cards["tokenizer"].config["image_size"], config.evaluation.samples
    real = evaluation.RealImages.load(held_out, size, config.data.fit, samples, device, _node_cache(config))
    timm = _timm(config)
    teacher = load_teacher(timm, config.product("teacher"), device) if config.has("teacher") else None
    judge = load_classifier(config.product("judge"), "judge", device) if "judge" in cards else None
    layout, tokens_read = sampler.tokenizer.layout, _open_tokens(config)
    record: dict[str, Any] = {
        "reconstruction": evaluation.evaluate_tokenizer(sampler.tokenizer, teacher, real),
        "generation": evaluation.evaluate_generator(sampler, teacher, judge, real, samples),
        "codebook_use": evaluation.codebook_use(tokens_read),
        "tokens": token_record(tokens_read),
        **_beside_the_tokenizer(config, sampler.tokenizer, held_out, images, device),
        "class_names": list(sampler.class_names),
        "fingerprints": _fingerprints(cards | sampler.cards)
        | ({"teacher": timm} if timm else {})
        | {"tokens": tokens.fingerprint, "real_images": images.fingerprint},
        "inputs": _places(config, FOLDERS),
        "sampling": _asked(config),
        "tokenizer": layout.to_json() | {"fold_names": list(sampler.tokenizer.config.fold_names)},
        "real_images": {"samples": len(real.image_NCHW), "fit": config.data.fit, "held_out": is_held_out},
    }
    _commit(config.run, "evaluation.json", record, "samples/reconstructions.png", _reconstructions(sampler, real))
    _print_summary(record)
    return samples


def _beside_the_tokenizer(
    config: RunConfig, tokenizer: Tokenizer, held_out: str, images: ImageManifest, device: torch.device
) -> dict[str, Any]:
    """What its bits are worth without it, and what linear probes find in its branches, as far as is asked for.

    Baselines that the last evaluation has of the same images, at the same bits, are taken from its record.
    """
    from trainer.evaluation import tokenizer_record as records
    from trainer.evaluation.baselines import images_needed

    asked, size, fit = config.evaluation, tokenizer.config.image_size, config.data.fit
    training_images = check_images(storage.absolute(config.product("images")))
    bits = records.bits_of_prefixes(tokenizer.layout, tokenizer.prefixes)
    most = records.most_images(size)
    counts = (min(training_images.samples, images_needed(size), most), min(images.samples, asked.samples, most))
    probed = min(asked.probe_images, most)
    fingerprints = (training_images.fingerprint, images.fingerprint)
    key = records.baseline_key(fingerprints, size, fit, counts, bits)
    known = _known_baselines(config.run, key) if asked.baselines else None
    needed = max(probed, counts[0] if asked.baselines and known is None else 0)
    load = functools.partial(records.LabelledPixels.load, size=size, fit=fit, cache=_node_cache(config))
    training, shown = (
        load(uri, most=count) for uri, count in ((config.product("images"), needed), (held_out, counts[1]))
    )
    found: dict[str, Any] = {"baselines": None, "probe": None}
    if asked.baselines:
        made = known or records.baseline_record(training.pixels_NHWC[: counts[0]], shown.pixels_NHWC, bits)
        found["baselines"] = made | {"key": key, "training_images": counts[0]}
    if asked.probe_images:
        found["probe"] = records.probe_record(tokenizer, training.first(probed), shown, device)
    return found


def _known_baselines(run: str, key: str) -> dict[str, Any] | None:
    """Those of the last evaluation, if they follow from the same."""
    try:
        record = storage.read_json(storage.join(run, "evaluation.json"))
    except (FileNotFoundError, UsageError):
        return None
    found = record.get("baselines") if isinstance(record, dict) else None
    return found if isinstance(found, dict) and found.get("key") == key else None


def _reconstructions(sampler: Sampler, real: RealImages) -> bytes:
    """A PNG of some originals beside what is made of each prefix of their tokens."""
    import torch

    from trainer.evaluation.images import image_grid, to_png, to_uint8

    originals = real.image_NCHW[:_RECONSTRUCTED]
    prefixes = sampler.tokenizer.prefixes
    with torch.inference_mode():
        tokens_BLF = sampler.tokenizer.tokenize(originals)
        columns = [originals] + [sampler.tokenizer.detokenize(tokens_BLF, keep) for keep in prefixes]
    pixels = to_uint8(torch.stack(columns, 1).flatten(0, 1))
    labels = ["original"] + [f"{keep} position{'s' * (keep > 1)}" for keep in prefixes]
    grid = image_grid(pixels, len(columns), upscale=max(1, _PIXELS_WIDE // pixels.shape[1]), column_labels=labels)
    return to_png(grid)


def _print_summary(record: dict[str, Any]) -> None:
    reconstruction, generation = record["reconstruction"], record["generation"]
    errors = ", ".join(f"{error:.4f}" for error in reconstruction["mse_of_prefixes"])
    finest = ", ".join(f"{branch[-1]:.0%}" for branch in record["codebook_use"])
    lines = [f"reconstruction error by positions kept: {errors}", f"codebook use of the last group: {finest}"]
    if record["baselines"] is not None:
        components = ", ".join(f"{each['mse']:.4f}" for each in record["baselines"]["components"])
        lines.insert(
            1,
            f"principal components at the same bits: {components}; the mean image: "
            f"{record['baselines']['mean_image']:.4f}",
        )
    if record["probe"] is not None:
        seen = ", ".join(f"{name} {share:.1%}" for name, share in record["probe"]["branches"].items())
        lines.append(f"a linear layer finds the class in: {seen}; in pixels {record['probe']['pixels']:.1%}")
    if generation["frechet_distance"] is not None:
        lines.append(
            "Fréchet distance in the teacher's feature space: "
            f"reconstruction {reconstruction['frechet_distance']:.3f}, generation {generation['frechet_distance']:.3f}"
        )
    if generation["class_accuracy"] is not None:
        samples = counted(generation["samples"], "sample is", "samples are")
        lines.append(
            f"judge: {generation['class_accuracy']:.1%} of {samples} of the asked class "
            f"(it is right on {generation['judge_accuracy_on_real']:.1%} of real images)"
        )
    console().print("\n".join(lines))


def report(config: RunConfig) -> int:
    """Write report.html. Returns 1, the pages written."""
    from trainer.report import write_report

    console().print(f"report: {write_report(config.run)}")
    return 1
