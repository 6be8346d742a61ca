"""What comes of a run: samples, an evaluation, a report."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.config import RunConfig
from cluster.terminal import console
from data_pipeline import storage, weights
from data_pipeline.preflight import check_images, check_tokens

if TYPE_CHECKING:
    import torch

    from data_pipeline.node_cache import NodeCache
    from trainer.evaluation import RealImages
    from trainer.sampler import Sampler

_PIXELS_WIDE = 96  # of a sample in a grid, so that small images can be judged
_RECONSTRUCTED = 12


def _device(config: RunConfig) -> torch.device:
    import torch

    from trainer.device import driver_device

    torch.set_num_threads(os.cpu_count() or 1)
    device, note = driver_device(config.cluster.gpus_per_worker)
    if note:
        console().print(note)
    return device


def _export(config: RunConfig, stage: str) -> str:
    return storage.join(config.folder(stage), "export")


def _sampler(config: RunConfig, device: torch.device) -> Sampler:
    from trainer.sampler import Sampler

    return Sampler.load(
        _export(config, "generator"), _export(config, "tokenizer"), config.sampling, config.seed, device
    )


def _class_names(config: RunConfig) -> list[str]:
    from data_pipeline.manifest import TokenManifest

    return list(TokenManifest.read(config.folder("tokens")).classes)


def sample(config: RunConfig) -> int:
    """Draw `samples_per_class` images of each class into samples/grid.png. Returns their number.

    Raises:
        UsageError: if there is no generator yet, or it does not belong to the tokenizer.
    """
    weights.read_card(_export(config, "generator"), "generator")
    import torch

    from trainer.images import image_grid, to_png, to_uint8

    sampler = _sampler(config, _device(config))
    classes, each = sampler.classes(), config.sampling.samples_per_class
    label_N = torch.tensor(classes).repeat_interleave(each)
    pixels = np.concatenate([to_uint8(part) for part in sampler.draw(label_N)])
    names = _class_names(config)
    upscale = max(1, _PIXELS_WIDE // pixels.shape[1])
    grid = image_grid(pixels, each, upscale=upscale, row_labels=[names[c] for c in classes])
    path = storage.join(config.run, "samples", "grid.png")
    storage.write_bytes(path, to_png(grid))
    fingerprints = {name: card.fingerprint() for name, card in sampler.cards.items()}
    record = {"sampling": config.sampling.model_dump(mode="json"), "seed": config.seed, "fingerprints": fingerprints}
    storage.write_json(storage.join(config.run, "samples", "samples.json"), record)
    console().print(f"sample: {len(pixels)} images in {path}")
    return len(pixels)


def _cache(config: RunConfig) -> NodeCache:
    from data_pipeline.node_cache import NodeCache

    return NodeCache(config.data.reading.cache_dir, config.data.reading.cache_bytes)


def evaluate(config: RunConfig, held_out: str) -> int:
    """Write evaluation.json and samples/reconstructions.png. Returns the number of samples judged.

    Raises:
        UsageError: if a network that is needed is not there.
    """
    weights.read_card(_export(config, "generator"), "generator")
    images, tokens = check_images(held_out), check_tokens(config.folder("tokens"))
    from data_pipeline.token_dataset import TokenShards
    from trainer import evaluation
    from trainer.teacher import load_classifier, load_teacher

    device = _device(config)
    sampler = _sampler(config, device)
    size = config.tokenizer.model.image_size
    real = evaluation.RealImages.load(held_out, size, config.data.fit, config.evaluation.samples, device)
    teacher = load_teacher(config.teacher.timm, _export(config, "teacher"), device) if config.teacher else None
    judge = load_classifier(_export(config, "judge"), "judge", device) if config.evaluation.judge else None
    record: dict[str, Any] = {
        "reconstruction": evaluation.evaluate_tokenizer(sampler.tokenizer, teacher, real),
        "generation": evaluation.evaluate_generator(sampler, teacher, judge, real, config.evaluation.samples),
        "codebook_use": evaluation.codebook_use(TokenShards(config.folder("tokens"), _cache(config))),
        "class_names": list(tokens.classes),
        "fingerprints": {name: card.fingerprint() for name, card in sampler.cards.items()}
        | {"tokens": tokens.fingerprint, "real_images": images.fingerprint},
        "sampling": config.sampling.model_dump(mode="json") | {"seed": config.seed},
    }
    storage.write_json(storage.join(config.run, "evaluation.json"), record)
    _write_reconstructions(config, sampler, real)
    _print_summary(record)
    return config.evaluation.samples


def _write_reconstructions(config: RunConfig, sampler: Sampler, real: RealImages) -> None:
    import torch

    from trainer.images import image_grid, to_png, to_uint8

    originals = real.image_NCHW[:_RECONSTRUCTED]
    scales = config.tokenizer.model.scales
    with torch.inference_mode():
        tokens_BLF = sampler.tokenizer.tokenize(originals)
        columns = [originals] + [sampler.tokenizer.reconstruct(tokens_BLF, n + 1) for n in range(len(scales))]
    pixels = to_uint8(torch.stack(columns, 1).flatten(0, 1))
    labels = ["original"] + [f"{n} scale{'s' * (n > 1)}" for n in range(1, len(scales) + 1)]
    grid = image_grid(pixels, len(columns), upscale=max(1, _PIXELS_WIDE // pixels.shape[1]), column_labels=labels)
    storage.write_bytes(storage.join(config.run, "samples", "reconstructions.png"), to_png(grid))


def _print_summary(record: dict[str, Any]) -> None:
    reconstruction, generation = record["reconstruction"], record["generation"]
    errors = ", ".join(f"{error:.4f}" for error in reconstruction["mse_per_scale"])
    finest = ", ".join(f"{branch[-1]:.0%}" for branch in record["codebook_use"])
    lines = [f"reconstruction error per number of scales: {errors}", f"codebook use at the finest scale: {finest}"]
    if generation["frechet_distance"] is not None:
        lines.append(
            "Fréchet distance in the teacher's feature space: "
            f"reconstruction {reconstruction['frechet_distance']:.3f}, generation {generation['frechet_distance']:.3f}"
        )
    if generation["class_accuracy"] is not None:
        lines.append(
            f"judge: {generation['class_accuracy']:.1%} of {generation['samples']} samples are of the asked class "
            f"(it is right on {generation['judge_accuracy_on_real']:.1%} of real images)"
        )
    console().print("\n".join(lines))


def report(config: RunConfig) -> int:
    """Write report.html. Returns 1, the pages written."""
    from trainer.report import write_report

    console().print(f"report: {write_report(config.run)}")
    return 1
