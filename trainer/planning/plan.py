"""The plan of a training stage: everything that can be said before it runs, and why some of it cannot."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.errors import UsageError
from trainer.config import TrainerConfig
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.devices import GIGA, TERA, find_device, peak_flops
from trainer.planning.failures import LLAMA3_NODE_HOURS, Failures, expect_failures
from trainer.planning.fitting import MARGIN, HostFit, Remedy, cheapest_remedy, fit_host, on_device
from trainer.planning.memory import RankMemory
from trainer.planning.roofline import STANDARD, Assumptions
from trainer.planning.step_cost import Part
from trainer.planning.storage import Checkpoints, Reading, checkpoint_cost, read_images, read_tokens, token_bytes
from trainer.planning.workload import Workload, workload

_COPY_BYTES_PER_SECOND = 10e9
"""From a device to its host: an upper bound of what a checkpoint blocks, as most of it hides behind the next step."""


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data set."""

    samples: int | None
    """Images in it."""
    bytes: int | None = None
    """Of its shards."""
    shards: int | None = None
    """How many."""
    known_from: str = "nothing"
    """Where that is from, in words."""


@dataclass(frozen=True)
class Request:
    """What is asked."""

    stage: str
    configs: StageConfigs
    nodes: int
    ranks_per_node: int
    device: str | None
    """Name of the devices; None for CPUs."""
    data: DataFacts
    peak_tflops: float | None = None
    """In place of the table's peak."""
    assumed: Assumptions = STANDARD
    """What is reached of a device's peaks, for the prediction."""
    throughput: float | None = None
    """Samples per second over all ranks, as measured, in place of a prediction."""
    throughput_from: str = "as given"
    """Where that is from, in words."""
    price: float | None = None
    """USD per device and hour."""
    mtbf_hours: float = LLAMA3_NODE_HOURS
    """Hours between failures of one node."""
    host_memory: float | None = None
    """Bytes of a node's own memory; None if unknown."""
    bandwidth: float = GIGA
    """Bytes per second from a node to storage."""
    restart_seconds: float = 180.0
    """From a failure to the next step."""

    @property
    def world(self) -> int:
        """Ranks."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Time:
    """How long it takes, as far as that can be said."""

    flops_per_sample: int
    """Operations of the model, exact attention."""
    flops_per_sample_computed: int
    """Operations that the kernels compute: with pairs of positions that do not see each other, and what is computed
    twice."""
    flops_per_step: int
    """Of the model, and the global batch."""
    step_seconds: float | None
    hours: float | None
    samples_per_second: float | None
    mfu: float | None
    """Of what was measured; None of a prediction."""
    predicted: bool
    """Whether the time is the roofline's."""
    known_from: str
    """Where the time is from, or what is missing."""
    phases: tuple[Part, ...] = ()
    """Of a predicted step, on one rank."""


@dataclass(frozen=True)
class Fit:
    """Whether a rank's memory suffices."""

    limit: float | None
    """Bytes of the device; None if unknown."""
    needed: int
    """Bytes, with the base."""
    fits: bool | None
    remedy: Remedy | None
    """What would make it fit, if it does not."""


@dataclass(frozen=True)
class Plan:
    """All of it. `to_json` is what `--json` prints."""

    stage: str
    device: str
    nodes: int
    world: int
    steps: int
    samples: int
    """Seen in all."""
    epochs: float | None
    data: DataFacts
    global_batch: int
    micro_batch: int
    accumulation: int
    zero_stage: int
    precision: str
    parameters: int
    time: Time
    memory: RankMemory
    fit: Fit
    host: HostFit
    reading: Reading | None
    checkpoints: Checkpoints
    failures: Failures | None
    gpu_hours: float | None
    cost: float | None
    """USD, with the work that failures make be done again."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def make_plan(request: Request) -> Plan:
    """Plan a stage.

    Raises:
        UsageError: if the batch does not divide over the ranks, the stage cannot be planned, or figures contradict.
    """
    try:
        work = workload(request.stage, request.configs, request.world, "cuda" if request.device else "cpu")
        parameters = work.parameters  # traced here, as a config may name a backbone that there is not
        micro, accumulation = work.trainer.split_over(request.world)
    except ValueError as error:
        raise UsageError(f"{request.stage} on {request.nodes} x {request.ranks_per_node} ranks: {error}") from None
    trainer = work.trainer
    time = estimate_time(request, work)
    seen = trainer.steps * trainer.global_batch
    saves = max(1, -(-trainer.steps // _steps_between_checkpoints(trainer, time)))
    ema = trainer.ema_decay > 0
    checkpoints = checkpoint_cost(parameters, request.world, request.nodes, saves, request.bandwidth, ema=ema)
    failures = _failures(request, trainer, time, checkpoints)
    hours = time.hours if time.hours is None or failures is None else time.hours + failures.lost_hours
    gpu_hours = None if hours is None else hours * request.world
    memory = work.memory(trainer)
    return Plan(
        stage=request.stage,
        device=request.device or "cpu",
        nodes=request.nodes,
        world=request.world,
        steps=trainer.steps,
        samples=seen,
        epochs=seen / request.data.samples if request.data.samples else None,
        data=request.data,
        global_batch=trainer.global_batch,
        micro_batch=micro,
        accumulation=accumulation,
        zero_stage=trainer.zero_stage,
        precision=trainer.precision,
        parameters=parameters,
        time=time,
        memory=memory,
        fit=_fit(request, work, memory),
        host=_host(request, work),
        reading=_reading(request, seen),
        checkpoints=checkpoints,
        failures=failures,
        gpu_hours=gpu_hours,
        cost=None if gpu_hours is None or request.price is None else gpu_hours * request.price,
    )


def device_peak(request: Request, precision: str) -> float | None:
    """Operations per second of one device: `cluster.peak_tflops`, else the table's; None if neither has it."""
    if request.peak_tflops is not None:
        return request.peak_tflops * TERA
    return None if request.device is None else peak_flops(request.device, precision)


