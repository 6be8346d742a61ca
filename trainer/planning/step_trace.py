"""One micro-batch of a training stage, traced: its kernels, what is alive between forward and backward, the weights.

A network with one row of n equal blocks may be traced with 2 and with 3 of them, and all figures continued to n: equal
blocks run equal kernels, and keep equal bytes. The first may differ (it has no stochastic depth), which is why there
are 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from trainer.engine.batches import Batch
from trainer.engine.blocks import recompute_blocks
from trainer.engine.deepspeed_engine import NUMBER_FORMATS
from trainer.engine.engine import Engines
from trainer.planning.blank_stages import BlankStage, StageConfigs, blank_stage, one_rank
from trainer.planning.fake_device import FakeDevice, Kind, fake_device
from trainer.planning.memory import Held
from trainer.planning.operation import HostSync, Kernel
from trainer.planning.roofline import fuse
from trainer.planning.trace import Trace
from trainer.planning.traced_engine import StepRecord, TracedEngine
from trainer.stages.stage import Stage

SHORT = 2
"""Blocks of the shorter of two traces that are continued to all blocks."""
Key = TypeVar("Key")


@dataclass(frozen=True)
class MicroBatch:
    """What a micro-batch of so many samples does and holds."""

    samples: int
    kernels: Mapping[Kernel, float]
    """How often each runs."""
    fused: Mapping[Kernel, float]
    """The same where chains of elementwise operations are compiled."""
    syncs: tuple[HostSync, ...]
    weights: tuple[int, ...]
    """Elements of each parameter that is trained."""
    frozen_bytes: int
    """Of networks that are only run, and of parameters that are not trained."""
    batch_bytes: int
    held: Held

    @property
    def parameters(self) -> int:
        """Elements of all parameters that are trained."""
        return sum(self.weights)

    @property
    def exact_flops(self) -> int:
        """With exact attention, without what comes ahead of the micro-batches."""
        return round(
            sum(count * kernel.exact_flops for kernel, count in self.kernels.items() if kernel.phase != "ahead")
        )


def trace_micro_batch(
    stage: str,
    configs: StageConfigs,
    samples: int,
    kind: Kind,
    *,
    checkpointing: bool | None = None,
    accumulates: bool = False,
    warm: bool = False,
    short: bool = False,
) -> MicroBatch:
    """Trace one.

    Args:
        stage: by its command, for instance "train-generator".
        configs: of the run.
        samples: in the micro-batch.
        kind: of device.
        checkpointing: in place of the config's activation_checkpointing.
        accumulates: whether a step has several micro-batches, so that some stages preview all of them.
        warm: run forward once before, so that what is made once and kept (masks) is not in the trace.
        short: trace a few of the blocks, and continue; needs no more time for a deep network than for a shallow one.

    Raises:
        UsageError: if the stage trains nothing.
        ValueError: if the config names a backbone that there is not.
    """
    trainer = configs.section(stage).trainer
    recompute = trainer.activation_checkpointing if checkpointing is None else checkpointing
    with one_rank(), fake_device(kind, NUMBER_FORMATS[trainer.precision]) as fake:
        blank = blank_stage(stage, configs, fake)
        modules = [trainable.module for trainable in blank.stage.trainables.values()]
        network = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        weights = tuple(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        own = sum(_bytes(parameter) for parameter in network.parameters() if not parameter.requires_grad)
        frozen = own + sum(_bytes(p) for module in blank.frozen for p in module.parameters())
        if recompute:
            recompute_blocks(network)

        def traced(*, warm: bool = warm) -> _Traced:
            return _trace(blank, fake, samples, accumulates=accumulates, warm=warm)

        found = _continued(network, traced) if short else traced()
    batch_bytes, held = found.batch_bytes, found.held
    syncs = tuple(HostSync(*key, round(count)) for key, count in found.syncs.items())
    return MicroBatch(samples, found.kernels, found.fused, syncs, weights, frozen, batch_bytes, held)


@dataclass(frozen=True)
class _Traced:
    kernels: Mapping[Kernel, float]
    fused: Mapping[Kernel, float]
    syncs: Mapping[tuple[str, str, str], float]
    batch_bytes: int
    held: Held


def _trace(blank: BlankStage, fake: FakeDevice, samples: int, *, accumulates: bool, warm: bool) -> _Traced:
    stage = blank.stage
    batch = _fake_batch(stage.blank_batch(samples), fake)
    if warm:
        _step(stage, [batch], fake, StepRecord(Trace(fake.device), goes_back=False))
    trace = Trace(fake.device, "ahead")
    batches = [batch, batch] if accumulates else [batch]
    record = StepRecord(trace)
    with trace:
        _step(stage, batches, fake, record)
    share = 1 / len(batches)
    kernels = Counter(operation.kernel for operation in trace.operations)
    fused = Counter(operation.kernel for operation in fuse(trace.operations, record.needed_later))
    return _Traced(
        {kernel: share * count for kernel, count in kernels.items()},
        {kernel: share * count for kernel, count in fused.items()},
        {place: share * count for place, count in trace.syncs.items()},
        sum(_bytes(leaf) for leaf in tree_leaves(vars(batch)) if isinstance(leaf, Tensor)),
        record.held(),
    )


def _step(stage: Stage, batches: list[Batch], fake: FakeDevice, record: StepRecord) -> None:
    """The stage's own step, on engines that trace."""
    found = {name: TracedEngine(trainable, fake, record, len(batches)) for name, trainable in stage.trainables.items()}
    engines = cast("Engines", found)
    stage.step(batches, engines, 1.0)


def _fake_batch(batch: Batch, fake: FakeDevice) -> Batch:
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    made: dict[str, Any] = tree_map_only(Tensor, fake.like, values)
    return replace(batch, **made)


def _continued(network: nn.Module, traced: Callable[..., _Traced]) -> _Traced:
    """Trace with two small numbers of blocks, and continue to all; trace as it is where that cannot be done."""
    places = [(module, name) for module in network.modules() for name, _ in module.named_children() if name == "blocks"]
    lists = [getattr(module, name) for module, name in places]
    if len(lists) != 1 or not isinstance(lists[0], nn.ModuleList | nn.Sequential) or len(lists[0]) <= 2 * SHORT + 1:
        return traced()
    if len({_shapes(block) for block in lists[0]}) > 1:
        return traced()
    (module, name), blocks = places[0], lists[0]
    setattr(module, name, blocks[: SHORT + 1])
    longer = traced(warm=True)  # constants that are made once belong to neither
    setattr(module, name, blocks[:SHORT])
    shorter = traced(warm=False)
    setattr(module, name, blocks)
    more = len(blocks) - SHORT

    def line(low: int, high: int) -> int:
        return low + more * (high - low)

    pairs = zip(vars(shorter.held).items(), vars(longer.held).values(), strict=True)
    return _Traced(
        _line(shorter.kernels, longer.kernels, more),
        _line(shorter.fused, longer.fused, more),
        _line(shorter.syncs, longer.syncs, more),
        shorter.batch_bytes,
        Held(**{name: line(low, high) for (name, low), high in pairs}),
    )


def _shapes(block: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Of a block's parameters: blocks of other ones do other things, as those do that a long skip ends in."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _line(shorter: Mapping[Key, float], longer: Mapping[Key, float], more: int) -> dict[Key, float]:
    keys = dict.fromkeys([*shorter, *longer])
    return {key: shorter.get(key, 0) + more * (longer.get(key, 0) - shorter.get(key, 0)) for key in keys}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
