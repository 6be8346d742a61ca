"""What a training stage will need, before it is started: `plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.stages import Config, Overrides
from cluster.terminal.output import say_json
from data_pipeline.config import MOST_WORKERS


def plan(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[
        str, typer.Option("--stage", help="A stage that trains: train-generator, train-tokenizer, ...")
    ] = "train-generator",
    nodes: Annotated[int | None, typer.Option(min=1, max=100_000, help="Nodes; cluster.workers if left out.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, max=1_000, help="Devices of a node: 8 if left out.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help='Kind of device, for instance "H100 SXM"; CPUs if left out.')
    ] = None,
    matmul_share: Annotated[
        float | None, typer.Option(help="Share of the peak in 16 bits that the prediction takes; 0.65 if left out.")
    ] = None,
    memory_share: Annotated[
        float | None, typer.Option(help="Share of the memory's bandwidth that it takes; 0.8 if left out.")
    ] = None,
    throughput: Annotated[float | None, typer.Option(help="Samples per second in all, if it was measured.")] = None,
    price: Annotated[float | None, typer.Option(min=0, max=1_000_000, help="USD per device and hour.")] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(help="Hours between failures of a node; Llama 3's 6335 if left out.")
    ] = None,
    host_memory: Annotated[float | None, typer.Option(help="GB of a node's own memory, to compare with.")] = None,
    bandwidth: Annotated[float, typer.Option(help="GB/s from a node to storage.")] = 1.0,
    samples: Annotated[
        int | None, typer.Option(min=1, max=10**12, help="Images in the data set, if it is not there yet.")
    ] = None,
    measured: Annotated[
        str | None, typer.Option("--measured", metavar="RUN", help="Put what this run did beside the plan.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option("--workers", metavar="N,N,...", help="Hours and price at several numbers of workers, instead."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="With --workers: whose nodes and price, as `foldtrain submit` takes it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a training stage will need: memory, time, storage, failures, cost; and what does not fit."""
    from dataclasses import asdict, replace

    from cluster.config.loading import load_config
    from cluster.stages import plan_view, planning
    from data_pipeline import storage
    from trainer.planning.failures import LLAMA3_NODE_HOURS
    from trainer.planning.measured import read_measured
    from trainer.planning.plan import Request, make_plan
    from trainer.planning.roofline import STANDARD
    from trainer.planning.sizes import measured_rate, plan_sizes

    figures = {"throughput": throughput, "mtbf-hours": mtbf_hours, "bandwidth": bandwidth, "host-memory": host_memory}
    _check_figures(figures, {"matmul-share": matmul_share, "memory-share": memory_share})
    resolved, classes_note = planning.known_classes(load_config(config, overrides or []), stage)
    place = planning.target_of(target)
    device = device or (place.device if place else None)
    gpus_per_node = gpus_per_node or planning.workers_per_node(resolved, place)
    sizes = None if workers is None else parse_sizes(workers, nodes)
    node_count, per_node = (1, 1) if sizes else planning.ranks(resolved, nodes, gpus_per_node)
    kind = planning.check_device(device)
    seen = read_measured(storage.join(measured, planning.stage_folder(stage))) if measured else None
    taken = seen if throughput is None else None
    request = Request(
        stage=stage,
        configs=planning.stage_configs(resolved, stage),
        nodes=node_count,
        ranks_per_node=per_node,
        device=kind,
        data=planning.find_data(resolved, stage, samples),
        peak_tflops=resolved.cluster.peak_tflops,
        assumed=replace(
            STANDARD,
            half_share=matmul_share or STANDARD.half_share,
            bandwidth_share=memory_share or STANDARD.bandwidth_share,
        ),
        throughput=taken.samples_per_second if taken else throughput,
        throughput_from=f"measured in {measured}" if taken else "as given",
        price=price,
        mtbf_hours=mtbf_hours or LLAMA3_NODE_HOURS,
        host_memory=None if host_memory is None else host_memory * 1e9,
        bandwidth=bandwidth * 1e9,
    )
    notes = (
        planning.device_note(kind, resolved.cluster.peak_tflops),
        classes_note,
        planning.proxy_note(resolved, stage),
    )
    note = "; ".join(text for text in notes if text) or None
    if sizes:
        folder = storage.join(measured or resolved.run, planning.stage_folder(stage))
        rate, each = measured_rate(folder) if throughput is None else None, planning.node_size(resolved, gpus_per_node)
        node_price = place.price_per_hour if place else None
        plans = plan_sizes(replace(request, throughput=throughput), sizes, each, rate, node_price)
        currency = place.currency if place and node_price is not None else "USD"
        if as_json:
            say_json({"stage": stage, "sizes": [asdict(each) for each in plans], "currency": currency, "note": note})
        else:
            plan_view.show_sizes(stage, plans, currency, note)
        return
    found = make_plan(request)
    if as_json:
        say_json(plan_view.as_json(found, seen, note), indent=1)
    else:
        plan_view.show(found, seen, note)


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
