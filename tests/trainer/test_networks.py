"""What a generator's training and its users read of exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.errors import CorruptShardError
from data_pipeline.shards.weights import write_weights
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.families import build_generator
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.networks import load_forcing, load_generator

VIT = ViTConfig(width=8, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=8,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    quantizer=VectorConfig(codebook_size=8, code_dim=4),
    dropout_min_scales=1,
)
CPU = torch.device("cpu")


def test_the_sums_are_those_of_the_average_by_which_the_images_were_tokenized(tmp_path: Path) -> None:
    network = ImageFolderTokenizer(TOKENIZER)
    state = network.state_dict()
    average = {name: tensor + 1 for name, tensor in state.items()}
    write_weights(str(tmp_path), "tokenizer", TOKENIZER.model_dump(mode="json"), {"model": state, "ema": average}, {})
    forcing = load_forcing(str(tmp_path), CPU)
    assert isinstance(forcing, FoldedQuantizer)
    torch.testing.assert_close(forcing.branch(1).quantizer.codebook, average["quantizer.branches.1.quantizer.codebook"])
    assert not any(parameter.requires_grad for parameter in forcing.parameters())


def test_a_card_of_a_generator_that_cannot_be_says_why(tmp_path: Path) -> None:
    config = NextScaleConfig(num_classes=2, depth=1, width=8, heads=1)
    network = build_generator(config, TOKENIZER.layout, TOKENIZER.forcing_width)
    assert isinstance(network, torch.nn.Module)
    described = {"generator": config.model_dump(mode="json"), "forcing_width": TOKENIZER.forcing_width}
    for name, groups in (("right", [1, 4]), ("wrong", [5])):
        layout = {"groups": groups, "vocabularies": [8, 8]}
        files = {"model": network.state_dict()}
        write_weights(str(tmp_path / name), "generator", described | {"layout": layout}, files, {})
    assert load_generator(str(tmp_path / "right"), True, CPU)[0].layout == TOKENIZER.layout
    with pytest.raises(CorruptShardError, match=r"wrong/card\.json: .*one scale of 5 positions"):
        load_generator(str(tmp_path / "wrong"), True, CPU)
