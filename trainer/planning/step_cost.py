"""A training step on a named device, predicted: every operation of the real networks by the roofline, by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from trainer.config import TrainerConfig
from trainer.planning.devices import Device
from trainer.planning.operation import HostSync, Kernel
from trainer.planning.roofline import Assumptions, seconds
from trainer.planning.step_trace import MicroBatch
from trainer.planning.update import step_traffic, update_kernels

PHASES = ("ahead", "forward", "backward", "update", "communication")
"""In their order. "ahead" is what looks at all micro-batches of a step before the first."""


@dataclass(frozen=True)
class Part:
    """A phase, or the operations of one name within it."""

    phase: str
    name: str
    dtype: str
    kernels: float
    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class StepCost:
    """Of one rank."""

    device: Device
    assumed: Assumptions
    fused: bool
    parts: tuple[Part, ...]
    """One for each operator, number format and phase, the longest first; communication has a part of its own."""
    syncs: tuple[HostSync, ...]

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(part.seconds for part in self.parts)

    def phases(self) -> list[Part]:
        """Sums, in the order in which the phases come."""
        order = list(dict.fromkeys(part.phase for part in self.parts))
        order.sort(key=PHASES.index)
        return [total([part for part in self.parts if part.phase == phase], phase) for phase in order]


def total(parts: Iterable[Part], phase: str = "step") -> Part:
    """The sum of some parts."""
    chosen = list(parts)
    return Part(
        phase,
        "",
        "",
        sum(part.kernels for part in chosen),
        sum(part.flops for part in chosen),
        sum(part.bytes for part in chosen),
        sum(part.seconds for part in chosen),
    )


def cost_of(kernels: Mapping[Kernel, float], device: Device, assumed: Assumptions, repeats: int = 1) -> list[Part]:
    """Kernels, and how often each runs, by phase, name and number format; the longest first."""
    found: dict[tuple[str, str, str], Part] = {}
    for kernel, count in kernels.items():
        key, times = (kernel.phase, kernel.name, kernel.dtype), count * repeats
        old = found.get(key, Part(*key, 0, 0, 0, 0.0))
        found[key] = Part(
            *key,
            old.kernels + times,
            old.flops + times * kernel.flops,
            old.bytes + times * kernel.bytes,
            old.seconds + times * seconds(kernel, device, assumed),
        )
    return sorted(found.values(), key=lambda part: -part.seconds)


def step_cost(
    micro: MicroBatch,
    trainer: TrainerConfig,
    device: Device,
    assumed: Assumptions,
    *,
    world: int = 1,
    nodes: int = 1,
    fused: bool | None = None,
) -> StepCost:
    """Predict an optimizer step of one rank.

    Args:
        micro: the trace of one of its micro-batches.
        trainer: of the stage.
        device: of each rank.
        assumed: what is reached of its peaks.
        world: ranks.
        nodes: that they are on.
        fused: whether chains of elementwise operations are one kernel; None as `trainer.compile` says.

    Raises:
        ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
    """
    fused = trainer.compile if fused is None else fused
    _, accumulation = trainer.split_over(world)
    parts = cost_of(micro.fused if fused else micro.kernels, device, assumed, accumulation)
    parts += cost_of(Counter(update_kernels(micro.parameters, trainer, world)), device, assumed)
    if world > 1:
        behind = sum(part.seconds for part in parts if part.phase == "backward")
        parts.append(_communication(micro.parameters, trainer, device, assumed, world, nodes, behind))
    syncs = tuple(replace(sync, count=sync.count * accumulation) for sync in micro.syncs)
    return StepCost(device, assumed, fused, tuple(parts), syncs)


def _communication(
    parameters: int,
    trainer: TrainerConfig,
    device: Device,
    assumed: Assumptions,
    world: int,
    nodes: int,
    behind: float,
) -> Part:
    """The part that does not hide behind backward; over the network where there are several nodes."""
    traffic = step_traffic(parameters, trainer, world)
    rate = assumed.link_share * (device.link if nodes == 1 else min(device.link, assumed.network))
    reducing = traffic.gradients / rate
    if traffic.overlaps:
        reducing = max(0.0, reducing - behind)
    moved = round(traffic.gradients + traffic.weights)
    return Part("communication", f"ZeRO {trainer.zero_stage}", "", 0, 0, moved, reducing + traffic.weights / rate)