def estimate_time(request: Request, work: Workload) -> Time:
    """Time from a measured throughput, else from the roofline of the device; without either it says what is missing."""
    batch, steps = work.trainer.global_batch, work.trainer.steps
    per_step = work.exact_flops() * batch
    device = find_device(request.device) if request.device else None
    seconds = reached = None
    phases: tuple[Part, ...] = ()
    if request.throughput is not None:
        seconds, source = batch / request.throughput, f"{request.throughput:g} samples/s, {request.throughput_from}"
        peak = device_peak(request, work.trainer.precision)
        reached = None if peak is None else per_step / (seconds * peak * request.world)
    elif device is not None:
        cost = work.cost(device, request.assumed, request.nodes)
        seconds, phases = cost.seconds, tuple(cost.phases())
        source = f"a trace of its operations at {request.assumed.describe(device)}"
    else:
        source = f"nothing is known of the speed of {request.device or 'a CPU'}: give --throughput"
    return Time(
        flops_per_sample=per_step // batch,
        flops_per_sample_computed=work.computed_flops(),
        flops_per_step=per_step,
        step_seconds=seconds,
        hours=None if seconds is None else seconds * steps / 3600,
        samples_per_second=None if seconds is None else batch / seconds,
        mfu=reached,
        predicted=bool(phases),
        known_from=source,
        phases=phases,
    )


def _fit(request: Request, work: Workload, memory: RankMemory) -> Fit:
    device = find_device(request.device) if request.device else None
    if device is None:
        return Fit(None, memory.device_bytes, None, None)
    size = on_device(memory)
    fits = size <= MARGIN * device.memory
    host = None if request.host_memory is None else request.host_memory / request.ranks_per_node
    remedy = None if fits else cheapest_remedy(work, device.memory, host)
    return Fit(device.memory, size, fits, remedy)


def _host(request: Request, work: Workload) -> HostFit:
    device = find_device(request.device) if request.device else None
    room = device.memory if device else None
    return fit_host(work, request.ranks_per_node, request.device, request.host_memory, room)


def _reading(request: Request, seen: int) -> Reading | None:
    """None if nobody knows how many images there are."""
    data, configs = request.data, request.configs
    if data.samples is None:
        return None
    if request.stage == "train-generator":
        layout = configs.tokenizer_model.layout
        size = data.bytes or token_bytes(layout, data.samples, len(configs.tokens.views))
        shards = data.shards or -(-data.samples // configs.tokens.shard_samples)
        return read_tokens(data.samples, size, shards, request.nodes)
    cached = configs.reading.cache_images
    return read_images(data.samples, data.bytes, data.shards or 1, request.nodes, seen, cached=cached)


def _steps_between_checkpoints(trainer: TrainerConfig, time: Time) -> int:
    """`checkpoint_every`, or fewer if `checkpoint_minutes` are over before."""
    if trainer.checkpoint_minutes is None or time.step_seconds is None:
        return trainer.checkpoint_every
    return min(trainer.checkpoint_every, math.ceil(trainer.checkpoint_minutes * 60 / time.step_seconds))


def _failures(request: Request, trainer: TrainerConfig, time: Time, checkpoints: Checkpoints) -> Failures | None:
    if time.step_seconds is None or time.hours is None:
        return None
    interval = _steps_between_checkpoints(trainer, time) * time.step_seconds
    blocked = checkpoints.rank_bytes / _COPY_BYTES_PER_SECOND
    between = request.mtbf_hours * 3600 / request.nodes
    return expect_failures(time.hours * 3600, interval, blocked, checkpoints.seconds, between, request.restart_seconds)
