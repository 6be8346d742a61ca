"""Sampling of many positions, planned from the traces of a few."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from data_pipeline.config import ReadingConfig, TokensConfig
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.config.generators import GeneratorConfig, NextTokenConfig
from model.config.masked import BertConfig, MaskedConfig
from model.config.random_order import RandomOrderConfig
from trainer.config import (
    GeneratorStageConfig,
    SamplingConfig,
    TokenizerLossConfig,
    TokenizerStageConfig,
    TrainerConfig,
)
from trainer.planning import forward_trace, long_sampling
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.forward_trace import ForwardTrace, trace_sampling
from trainer.planning.operation import Operation
from trainer.planning.roofline import fuse

VIT = ViTConfig(width=32, depth=1, heads=2)
SIDE = 4
SIZES: dict[str, Any] = {"num_classes": 4, "depth": 1, "width": 32, "heads": 2}
MODELS: dict[str, GeneratorConfig] = {
    "random": RandomOrderConfig(**SIZES),
    "next-token": NextTokenConfig(**SIZES),
}


def traced(model: GeneratorConfig, **sampling: Any) -> ForwardTrace:
    tokenizer = ImageFolderConfig(
        image_size=16,
        patch_size=4,
        encoder=VIT,
        decoder=VIT,
        scales=(SIDE,),
        dropout_min_scales=1,
        quantizer=VectorConfig(codebook_size=16, code_dim=4),
    )
    trainer = TrainerConfig(steps=1, global_batch=2)
    configs = StageConfigs(
        TokenizerStageConfig(model=tokenizer, loss=TokenizerLossConfig(), trainer=trainer),
        GeneratorStageConfig(model=model, trainer=trainer),
        None,
        TokensConfig(),
        ReadingConfig(),
    )
    return trace_sampling(configs, SamplingConfig(guidance=2.0, **sampling), 3, "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["next-token", "random"])
def test_a_few_steps_continued_are_all_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = traced(MODELS[kind])
    monkeypatch.setattr(forward_trace, "FEW", (4, SIDE**2))
    full = traced(MODELS[kind])
    assert [op.name for op in short.operations] == [op.name for op in full.operations]
    for of in ("flops", "exact_flops"):
        found, expected = (sum(getattr(op, of) for op in trace.operations) for trace in (short, full))
        assert found == expected
    moved, expected = (sum(op.kernel.bytes for op in trace.operations) for trace in (short, full))
    assert moved == pytest.approx(expected, rel=0.01)
    fused, expected = (sum(op.kernel.bytes for op in fuse(trace.operations)) for trace in (short, full))
    assert fused == pytest.approx(expected, rel=0.02)
    assert not short.syncs


@pytest.mark.slow
def test_the_orders_options_are_those_of_the_config() -> None:
    model = MaskedConfig(num_classes=4, backbone=BertConfig(depth=1, width=32, heads=2))
    kernels = {
        steps: Counter(op.name for op in traced(model, order={"steps": steps}).operations)["addmm"]
        for steps in (1, 2, 5)
    }
    assert kernels[5] - kernels[2] == 3 * (kernels[2] - kernels[1]) > 0


@pytest.mark.slow
def test_products_are_in_the_precision_of_the_config() -> None:
    fine, half = (traced(MODELS["next-token"], precision=each).operations for each in ("fp32", "bf16"))
    products = [{op.dtype for op in each if op.name in {"mm", "addmm"}} for each in (fine, half)]
    assert products == [{"float32"}, {"bfloat16"}]


def test_steps_that_differ_are_refused() -> None:
    made = [Operation("forward", f"operation {number}", "float32", 0, 0, (), ()) for number in range(30)]
    with pytest.raises(ValueError, match="steps of sampling are not alike: trace all of them"):
        long_sampling.continued(made[:20], made, 100)
