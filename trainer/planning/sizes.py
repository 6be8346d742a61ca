"""One stage at several sizes: hours and price of each, predicted, or scaled from what the run itself has measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.counted import counted
from trainer.planning.plan import Plan, Request, make_plan
from trainer.records.goodput import STARTS
from trainer.records.jsonl import read_last_records
from trainer.records.record_shapes import is_event, is_metrics


@dataclass(frozen=True)
class MeasuredRate:
    """How fast a run was with the workers that it had last."""

    samples_per_second: float
    workers: int


@dataclass(frozen=True)
class SizePlan:
    """A stage with so many workers."""

    workers: int
    nodes: int
    hours: float | None
    """Of the whole stage, with the work that failures make be done again; None if nobody knows."""
    samples_per_second: float | None
    node_hours: float | None
    price: float | None
    fits: bool | None
    """Whether a rank's memory suffices."""
    known_from: str
    """Where the hours are from, or why there are none."""


def measured_rate(folder: str) -> MeasuredRate | None:
    """The rate of the newest start of a stage, from the records in its folder; None without any."""
    starts = [
        event
        for event in read_last_records(storage.join(folder, "events.jsonl"), is_record=is_event)
        if event["event"] in STARTS and event.get("workers")
    ]
    if not starts:
        return None
    since, workers = starts[-1]["step"], int(starts[-1]["workers"])
    records = read_last_records(storage.join(folder, "metrics.jsonl"), is_record=is_metrics)
    rates = [each["samples_per_second"] for each in records if each["step"] > since and each.get("samples_per_second")]
    steady = rates[1:] or rates  # the first holds what is done once: compilation, first reads
    return MeasuredRate(statistics.median(steady), workers) if steady else None


def scaled_rate(measured: MeasuredRate, workers: int, there: float | None, here: float | None) -> tuple[float, str]:
    """Samples per second with so many workers, and where that is from.

    Args:
        measured: with other workers, or as many.
        workers: now.
        there: samples per second that are predicted of the workers of the measurement; None if nothing is.
        here: that are predicted now.
    """
    measured_at = f"measured in this run with {counted(measured.workers, 'worker')}"
    if workers == measured.workers:
        return measured.samples_per_second, measured_at
    if there and here:
        return measured.samples_per_second * here / there, f"{measured_at}, scaled as predicted with communication"
    share = workers / measured.workers
    return measured.samples_per_second * share, f"{measured_at}, in proportion: communication is not counted"


def plan_sizes(
    request: Request,
    sizes: Sequence[int],
    per_node: int | None,
    measured: MeasuredRate | None = None,
    node_price: float | None = None,
) -> list[SizePlan]:
    """The same stage at several sizes.

    Args:
        request: of any size.
        sizes: numbers of workers.
        per_node: workers that a node has room for; None for all of them on one.
        measured: by the run itself.
        node_price: of a node and hour, in place of `request.price` of a device.
    """
    there = None if measured is None else _predicted(request, measured.workers, per_node)
    return [_plan_size(request, size, per_node, measured, there, node_price) for size in sizes]


def _predicted(request: Request, size: int, per_node: int | None) -> float | None:
    try:
        return make_plan(_at(request, size, per_node)).time.samples_per_second
    except UsageError:
        return None


def _at(request: Request, size: int, per_node: int | None) -> Request:
    """The request of a size.

    Raises:
        UsageError: if the workers do not fill their nodes.
    """
    each = size if per_node is None else min(per_node, size)
    if size % each:
        raise UsageError(f"{size} workers do not fill nodes of {each}")
    return replace(request, nodes=size // each, ranks_per_node=each)


def _plan_size(
    request: Request,
    size: int,
    per_node: int | None,
    measured: MeasuredRate | None,
    there: float | None,
    node_price: float | None,
) -> SizePlan:
    try:
        asked = _at(request, size, per_node)
        found = make_plan(asked)
        if measured is not None and request.throughput is None:
            rate, source = scaled_rate(measured, size, there, found.time.samples_per_second)
            found = make_plan(replace(asked, throughput=rate, throughput_from=source))
    except UsageError as error:
        nodes = 1 if per_node is None else -(-size // per_node)
        return SizePlan(size, nodes, None, None, None, None, None, str(error))
    return _of(found, node_price)


def _of(found: Plan, node_price: float | None) -> SizePlan:
    hours = None if found.gpu_hours is None else found.gpu_hours / found.world
    node_hours = None if hours is None else hours * found.nodes
    price = found.cost if node_price is None or node_hours is None else node_hours * node_price
    source = found.time.known_from if not found.time.predicted else f"predicted by {found.time.known_from}"
    rate = found.time.samples_per_second
    return SizePlan(found.world, found.nodes, hours, rate, node_hours, price, found.fit.fits, source)
