"""What a trace finds: FLOPs as on paper, the kernels of a GPU, waits for the device, and the same backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from model.config import GeneratorConfig, NextTokenConfig
from model.config.masked import BertConfig, MaskedConfig
from model.config.random_order import RandomOrderConfig
from model.families import build_generator
from model.layout import TokenLayout
from trainer.planning.backward import leaf_gradients, run_backward
from trainer.planning.fake_device import FakeDevice, Kind, fake_device
from trainer.planning.operation import Kernel
from trainer.planning.trace import Trace

SMALL_GENERATORS: dict[str, GeneratorConfig] = {
    "masked": MaskedConfig(num_classes=5, backbone=BertConfig(depth=2, width=64, heads=2)),
    "random": RandomOrderConfig(num_classes=5, depth=2, width=64, heads=2),
    "next-token": NextTokenConfig(num_classes=5, depth=2, width=64, heads=2),
}
BATCH, LENGTH, HEADS, HEAD_DIM = 2, 6, 3, 8
Step = Callable[[FakeDevice], Tensor]
"""From a fake device to a loss."""


def traced(step: Step, dtype: torch.dtype = torch.float32, kind: Kind = "cuda") -> Trace:
    """Forward and backward of a step."""
    with fake_device(kind, dtype) as fake, Trace(fake.device) as trace:
        with fake.autocast():
            loss = step(fake)
        trace.phase = "backward"
        run_backward([(loss, torch.ones_like(loss))])
    return trace


def kernels(trace: Trace, phase: str, word: str = "") -> list[Kernel]:
    found = [operation.kernel for operation in trace.operations]
    return [kernel for kernel in found if kernel.phase == phase and word in kernel.name]


def flops(trace: Trace, phase: str) -> tuple[int, int]:
    """As computed, and with exact attention."""
    found = kernels(trace, phase)
    return sum(kernel.flops for kernel in found), sum(kernel.exact_flops for kernel in found)


def module(fake: FakeDevice, made: nn.Module) -> nn.Module:
    fake.fill(made)
    return made


def test_a_linear_layer_costs_two_operations_a_weight_and_row_and_twice_that_backward() -> None:
    def step(fake: FakeDevice) -> Tensor:
        inputs = fake.like(torch.empty(5, 7)).requires_grad_()
        loss: Tensor = module(fake, nn.Linear(7, 11, device="meta"))(inputs).sum()
        return loss

    trace = traced(step)
    assert flops(trace, "forward") == (2 * 5 * 7 * 11,) * 2
    assert flops(trace, "backward") == (2 * 2 * 5 * 7 * 11,) * 2


def test_a_convolution_costs_its_window_at_each_place() -> None:
    def step(fake: FakeDevice) -> Tensor:
        convolution = module(fake, nn.Conv2d(3, 4, 3, padding=1, bias=False, device="meta"))
        loss: Tensor = convolution(fake.like(torch.empty(2, 3, 8, 8))).sum()
        return loss

    once = 2 * 2 * 8 * 8 * 4 * 3 * 9
    trace = traced(step)
    assert (flops(trace, "forward")[0], flops(trace, "backward")[0]) == (once, once)  # no gradient to pixels


def qkv(fake: FakeDevice) -> list[Tensor]:
    shape = torch.empty(BATCH, HEADS, LENGTH, HEAD_DIM)
    return [fake.like(shape).requires_grad_() for _ in range(3)]


ALL = 2 * 2 * BATCH * HEADS * LENGTH * LENGTH * HEAD_DIM
"""Both products of attention, all pairs."""
CAUSAL = 7 / 12
"""Pairs of 6 positions that a causal mask lets through: 21 of 36."""


def masked(fake: FakeDevice) -> Tensor:
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().to(fake.device)
    return F.scaled_dot_product_attention(*qkv(fake), attn_mask=mask).sum()


def blocked(fake: FakeDevice) -> Tensor:
    mask = create_block_mask(lambda _b, _h, q, k: q >= k, None, None, LENGTH, LENGTH, device=str(fake.device))
    kernel: Any = torch.compile(flex_attention)
    loss: Tensor = kernel(*qkv(fake), block_mask=mask).sum()
    return loss


def by_names(fake: FakeDevice) -> Tensor:
    query, key, value = qkv(fake)
    return F.scaled_dot_product_attention(query=query, key=key, value=value).sum()


@pytest.mark.parametrize(
    ("step", "kernel", "computed", "exact"),
    [
        (lambda fake: F.scaled_dot_product_attention(*qkv(fake)).sum(), "flash", 1.0, 1.0),
        (by_names, "flash", 1.0, 1.0),
        (lambda fake: F.scaled_dot_product_attention(*qkv(fake), is_causal=True).sum(), "flash", CAUSAL, CAUSAL),
        (masked, "efficient", 1.0, CAUSAL),
        (blocked, "flash", 1.0, CAUSAL),  # all six positions are in one block
    ],
    ids=["all", "by names", "causal", "mask", "flex"],
)
def test_attention_is_one_kernel_of_a_gpu_and_counts_the_pairs_that_see_each_other(
    step: Step, kernel: str, computed: float, exact: float
) -> None:
    trace = traced(step, torch.bfloat16)
    assert [kernel in found.name for found in kernels(trace, "forward", "attention")] == [True]
    assert flops(trace, "forward") == pytest.approx((ALL * computed, ALL * exact), abs=1)
    assert flops(trace, "backward") == pytest.approx((2.5 * ALL * computed, 2.5 * ALL * exact), abs=2)


def test_attention_on_a_cpu_is_counted_by_the_same_formula() -> None:
    def step(fake: FakeDevice) -> Tensor:
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(*qkv(fake), attn_mask=mask).sum()

    assert flops(traced(step, kind="cpu"), "forward") == pytest.approx((ALL, ALL * CAUSAL), abs=1)


def test_autocast_takes_effect_on_a_gpu_that_is_not_there() -> None:
    def step(fake: FakeDevice) -> Tensor:
        loss: Tensor = module(fake, nn.Linear(8, 8, device="meta"))(fake.like(torch.empty(4, 8))).float().sum()
        return loss

    assert {kernel.dtype for kernel in kernels(traced(step, torch.bfloat16), "forward", "addmm")} == {"bfloat16"}


class Asks(nn.Module):
    """A network that looks at a value, copies from the host, and picks by a mask."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 0:
            x = x * torch.tensor([1.0, 2.0]).to(x.device)
        return x[x > 0]


