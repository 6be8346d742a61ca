"""What a training stage will need, before it is started: `plan`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.stages import Config, Overrides
from cluster.terminal.output import say_json
from data_pipeline.config import MOST_WORKERS

if TYPE_CHECKING:
    from cluster.targets import TargetSection
    from trainer.planning.plan import Request
    from trainer.planning.roofline import Assumptions
    from trainer.planning.sizes import MeasuredRate


Stage = Annotated[str, typer.Option("--stage", help="A stage that trains: train-generator, train-tokenizer, ...")]
Nodes = Annotated[int | None, typer.Option(min=1, max=100_000, help="Nodes; cluster.workers if left out.")]
PerNode = Annotated[int | None, typer.Option(min=1, max=1_000, help="Devices of a node: 8 if left out.")]
DeviceKind = Annotated[str | None, typer.Option(help='Kind of device, for instance "H100 SXM"; CPUs if left out.')]
MatmulShare = Annotated[
    float | None, typer.Option(help="Share of the peak in 16 bits that the prediction takes; 0.65 if left out.")
]
MemoryShare = Annotated[
    float | None, typer.Option(help="Share of the memory's bandwidth that it takes; 0.8 if left out.")
]
Throughput = Annotated[float | None, typer.Option(help="Samples per second in all, if it was measured.")]
Price = Annotated[float | None, typer.Option(min=0, max=1_000_000, help="USD per device and hour.")]
MtbfHours = Annotated[float | None, typer.Option(help="Hours between failures of a node; Llama 3's 6335 if left out.")]
HostMemory = Annotated[float | None, typer.Option(help="GB of a node's own memory, to compare with.")]
Bandwidth = Annotated[float, typer.Option(help="GB/s from a node to storage.")]
Samples = Annotated[int | None, typer.Option(min=1, max=10**12, help="Images in the data set, if it is not there yet.")]
Measured = Annotated[
    str | None, typer.Option("--measured", metavar="RUN", help="Put what this run did beside the plan.")
]
Sizes = Annotated[
    str | None,
    typer.Option("--workers", metavar="N,N,...", help="Hours and price at several numbers of workers, instead."),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", help="With --workers: whose nodes and price, as `foldtrain submit` takes it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def plan(
    config: Config,
    overrides: Overrides = None,
    stage: Stage = "train-generator",
    nodes: Nodes = None,
    gpus_per_node: PerNode = None,
    device: DeviceKind = None,
    matmul_share: MatmulShare = None,
    memory_share: MemoryShare = None,
    throughput: Throughput = None,
    price: Price = None,
    mtbf_hours: MtbfHours = None,
    host_memory: HostMemory = None,
    bandwidth: Bandwidth = 1.0,
    samples: Samples = None,
    measured: Measured = None,
    workers: Sizes = None,
    target: TargetName = None,
    as_json: AsJson = False,
) -> None:
    """Say what a training stage will need: memory, time, storage, failures, cost; and what does not fit."""
    from cluster.config.loading import load_config
    from cluster.stages import planning
    from trainer.planning.failures import LLAMA3_NODE_HOURS

    shares = {"matmul-share": matmul_share, "memory-share": memory_share}
    figures = {"throughput": throughput, "mtbf-hours": mtbf_hours, "bandwidth": bandwidth, "host-memory": host_memory}
    _check_figures(figures, shares)
    resolved, classes_note = planning.known_classes(load_config(config, overrides or []), stage)
    place = planning.target_of(target)
    per_node = gpus_per_node or planning.workers_per_node(resolved, place)
    sizes = None if workers is None else parse_sizes(workers, nodes)
    ranks = (1, 1) if sizes else planning.ranks(resolved, nodes, per_node)
    kind = planning.check_device(device or (place.device if place else None))
    request = replace(
        planning.request_of(resolved, stage, ranks, kind, samples),
        assumed=_assumed(matmul_share, memory_share),
        throughput=throughput,
        price=price,
        mtbf_hours=mtbf_hours or LLAMA3_NODE_HOURS,
        host_memory=None if host_memory is None else host_memory * 1e9,
        bandwidth=bandwidth * 1e9,
    )
    note = planning.note_of(resolved, stage, kind, classes_note)
    if sizes:
        rate = planning.rate_of(measured, resolved, stage) if throughput is None else None
        _show_sizes(request, sizes, planning.node_size(resolved, per_node), rate, place, note, as_json=as_json)
    else:
        _show(request, measured, note, as_json=as_json)


def _assumed(matmul_share: float | None, memory_share: float | None) -> Assumptions:
    from trainer.planning.roofline import STANDARD

    matmul, memory = matmul_share or STANDARD.half_share, memory_share or STANDARD.bandwidth_share
    return replace(STANDARD, half_share=matmul, bandwidth_share=memory)


def _show(request: Request, measured: str | None, note: str | None, *, as_json: bool) -> None:
    """One plan, and beside it what a run of it did, whose rate it takes where none is given."""
    from cluster.stages import plan_view, planning
    from data_pipeline import storage
    from trainer.planning.measured import read_measured
    from trainer.planning.plan import make_plan

    seen = read_measured(storage.join(measured, planning.stage_folder(request.stage))) if measured else None
    if seen and request.throughput is None:
        request = replace(request, throughput=seen.samples_per_second, throughput_from=f"measured in {measured}")
    found = make_plan(request)
    if as_json:
        say_json(plan_view.as_json(found, seen, note), indent=1)
    else:
        plan_view.show(found, seen, note)


def _show_sizes(
    request: Request,
    sizes: list[int],
    per_node: int | None,
    rate: MeasuredRate | None,
    place: TargetSection | None,
    note: str | None,
    *,
    as_json: bool,
) -> None:
    """Time and price at several numbers of workers, by the rate that was measured, if one was."""
    from cluster.stages import plan_view
    from trainer.planning.sizes import plan_sizes

    node_price = place.price_per_hour if place else None
    plans = plan_sizes(request, sizes, per_node, rate, node_price)
    currency = place.currency if place and node_price is not None else "USD"
    if as_json:
        found = [asdict(each) for each in plans]
        say_json({"stage": request.stage, "sizes": found, "currency": currency, "note": note})
    else:
        plan_view.show_sizes(request.stage, plans, currency, note)


MOST_SIZES = 16
"""Of one table: each is planned on its own."""


def parse_sizes(text: str, nodes: int | None) -> list[int]:
    """Numbers of workers that were typed, 8,16,32, ascending.

    Raises:
        BadParameter: if they are none, or `--nodes` says how many there are, too.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part[:9]) <= MOST_WORKERS for part in parts):
        raise typer.BadParameter(f"{text}: give whole numbers from 1 on, as 8,16,32", param_hint="--workers")
    if len(parts) > MOST_SIZES:
        raise typer.BadParameter(
            f"{len(parts)} sizes; at most {MOST_SIZES} are planned at once", param_hint="--workers"
        )
    if nodes is not None:
        raise typer.BadParameter(
            "says how many nodes there are, and --workers asks for several sizes", param_hint="--nodes"
        )
    return sorted({int(part) for part in parts})


SMALLEST, LARGEST = 1e-9, 1e12
"""Of a figure on the command line: beyond these it is a slip, and what follows from it cannot be shown."""


def _check_figures(figures: dict[str, float | None], shares: dict[str, float | None]) -> None:
    for name, value in (figures | shares).items():
        if value is not None and not SMALLEST <= value <= LARGEST:
            raise typer.BadParameter(f"{value:g} is not between 0 and {LARGEST:g}", param_hint=f"--{name}")
    for name, value in shares.items():
        if value is not None and value > 1:
            raise typer.BadParameter(f"{value:g} is more than all of the peak, which is 1", param_hint=f"--{name}")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("plan", rich_help_panel="Config")(plan)
