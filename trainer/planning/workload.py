"""A training stage in numbers: parameters, operations, memory, time; all by tracing its own networks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainerConfig
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.devices import Device
from trainer.planning.fake_device import Kind
from trainer.planning.memory import Held, RankMemory, rank_memory
from trainer.planning.roofline import Assumptions
from trainer.planning.step_cost import StepCost, step_cost
from trainer.planning.step_trace import MicroBatch, trace_micro_batch

_FEW = 2
"""Samples of the smaller of two traces from which bytes of other micro-batches follow: they are linear in the samples.
One sample will not do: operations that broadcast take other ways."""

_TRACES: dict[str, MicroBatch] = {}
"""By what they depend on: plans that differ in other things share them."""
_MOST_TRACES = 64


@dataclass
class Workload:
    """One stage, traced as often as it is asked for something new."""

    stage: str
    """By its command."""
    configs: StageConfigs
    world: int
    """Ranks."""
    kind: Kind
    """Of the devices."""

    @property
    def trainer(self) -> TrainerConfig:
        """As the config has it."""
        return self.configs.section(self.stage).trainer

    @property
    def whole(self) -> MicroBatch:
        """The micro-batch that the config comes to."""
        micro, accumulation = self.trainer.split_over(self.world)
        return self._trace(micro, self.trainer.activation_checkpointing, accumulates=accumulation > 1)

    @property
    def parameters(self) -> int:
        """Elements of what is trained."""
        return self.whole.parameters

    def exact_flops(self) -> int:
        """Of a sample: the model's operations, with exact attention, and once what is computed twice."""
        micro, _ = self.trainer.split_over(self.world)
        trace = self.whole
        if self.trainer.activation_checkpointing:
            trace = self._trace(micro, checkpointing=False, accumulates=False)
        return round(trace.exact_flops / micro)

    def computed_flops(self) -> int:
        """Of a sample: what kernels compute, with pairs that nobody sees and what is computed twice."""
        micro, _ = self.trainer.split_over(self.world)
        flops = sum(count * kernel.flops for kernel, count in self.whole.kernels.items() if kernel.phase != "ahead")
        return round(flops / micro)

    def cost(self, device: Device, assumed: Assumptions, nodes: int) -> StepCost:
        """Of a step of one rank, by the roofline."""
        return step_cost(self.whole, self.trainer, device, assumed, world=self.world, nodes=nodes)

    def memory(self, trainer: TrainerConfig) -> RankMemory:
        """Of one rank, if the stage were trained so.

        Raises:
            ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
        """
        micro, _ = trainer.split_over(self.world)
        whole = self.whole
        held = self._held(micro, trainer.activation_checkpointing)
        batch = whole.batch_bytes // whole.samples * (trainer.global_batch // self.world)
        cpu = self.kind == "cpu"
        return rank_memory(
            *(whole.weights, trainer, self.world, held), frozen=whole.frozen_bytes, batch=batch, touched_only=cpu
        )

    def _held(self, samples: int, checkpointing: bool) -> Held:
        """Of so many samples; of fewer than the config's micro-batch by the line through that and a small one."""
        most, _ = self.trainer.split_over(self.world)
        same = checkpointing == self.trainer.activation_checkpointing
        high = self.whole if same else self._trace(most, checkpointing, accumulates=False)
        if samples == most:
            return high.held
        if not _FEW < samples < most:
            return self._trace(samples, checkpointing, accumulates=False).held
        low = self._trace(_FEW, checkpointing, accumulates=False)
        share = (samples - low.samples) / (high.samples - low.samples)
        pairs = zip(vars(low.held).items(), vars(high.held).values(), strict=True)
        return Held(**{name: round(few + share * (many - few)) for (name, few), many in pairs})

    def _trace(self, samples: int, checkpointing: bool, *, accumulates: bool) -> MicroBatch:
        key = json.dumps([self.stage, self._networks(), samples, self.kind, checkpointing, accumulates])
        if key not in _TRACES:
            while len(_TRACES) >= _MOST_TRACES:
                del _TRACES[next(iter(_TRACES))]
            _TRACES[key] = trace_micro_batch(
                *(self.stage, self.configs, samples, self.kind),
                checkpointing=checkpointing,
                accumulates=accumulates,
                warm=True,
                short=True,
            )
        return _TRACES[key]

    def _networks(self) -> list[Any]:
        """All of the config that a trace depends on."""
        teacher, tokenizer = self.configs.teacher, self.configs.given_tokenizer or self.configs.tokenizer
        parts = (self.configs.section(self.stage), teacher, tokenizer, self.configs.proxy)
        named = [None if part is None else part.model_dump(mode="json", exclude={"trainer"}) for part in parts]
        return [self.trainer.precision, *named]


def workload(stage: str, configs: StageConfigs, world: int, kind: Kind) -> Workload:
    """A stage on `world` ranks.

    Raises:
        UsageError: if the stage trains nothing.
        ValueError: if the global batch cannot be cut into equal micro-batches over the ranks.
    """
    configs.section(stage).trainer.split_over(world)
    return Workload(stage, configs, world, kind)
