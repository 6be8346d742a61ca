"""Predicted memory: its arithmetic, and what autograd really keeps of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.config import ImageFolderConfig, NextScaleConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.config import TrainerConfig
from trainer.planning.activations import Activations, generator_activations, tokenizer_activations
from trainer.planning.memory import Buckets, rank_memory, snapshot_bytes
from trainer.planning.shapes import Weight, Weights, count, generator_weights, tokenizer_weights

VIT = ViTConfig(width=128, depth=2, heads=4)
TOKENIZER = ImageFolderConfig(
    image_size=64, patch_size=8, encoder=VIT, decoder=VIT, scales=(1, 2, 3, 4, 6, 8), codebook_size=1024
)
GENERATOR = NextScaleConfig(num_classes=10, depth=4, width=256, heads=4)
BATCH = 4
NOTHING = Activations(0, 0, 0, 0)
SHAPES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20)


def trainer(**changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({"steps": 10, "global_batch": 64} | changes)


def weights_of(shapes: list[tuple[int, int]]) -> Weights:
    return [Weight(shape, multiplied=True) for shape in shapes]


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
    share = -(-count(weights) // world) if stage else count(weights)
    assert memory.device["AdamW moments"] == 2 * 4 * share


@given(SHAPES, st.sampled_from([2, 4, 8, 64]))
def test_with_small_buckets_stages_1_and_2_need_no_more_than_the_one_before(
    shapes: list[tuple[int, int]], world: int
) -> None:
    weights = weights_of([(rows * 100, columns) for rows, columns in shapes])
    needed = [rank_memory(weights, small_buckets(stage), world, NOTHING).device_bytes for stage in (0, 1, 2)]
    slack = 4 * (3 * 1000 + 2 * world)
    assert needed[1] <= needed[0] + slack + 4 * -(-count(weights) // world)  # stage 1 has masters besides weights
    assert needed[2] <= needed[1] + slack


@given(st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_more_ranks_and_smaller_micro_batches_never_need_more(stage: int, world: int, micro: int) -> None:
    """As long as gradients are accumulated in any case: the first accumulation costs a copy of them."""
    weights, kept = weights_of([(2000, 2000)] * 8), Activations(10**6, 10**5, 10**5, 0)

    def size(ranks: int, samples: int) -> int:
        return rank_memory(weights, trainer(zero_stage=stage, micro_batch=samples), ranks, kept).device_bytes

    assert size(2 * world, micro) <= size(world, micro)
    assert size(world, micro) <= size(world, 8)


def test_the_reduce_bucket_is_whole_on_a_gpu_and_as_far_as_it_is_used_on_a_cpu() -> None:
    weights = weights_of([(1000, 1000)])
    config = trainer(zero_stage=2)
    on_gpu = rank_memory(weights, config, 2, NOTHING).device["reduce bucket"]
    on_cpu = rank_memory(weights, config, 2, NOTHING, touched_only=True).device["reduce bucket"]
    assert (on_gpu, on_cpu) == (4 * 2 * 50_000_000, 4 * 1_000_000)


def test_buckets_are_those_of_the_deepspeed_json() -> None:
    zero = {"reduce_bucket_size": 7, "stage3_param_persistence_threshold": 5, "sub_group_size": 9}
    found = Buckets.of(trainer(extra={"zero_optimization": zero}), 2)
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


def kept_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct tensors that autograd saves, without the network's own parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
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


def copies(weights: Weights, bf16: bool) -> int:
    return 2 * sum(weight.numel for weight in weights if weight.multiplied) if bf16 else 0


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_generator_keeps_what_is_counted(bf16: bool) -> None:
    network = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
    quantizer = FoldedQuantizer(TOKENIZER).requires_grad_(requires_grad=False)
    tokens = torch.randint(0, 1024, (BATCH, TOKENIZER.layout.positions, 2))
    inputs, label = quantizer.generator_input(tokens), torch.zeros(BATCH, dtype=torch.long)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss: Tensor = network(label, inputs, None, tokens)[0]
            return loss

    counted = generator_activations(GENERATOR, TOKENIZER, bf16=bf16, attention="cpu", checkpointing=False)
    # The gradient of the head's weight is kept in place of the logits.
    expected = BATCH * (counted.blocks + counted.rest) + copies(generator_weights(GENERATOR, TOKENIZER), bf16)
    expected += 4 * network.head.weight.numel()
    assert expected == pytest.approx(kept_bytes(network, forward), rel=0.02)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_tokenizer_keeps_what_is_counted(bf16: bool) -> None:
    network, image = ImageFolderTokenizer(TOKENIZER), torch.randn(BATCH, 3, 64, 64)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = network(image)
            loss = nn.functional.mse_loss(output.reconstruction_BCHW.float(), image)
            return loss + output.losses["codebook"] + output.losses["commitment"]

    counted = tokenizer_activations(TOKENIZER, bf16=bf16, checkpointing=False)
    expected = BATCH * (counted.blocks + counted.rest) + copies(tokenizer_weights(TOKENIZER), bf16)
    assert expected == pytest.approx(kept_bytes(network, forward), rel=0.05)


def test_checkpointing_keeps_a_blocks_input_alone() -> None:
    plain, cheap = (
        generator_activations(GENERATOR, TOKENIZER, bf16=False, attention="sdpa", checkpointing=on)
        for on in (False, True)
    )
    assert cheap.blocks < plain.blocks / 10
    assert cheap.recomputed == plain.blocks // GENERATOR.depth
