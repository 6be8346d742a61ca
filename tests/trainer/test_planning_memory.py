"""Predicted memory: its arithmetic, and what autograd really keeps of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from data_pipeline.config import ReadingConfig, TokensConfig
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.config import GeneratorStageConfig, TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.memory import Buckets, Held, rank_memory, snapshot_bytes
from trainer.planning.step_trace import MicroBatch, trace_micro_batch
from trainer.stages.generator import GeneratorStage
from trainer.stages.guides import Guides
from trainer.stages.tokenizer import TokenizerStage

Weights = tuple[int, ...]
VIT = ViTConfig(width=128, depth=2, heads=4)
TOKENIZER = ImageFolderConfig(
    image_size=64,
    patch_size=8,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2, 3, 4, 6, 8),
    quantizer=VectorConfig(codebook_size=1024),
)
GENERATOR = NextScaleConfig(num_classes=10, depth=4, width=256, heads=4)
BATCH = 4
NOTHING = Held(0, 0, 0, 0, 0)
SHAPES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20)


def trainer(**changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({"steps": 10, "global_batch": 64} | changes)


def weights_of(shapes: list[tuple[int, int]]) -> Weights:
    return tuple(rows * columns for rows, columns in shapes)


def small_buckets(stage: int) -> TrainerConfig:
    zero = {"reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000, "stage3_max_reuse_distance": 0}
    return trainer(zero_stage=stage, extra={"zero_optimization": zero})


@given(SHAPES, st.sampled_from([1, 2, 4, 8, 64]), st.sampled_from([0, 1, 2, 3]))
def test_the_parts_are_positive_and_hold_at_least_the_optimizer(
    shapes: list[tuple[int, int]], world: int, stage: int
) -> None:
    weights = weights_of(shapes)
    memory = rank_memory(weights, trainer(zero_stage=stage), world, NOTHING)
    assert all(size > 0 for size in memory.device.values())
    share = -(-sum(weights) // world) if stage else sum(weights)
    assert memory.device["AdamW moments"] == 2 * 4 * share


@given(SHAPES, st.sampled_from([2, 4, 8, 64]))
def test_with_small_buckets_stages_1_and_2_need_no_more_than_the_one_before(
    shapes: list[tuple[int, int]], world: int
) -> None:
    weights = weights_of([(rows * 100, columns) for rows, columns in shapes])
    needed = [rank_memory(weights, small_buckets(stage), world, NOTHING).device_bytes for stage in (0, 1, 2)]
    slack = 4 * (3 * 1000 + 2 * world)
    assert needed[1] <= needed[0] + slack + 4 * -(-sum(weights) // world)  # stage 1 has masters besides weights
    assert needed[2] <= needed[1] + slack


@given(st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_more_ranks_and_smaller_micro_batches_never_need_more(stage: int, world: int, micro: int) -> None:
    """As long as gradients are accumulated in any case: the first accumulation costs a copy of them."""
    weights = weights_of([(2000, 2000)] * 8)

    def size(ranks: int, samples: int) -> int:
        config = trainer(zero_stage=stage, micro_batch=samples)
        micro, _ = config.split_over(ranks)
        held = Held(10**6 * micro, 10**6 * micro, 12 * 10**5 * micro, 9 * 10**5 * micro, 10**6)
        return rank_memory(weights, config, ranks, held).device_bytes

    assert size(2 * world, micro) <= size(world, micro)
    assert size(world, micro) <= size(world, 8)


def test_the_reduce_bucket_is_no_larger_than_the_network() -> None:
    memory = rank_memory(weights_of([(1000, 1000)]), trainer(zero_stage=3), 2, NOTHING)
    assert memory.device["reduce bucket"] == 4 * 1_000_000


def test_a_reduce_bucket_that_is_asked_for_is_whole_on_a_gpu_and_as_far_as_it_is_used_on_a_cpu() -> None:
    weights = weights_of([(1000, 1000)])
    config = trainer(zero_stage=2, extra={"zero_optimization": {"reduce_bucket_size": 50_000_000}})
    on_gpu = rank_memory(weights, config, 2, NOTHING).device["reduce bucket"]
    on_cpu = rank_memory(weights, config, 2, NOTHING, touched_only=True).device["reduce bucket"]
    assert (on_gpu, on_cpu) == (4 * 2 * 50_000_000, 4 * 1_000_000)


def test_buckets_are_those_of_the_deepspeed_json() -> None:
    zero = {"reduce_bucket_size": 7, "stage3_param_persistence_threshold": 5, "sub_group_size": 9}
    found = Buckets.of(trainer(extra={"zero_optimization": zero}), 2, 1000)
    assert (found.reduce, found.persistence, found.sub_group) == (7, 5, 9)


def test_the_moving_average_and_the_snapshot_are_shared_out() -> None:
    weights = weights_of([(1000, 1000)])
    memory = rank_memory(weights, trainer(zero_stage=2, ema_decay=0.9), 4, NOTHING)
    assert memory.device["moving average"] == 10**6
    assert (
        memory.host == {"checkpoint snapshot": 4 * 10**6} == {"checkpoint snapshot": snapshot_bytes(10**6, 4, ema=True)}
    )


def test_offload_moves_masters_and_moments_to_the_host() -> None:
    memory = rank_memory(weights_of([(1000, 1000)]), trainer(zero_stage=2, offload="optimizer"), 2, NOTHING)
    assert "AdamW moments" not in memory.device
    assert memory.host["AdamW moments"] == 4 * 10**6


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of the 7 workers"):
        rank_memory(weights_of([(10, 10)]), trainer(), 7, NOTHING)


def configs(precision: str) -> StageConfigs:
    shared = TrainerConfig.model_validate({"steps": 1, "global_batch": BATCH, "precision": precision})
    tokenizer = TokenizerStageConfig(model=TOKENIZER, loss=TokenizerLossConfig(), trainer=shared)
    return StageConfigs(
        tokenizer, GeneratorStageConfig(model=GENERATOR, trainer=shared), None, TokensConfig(), ReadingConfig()
    )


def traced(stage: str, precision: str, **options: Any) -> MicroBatch:
    return trace_micro_batch(stage, configs(precision), BATCH, "cpu", warm=True, **options)


def real_stage(stage: str, precision: str) -> GeneratorStage | TokenizerStage:
    """With weights, on the CPU."""
    cpu, found = torch.device("cpu"), configs(precision)
    if stage == "train-tokenizer":
        assert found.tokenizer is not None
        return TokenizerStage.without_data(
            found.tokenizer, ImageFolderTokenizer(TOKENIZER), Guides(found.tokenizer.loss, None), cpu
        )
    assert found.generator is not None
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
    quantizer = FoldedQuantizer(TOKENIZER).eval().requires_grad_(requires_grad=False)
    return GeneratorStage.without_data(found.generator, network, quantizer, cpu)


def terms_of(stage: GeneratorStage | TokenizerStage, batch: Any) -> Any:
    """Of a micro-batch that is the only one of its step."""
    return stage.terms(batch) if isinstance(stage, GeneratorStage) else stage._terms(batch, None, None)[0]


def saved_bytes(network: nn.Module, batch: Any, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct tensors that autograd saves, without parameters and the batch."""
    fed = [value for value in tree_leaves(vars(batch)) if isinstance(value, Tensor)]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *fed)}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["train-generator", "train-tokenizer"])
def test_a_trace_keeps_what_autograd_saves(stage: str, precision: str) -> None:
    real = real_stage(stage, precision)
    batch = real.blank_batch(BATCH)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = terms_of(real, batch)["loss"]
            return loss

    forward()  # masks are made once, and are no activations
    held = traced(stage, precision).held
    assert held.kept + held.casts == pytest.approx(saved_bytes(real.network, batch, forward), rel=0.03)


@pytest.mark.slow
def test_checkpointing_keeps_little_and_computes_a_block_at_a_time() -> None:
    plain, cheap = (traced("train-generator", "fp32", checkpointing=on).held for on in (False, True))
    assert cheap.kept < plain.kept / 2
    assert cheap.kept < cheap.backward_peak < plain.kept


@pytest.mark.slow
def test_weights_in_16_bits_are_counted_apart_and_do_not_grow_with_the_samples() -> None:
    few, many = (trace_micro_batch("train-generator", configs("bf16"), samples, "cuda").held for samples in (2, 4))
    assert few.casts == many.casts > 0
    assert many.kept > 1.5 * few.kept
