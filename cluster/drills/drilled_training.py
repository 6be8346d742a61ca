"""What the drill of training works on: a small network of the chosen kind, and all that it is trained from.

A generator has random tokens, and the tokenizer that they speak of. A tokenizer has images, a teacher, and every term
of the loss that depends on the global batch; its discriminator starts between two checkpoints.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cluster.drills.drilled_data import garments, jpeg, write_tokenizer
from cluster.drills.training_blows import CHECKPOINT_EVERY, STEPS, WORKERS
from data_pipeline.errors import UsageError
from data_pipeline.shards.image_shards import ImageSample, finish_images, read_indexes, write_image_shard
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.shards.weights import read_card, write_weights
from model.config import ClassifierConfig, ImageFolderConfig
from model.families import generator_families

SAMPLES, SHARDS, CLASSES = 240, 3, 10
GLOBAL_BATCH = 16
"""40 steps of it are two and two thirds epochs."""
TOKENIZER = "tokenizer"
"""The network that is no generator."""
START = 2 * CHECKPOINT_EVERY + 2
"""Steps before the discriminator's first."""
_IDLE = {"steps": 1, "global_batch": 8}
_SIDE = 32


def networks() -> list[str]:
    """What can be trained: `TOKENIZER`, and the kinds of generators."""
    return [TOKENIZER, *generator_families()]


def stage_of(network: str) -> str:
    """The stage that trains it: its folder, and the end of its command's name.

    Raises:
        UsageError: if there is no such network.
    """
    if network not in networks():
        raise UsageError(f"there is no network {network!r} to train: choose one of {', '.join(networks())}")
    return TOKENIZER if network == TOKENIZER else "generator"


