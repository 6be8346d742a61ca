"""What the drill of training works on: random tokens, the tokenizer that they speak of, and a small generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cluster.drills.drilled_data import write_tokenizer
from cluster.drills.training_blows import CHECKPOINT_EVERY, STEPS, WORKERS
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.shards.weights import read_card
from model.config import ImageFolderConfig

SAMPLES, SHARDS, CLASSES = 240, 3, 10
GLOBAL_BATCH = 16
"""40 steps of it are two and two thirds epochs."""


def write_training(folder: Path, seed: int) -> Path:
    """Write tokenizer/, tokens/ and config.yaml into a folder; the same seed gives the same bytes.

    Returns:
        The config. It has to be given `run`, with the tokenizer's export below it, and `generator.trainer.zero_stage`.
    """
    model = write_tokenizer(folder / "tokenizer", seed)
    _write_tokens(folder / "tokens", str(folder / "tokenizer"), seed)
    idle = {"steps": 1, "global_batch": 8}
    trainer = {
        "steps": STEPS,
        "global_batch": GLOBAL_BATCH,
        "warmup_steps": 4,
        "weight_decay": 0.05,
        "gradient_clipping": 1.0,
        "ema_decay": 0.95,
        "checkpoint_every": CHECKPOINT_EVERY,
        "log_every": 1,
    }
    config: dict[str, Any] = {
        "run": "set by each command",
        "seed": seed,
        "data": {
            "source": {"kind": "folder", "path": str(folder / "none")},
            "reading": {"cache_dir": str(folder / "cache")},
        },
        "tokenizer": {"model": model, "trainer": idle},
        "tokens": {"output": str(folder / "tokens")},
        "generator": {
            "model": {"num_classes": CLASSES, "depth": 2, "width": 96, "heads": 2, "drop_path": 0.1},
            "trainer": trainer,
        },
        "tracking": {"wandb": "off"},
        "cluster": {"workers": WORKERS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


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
