"""Convolutional tokenizers from the tokenizer's stage through an export to tokens, sampled tokens and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from data_pipeline.shards.halves import DECODE, ENCODE, half_fingerprints, halves_of
from data_pipeline.shards.weights import write_weights
from data_pipeline.tokens.tokenizing import encoder_of
from model.config import MaskgitVqganConfig, NextScaleConfig, VqganConfig
from model.families import build_generator, build_tokenizer
from model.protocols import SamplingPlan
from model.tokenizers.vqgan import ConvolutionalTokenizer
from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
from trainer.inference.tokenizer import load_tokenizer
from trainer.networks import load_forcing
from trainer.stages.guides import Guides
from trainer.stages.tokenizer import TokenizerStage

CPU = torch.device("cpu")
QUANTIZER = {"codebook_size": 32, "code_dim": 6}
HALF: dict[str, Any] = {"widths": (8, 16), "blocks": (1,), "norm_groups": 4}
PLAIN = HALF | {"attention_levels": 0, "middle_attention": False}
STRIDED = PLAIN | {"middle_blocks": 0, "residual": "3x3-1x1"}
CONFIGS = {
    "published": VqganConfig.model_validate(
        {"image_size": 8, "scales": (4,), "quantizer": QUANTIZER, "latent_width": 12, "encoder": HALF, "decoder": HALF}
    ),
    "scales and branches": VqganConfig.model_validate(
        {
            "image_size": 14,
            "branches": 2,
            "scales": (1, 2, 4),
            "quantizer": QUANTIZER,
            "quantization_kernel": 0,
            "encoder": STRIDED | {"downsampling": "strided"},
            "decoder": STRIDED | {"upsampling": "transposed"},
        }
    ),
    "maskgit": MaskgitVqganConfig.model_validate(
        {
            "image_size": 8,
            "scales": (4,),
            "quantizer": QUANTIZER | {"lookup": "euclidean"},
            "encoder": PLAIN | {"downsampling": "pooled", "shortcut": "branch", "residual_bias": False},
            "decoder": PLAIN | {"shortcut": "branch", "residual_bias": False},
        }
    ),
}


class PlainEngine:
    """torch's AdamW, as an engine of one micro-batch."""

    accumulation = 1

    def __init__(self, module: nn.Module) -> None:
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()

    def accumulate(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()


def quarters(side: int, batch: int = 16) -> Tensor:
    """Images of four plain quarters, uint8."""
    colours = torch.randint(256, (batch, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return colours.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)


def trained(config: Any) -> tuple[ConvolutionalTokenizer, list[float]]:
    """A tokenizer after some steps of its stage, and the reconstruction's error at each."""
    torch.manual_seed(0)
    section = TokenizerStageConfig(
        model=config, loss=TokenizerLossConfig(), trainer=TrainerConfig(steps=40, global_batch=16)
    )
    network = cast("ConvolutionalTokenizer", build_tokenizer(config))
    stage = TokenizerStage.without_data(section, network, Guides(section.loss, None), CPU)
    engines = {stage.exported: PlainEngine(network)}
    batch = replace(stage.blank_batch(16), pixels_BCHW=quarters(config.image_size))
    errors = [float(stage.step([batch], cast("Any", engines), 1.0)["reconstruction"]) for _ in range(40)]
    return network.eval(), errors


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_trained_tokenizer_serves_as_the_export_that_it_becomes(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    network, errors = trained(config)
    pixels_BCHW = quarters(config.image_size).float() / 127.5 - 1
    assert errors[-1] < 0.8 * float(pixels_BCHW.var()) < errors[0]
    described = config.model_dump(mode="json")
    write_weights(str(tmp_path), "tokenizer", described, {"model": network.state_dict()}, {}, halves=halves_of(network))
    loaded = load_tokenizer(str(tmp_path)).network
    tokens_BLF = torch.from_numpy(encoder_of(loaded, "fp32", "cpu")(pixels_BCHW.numpy()))
    assert torch.equal(tokens_BLF, network.tokenize(pixels_BCHW))
    assert len(tokens_BLF.unique()) > 3
    assert torch.equal(loaded.detokenize(tokens_BLF), network.detokenize(tokens_BLF))


def test_sampled_tokens_become_images(tmp_path: Path) -> None:
    config = CONFIGS["scales and branches"]
    network = cast("ConvolutionalTokenizer", build_tokenizer(config)).eval()
    write_weights(str(tmp_path), "tokenizer", config.model_dump(mode="json"), {"model": network.state_dict()}, {})
    forcing = load_forcing(str(tmp_path), CPU)
    generator: Any = build_generator(
        NextScaleConfig(num_classes=2, depth=1, width=8, heads=1), config.layout, config.forcing_width
    )
    plan = SamplingPlan(torch.zeros(2, dtype=torch.int64), torch.rand(2, 21, 2))
    tokens_BLF = generator.eval().sample(plan, forcing)
    image_BCHW = network.detokenize(tokens_BLF)
    assert image_BCHW.shape == (2, 3, 14, 14)
    assert len(tokens_BLF.unique()) > 3


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_outlive_another_decoder_and_no_other_encoder(name: str) -> None:
    config, network = CONFIGS[name], cast("ConvolutionalTokenizer", build_tokenizer(CONFIGS[name]))
    names = halves_of(network)
    assert names is not None

    def fingerprints(changed: str) -> dict[str, str]:
        state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        if changed:
            state[changed] += 1
        return half_fingerprints(config.model_dump(mode="json"), state, names)

    before = fingerprints("")
    for changed, half in (("decoder.end.bias", ENCODE), ("encoder.end.bias", DECODE)):
        after = fingerprints(changed)
        assert [key for key in before if before[key] == after[key]] == [half]