def test_what_the_host_waits_for_is_found() -> None:
    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        Asks()(fake.like(torch.empty(3, 2)))
    found = sorted(operator for _, operator, _ in trace.syncs)
    assert found == ["_local_scalar_dense: waits", "_to_copy: a copy between host and device", "index: waits"]


def test_host_tensors_and_what_follows_from_them_keep_their_values() -> None:
    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        repeats = torch.tensor([1, 2, 3], device=fake.device)
        rows = torch.arange(3, device=fake.device).repeat_interleave(repeats)
        assert rows.shape == (6,)
        assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert any("repeat_interleave" in operator for _, operator, _ in trace.syncs)


def test_nothing_fake_stays_behind() -> None:
    from model.layers.visibility import GroupCausal

    groups = GroupCausal((1, 4))
    with fake_device("cpu"):
        groups.mask(torch.device("cpu"))
    assert groups.mask(torch.device("cpu")).float().mean() == pytest.approx(21 / 25)


class Doubled(torch.autograd.Function):
    """Written-out gradients, as networks have them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * gradient * torch.ones_like(x)


def loss_of(network: nn.Module, x: Tensor) -> Tensor:
    """Shared weights, broadcasting, a custom function, a recomputed part, and two number formats."""
    hidden = network(x) + network(x.roll(1, 0))[:1]
    again: Tensor = checkpoint(lambda h: torch.tanh(h) * h, hidden, use_reentrant=False)
    doubled: Tensor = Doubled.apply(again)
    return (doubled.bfloat16() * hidden).float().square().mean()


def test_the_walk_through_the_graph_gives_the_engines_gradients() -> None:
    torch.manual_seed(0)
    network, x = nn.Linear(6, 6), torch.randn(4, 6)
    loss_of(network, x).backward()
    found: dict[int, Tensor] = {}
    run_backward([(loss_of(network, x), torch.ones(()))], lambda weight, gradient: found.update({id(weight): gradient}))
    assert all(torch.equal(found[id(p)], p.grad) for p in network.parameters() if p.grad is not None)
    assert len(found) == 2


def test_gradients_of_given_tensors_are_those_of_torch() -> None:
    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    hidden = x @ weight
    expected = torch.autograd.grad((hidden**3).sum(), [weight, hidden], retain_graph=True)
    found = leaf_gradients((hidden**3).sum(), [weight, hidden])
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True) if other is not None)
    assert None not in found


def test_live_bytes_are_those_of_tensors_that_something_holds() -> None:
    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        first = torch.empty(100, device=fake.device).exp()
        second = first.exp().exp()
        assert trace.live.now == 2 * 400
        assert trace.live.peak == 3 * 400
        del first, second
        assert trace.live.now == 0


def test_a_compiled_function_is_one_kernel_that_reads_and_writes_what_leaves_it() -> None:
    """6 x 8 float32 numbers: two are read and one is written; what is between them takes no memory either."""

    def step(fake: FakeDevice) -> Tensor:
        def chain(x: Tensor, y: Tensor) -> Tensor:
            assert torch.compiler.is_compiling()
            return ((x + y) * torch.arange(8, device=x.device)).exp()

        x, y = (fake.like(torch.empty(6, 8)) for _ in range(2))
        found: Tensor = torch.compile(chain)(x, y)
        assert not torch.compiler.is_compiling()
        return found.sum().requires_grad_()

    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        step(fake)
    chain, total = trace.operations
    assert (chain.name, chain.kernel.bytes) == ("fused", 3 * 6 * 8 * 4)
    assert total.name == "sum"
    assert trace.live.peak == 6 * 8 * 4 + 4


def test_all_that_a_compiled_function_gives_is_written() -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        larger = (x + 1) * 2
        return larger, larger.exp()

    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        torch.compile(both)(fake.like(torch.empty(6, 8)))
    assert [(each.name, each.kernel.bytes) for each in trace.operations] == [("fused", 3 * 6 * 8 * 4)]


def test_a_product_within_a_compiled_function_stays_a_kernel_of_its_own() -> None:
    with fake_device("cuda") as fake, Trace(fake.device) as trace:
        x = fake.like(torch.empty(4, 4))
        torch.compile(lambda x: ((x + 1) * 2) @ x)(x)
    assert [operation.name for operation in trace.operations] == ["fused", "mm"]


@pytest.mark.parametrize(
    "kind",
    ["masked", pytest.param("random", marks=pytest.mark.slow), pytest.param("next-token", marks=pytest.mark.slow)],
)
def test_dropout_on_a_gpu_writes_no_masks(kind: str) -> None:
    """A pass with dropout has no numbers of 8 or 2 bytes for each element, and few kernels more than one without."""
    config = SMALL_GENERATORS[kind]
    without = {name: 0.0 for name in ("dropout", "attention_dropout", "token_dropout") if hasattr(config, name)}
    backbone = getattr(config, "backbone", None)
    if backbone is not None:
        without = {"backbone": backbone.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})}

    def cost(config: GeneratorConfig) -> Trace:
        with fake_device("cuda", torch.bfloat16) as fake:
            with torch.device("meta"):
                network: Any = build_generator(config, TokenLayout((16,), (64,)), None)
            fake.fill(network.train())
            tokens = torch.zeros(4, 16, 1, dtype=torch.int64, device=fake.device)
            label = torch.zeros(4, dtype=torch.int64, device=fake.device)
            with Trace(fake.device) as trace:
                with fake.autocast():
                    loss = network.training_terms(tokens, label, label)["loss"]
                trace.phase = "backward"
                run_backward([(loss, torch.ones_like(loss))])
        return trace

    dropped, plain = cost(config), cost(config.model_copy(update=without))
    large = [
        each for each in dropped.operations if each.dtype in {"int64", "int16"} and each.kernel.bytes > 4 * 64 * 32
    ]
    assert not large
    assert len(dropped.operations) < len(plain.operations) + 40