def write_training(folder: Path, seed: int, network: str = "next-scale") -> Path:
    """Write inputs and config.yaml into a folder; the same seed gives the same bytes.

    Args:
        folder: there may be something in it, but for tokenizer/, tokens/, images/, teacher/ and config.yaml.
        seed: of all that is drawn.
        network: one of `networks`.

    Returns:
        The config. It has to be given `run`, for a generator with the tokenizer's export (tokenizer/) below it, and
        the ZeRO stage.
    """
    trained = _tokenizer_sections(folder, seed) if network == TOKENIZER else _generator_sections(folder, seed, network)
    config: dict[str, Any] = {
        "run": "set by each command",
        "seed": seed,
        "data": {
            "source": {"kind": "folder", "path": str(folder / "none")},
            "reading": {"cache_dir": str(folder / "cache")},
        },
        **trained,
        "tracking": {"wandb": "off"},
        "cluster": {"workers": WORKERS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _trainer() -> dict[str, Any]:
    return {
        "steps": STEPS,
        "global_batch": GLOBAL_BATCH,
        "warmup_steps": 4,
        "weight_decay": 0.05,
        "gradient_clipping": 1.0,
        "ema_decay": 0.95,
        "checkpoint_every": CHECKPOINT_EVERY,
        "log_every": 1,
    }


def _generator_sections(folder: Path, seed: int, kind: str) -> dict[str, Any]:
    model = write_tokenizer(folder / "tokenizer", seed)
    _write_tokens(folder / "tokens", str(folder / "tokenizer"), seed)
    return {
        "tokenizer": {"model": model, "trainer": _IDLE},
        "tokens": {"output": str(folder / "tokens")},
        "generator": {"model": small_generator(kind), "trainer": _trainer()},
    }


def small_generator(kind: str) -> dict[str, Any]:
    """The config of a generator, with what is random in its training; of each setting, if its family has it."""
    sizes: dict[str, Any] = {"depth": 2, "width": 96, "heads": 2}
    settings = {"num_classes": CLASSES, "rotary": "line", "backbone": sizes} | sizes
    settings |= {"random_until": STEPS // 4, "scan_from": 3 * STEPS // 4}
    known = generator_families()[kind].config.model_fields
    if "dropout" not in known and "backbone" not in known:
        settings["drop_path"] = 0.1
    return {"kind": kind} | {name: value for name, value in settings.items() if name in known}


def _tokenizer_sections(folder: Path, seed: int) -> dict[str, Any]:
    """Two micro-batches a step, so that it looks at each before."""
    vit = {"width": 32, "depth": 1, "heads": 2, "drop_path": 0.1}
    model = {
        "image_size": _SIDE,
        "patch_size": 8,
        "encoder": vit,
        "decoder": vit,
        "scales": [1, 2, 4],
        "dropout_min_scales": 1,
        "quantizer_dropout": 0.4,
        "quantizer": {"codebook_size": 64, "code_dim": 8, "entropy": 0.1},
        "teacher_width": _write_teacher(folder / "teacher", seed),
    }
    _write_images(folder / "images")
    trained = {
        "model": model,
        "loss": {
            "perceptual": [{"kind": "teacher", "weight": 0.2}],
            "semantic": {"weight": 0.1, "branches": "first"},
            "adversarial": {
                "discriminator": {"kind": "patch", "width": 8, "layers": 2, "group": 4},
                "weight": 0.5,
                "start": START,
                "adaptive": True,
                "lecam": {},
                "augment": {"probability": 0.5},
                "warmup_steps": 4,
            },
        },
        "dead_code_steps": CHECKPOINT_EVERY - 1,
        "trainer": _trainer() | {"micro_batch": GLOBAL_BATCH // WORKERS // 2},
    }
    idle = {"num_classes": CLASSES, "depth": 1, "width": 32, "heads": 2}
    return {
        "inputs": {"images": str(folder / "images"), "teacher": str(folder / "teacher")},
        "tokenizer": trained,
        "generator": {"model": idle, "trainer": _IDLE},
    }


def _write_images(uri: Path) -> None:
    """A complete data set of images."""
    images = islice(garments(), SAMPLES)
    samples = [
        ImageSample(f"{number:05d}", label, "jpg", jpeg(pixels, _SIDE, _SIDE, quality=90))
        for number, (pixels, label) in enumerate(images)
    ]
    size = SAMPLES // SHARDS
    written = [
        write_image_shard(str(uri), f"images-{shard:05d}.tar", samples[shard * size :][:size], f"the drill's {shard}")
        for shard in range(SHARDS)
    ]
    classes = tuple(f"class_{number}" for number in range(CLASSES))
    finish_images(str(uri), read_indexes(str(uri), written), classes=classes, split="train")


def _write_teacher(folder: Path, seed: int) -> int:
    """A classifier's export with weights drawn from the seed. Returns the width of its features."""
    import torch

    from model.classifier import Classifier

    config = ClassifierConfig(image_size=_SIDE, num_classes=CLASSES, widths=(16, 32))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(config)
    write_weights(str(folder), "teacher", config.model_dump(mode="json"), {"model": network.state_dict()}, {})
    return network.feature_width


def _write_tokens(uri: Path, tokenizer: str, seed: int) -> None:
    """A complete data set of tokens that no image has."""
    card = read_card(tokenizer, "tokenizer")
    config = ImageFolderConfig.model_validate(card.config)
    layout, drawn, size = config.layout, np.random.default_rng(seed), SAMPLES // SHARDS
    shards = []
    for number in range(SHARDS):
        shape = (size, 1, layout.positions, layout.folds)
        tokens_NWLF = drawn.integers(layout.vocabulary(), size=shape, dtype=np.uint16)
        label = drawn.integers(CLASSES, size=size, dtype=np.int32)
        key = np.array([f"{number:02d}-{sample:05d}" for sample in range(size)], dtype=np.bytes_)
        block = TokenBlock(tokens_NWLF, label, key)
        shards.append(write_token_shard(str(uri), f"tokens-{number:05d}.tar", block, {"seed": seed}))
    TokenManifest.build(
        samples=SAMPLES,
        classes=tuple(f"class_{number}" for number in range(CLASSES)),
        layout=layout,
        views=("center",),
        image_size=config.image_size,
        fit="crop",
        tokenizer=TokenizerRecord(encoder=card.encoder(), config=card.encoder_config()),
        source=f"drawn from seed {seed}",
        software={},
        shards=tuple(shards),
    ).write(str(uri))
