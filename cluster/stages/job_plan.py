"""What `submit` shows before it asks: which stages run, which are skipped, on what, how long, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.config.run import RunConfig
from cluster.jobs.graph import StageStanding, first_unfinished, workers_of
from cluster.targets.config import TargetSection
from cluster.terminal.output import duration
from data_pipeline.errors import FoldtrainError
from trainer.registry import stage_named

if TYPE_CHECKING:
    from rich.table import Table

_WORDS = {
    "finished": "finished: is skipped",
    "given": "given by inputs: is skipped",
    "begun": "begun: goes on",
    "to do": "to do",
    "unknown": "cannot be seen from here",
}


@dataclass(frozen=True)
class Forecast:
    """What a stage that trains will need."""

    hours: float | None = None
    """With what failures cost; None if nothing is known of the speed."""
    price: float | None = None
    """In the target's currency; None without hours or without a price."""
    storage: int | None = None
    """Bytes of a checkpoint."""
    note: str = ""
    """What cannot be said, and why."""


def forecast(config: RunConfig, command: str, section: TargetSection) -> Forecast:
    """As `foldtrain plan` has it, on the nodes of a target. What cannot be planned is no error: it says why."""
    if not stage_named(command).trains:
        return Forecast(note="its time is not known beforehand")
    try:
        return _planned(config, command, section)
    except FoldtrainError as error:
        return Forecast(note=str(error).partition("\n")[0])


def _planned(config: RunConfig, command: str, section: TargetSection) -> Forecast:
    from cluster.stages import planning
    from trainer.planning.plan import make_plan

    resolved, _ = planning.known_classes(config, command)
    nodes, per_node = planning.ranks(resolved, None, section.gpus_per_node or None)
    device = planning.check_device(section.device) if section.gpus_per_node else None
    plan = make_plan(planning.request_of(resolved, command, (nodes, per_node), device, None))
    if plan.gpu_hours is None:
        return Forecast(storage=plan.checkpoints.bytes, note=plan.time.known_from)
    hours = plan.gpu_hours / plan.world
    return Forecast(hours, price(hours, nodes, section), plan.checkpoints.bytes)


def price(hours: float, nodes: int, section: TargetSection) -> float | None:
    """What so many hours of so many nodes cost; None if a node has no price."""
    return None if section.price_per_hour is None else hours * nodes * section.price_per_hour


def table(
    stages: Sequence[StageStanding],
    config: RunConfig,
    section: TargetSection,
    forecasts: dict[str, Forecast] | None = None,
) -> Table:
    """The stages, one a row.

    Args:
        stages: of the job.
        config: of the run.
        section: of the target.
        forecasts: by stage; None if none were made.
    """
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("STAGE", "STANDS", "WORKERS", "NODES", "GPUS")
    for column in (*columns, *(("HOURS", "PRICE", "CHECKPOINT") if forecasts is not None else ())):
        grid.add_column(column)
    for stage in stages:
        row = [stage.command, _WORDS[stage.standing], *_where(stage, config, section)]
        if forecasts is not None:
            row += _expected(forecasts.get(stage.command), section)
        grid.add_row(*row)
    return grid


def sentences(
    stages: Sequence[StageStanding], section: TargetSection, forecasts: dict[str, Forecast] | None = None
) -> list[str]:
    """What is to be said of a plan as a whole."""
    begins = first_unfinished(stages)
    said = ["nothing is left to do" if begins is None else f"begins with {begins}"]
    known = [one.price for one in (forecasts or {}).values() if one.price is not None]
    if known:
        said.append(f"{sum(known):,.2f} {section.currency} for what can be foreseen")
    said += [f"{name}: {one.note}" for name, one in (forecasts or {}).items() if one.note]
    return said


def _where(stage: StageStanding, config: RunConfig, section: TargetSection) -> list[str]:
    if stage.is_skipped:
        return ["-", "-", "-"]
    nodes, gpus = section.nodes, section.gpus_per_node * section.most_nodes
    return [_range(workers_of(config, stage.command)), _range(nodes), str(gpus) if gpus else "-"]


def _range(number: int | tuple[int, int]) -> str:
    if isinstance(number, int) or number[0] == number[1]:
        return str(number if isinstance(number, int) else number[0])
    return f"{number[0]} to {number[1]}"


def _expected(found: Forecast | None, section: TargetSection) -> list[str]:
    from cluster.stages.plan_view import size

    if found is None:
        return ["-", "-", "-"]
    hours = "?" if found.hours is None else duration(found.hours * 3600)
    cost = "?" if found.price is None else f"{found.price:,.2f} {section.currency}"
    return [hours, cost, "-" if found.storage is None else size(found.storage)]
