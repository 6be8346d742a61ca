"""A run whose tokenizer and generator have random weights: enough to be sampled from."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.weights import write_weights
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.tokenizers.imagefolder import ImageFolderTokenizer

VIT = ViTConfig(width=16, depth=1, heads=2, layer_scale=None)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=8,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
    dropout_min_scales=1,
)
GENERATOR = NextScaleConfig(num_classes=5, depth=1, width=16, heads=2)
NAMES = ("cat", "lion", "dog", "bird", "fish")


def write_run(run: Path, seed: int = 0) -> Path:
    """A run with a tokenizer and a generator of random weights, with averages that differ from them."""
    torch.manual_seed(seed)
    tokenizer = ImageFolderTokenizer(TOKENIZER)
    config, halves = TOKENIZER.model_dump(mode="json"), halves_of(tokenizer)
    files = {"model": tokenizer.state_dict()}
    card = write_weights(str(run / "tokenizer/export"), "tokenizer", config, files, {}, halves=halves)
    states = {}
    for name in ("model", "ema"):
        generator = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
        torch.nn.init.normal_(generator.head.weight)
        states[name] = generator.state_dict()
    both = {"generator": GENERATOR.model_dump(mode="json"), "layout": TOKENIZER.layout.to_json()}
    both |= {"forcing_width": TOKENIZER.forcing_width}
    lineage = {"tokenizer": card.encoder(), "tokens": "ab" * 32}
    write_weights(str(run / "generator/export"), "generator", both, states, lineage, classes=NAMES, steps=7)
    recorded = {"sampling": {"guidance": 1.5, "cpu_batch": 4}, "seed": 3}
    (run / "generator/config.yaml").write_text(yaml.safe_dump(recorded))
    return run
