"""How a plan looks: tables in the terminal, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.terminal.output import console, duration
from data_pipeline.text.counted import counted
from trainer.planning.measured import Measured
from trainer.planning.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.planning.fitting import Remedy
    from trainer.planning.sizes import SizePlan

Rows = list[tuple[str, str]]
GB = 1e9


def as_json(plan: Plan, measured: Measured | None, note: str | None) -> dict[str, Any]:
    """All figures as plain data."""
    record = plan.to_json() | {"note": note}
    return record | ({"measured": asdict(measured)} if measured else {})


def show(plan: Plan, measured: Measured | None, note: str | None) -> None:
    """Print the plan, section by section."""
    out = console()
    sections = {
        f"{plan.stage} on {plan.world} x {plan.device}, nodes: {plan.nodes}": work_rows(plan),
        "time": time_rows(plan),
        f"memory per rank (peak: {plan.memory.moment})": memory_rows(plan),
        "memory of a node": host_rows(plan),
        "storage": storage_rows(plan),
        "failures and cost": failure_rows(plan),
    }
    for title, rows in sections.items():
        out.print(_table(title, rows))
    if note:
        out.print(f"note: {note}", style="yellow")
    if measured:
        out.print(measured_table(plan, measured))


def show_sizes(stage: str, plans: Sequence[SizePlan], currency: str, note: str | None) -> None:
    """Print a row for each size, and where its hours are from."""
    from rich.table import Table

    table = Table(title=f"{stage} at several sizes", title_justify="left", title_style="bold", box=None)
    for name in ("workers", "nodes", "time", "node hours", "price", "samples/s"):
        table.add_column(name, justify="right")
    table.add_column("")
    sources: dict[str, list[str]] = {}
    for each in plans:
        price = "-" if each.price is None else f"{each.price:,.2f} {currency}"
        numbers = [
            "-" if each.hours is None else duration(each.hours * 3600),
            "-" if each.node_hours is None else f"{each.node_hours:,.2f}",
            price,
            "-" if each.samples_per_second is None else f"{each.samples_per_second:,.0f}",
        ]
        table.add_row(str(each.workers), str(each.nodes), *numbers, "" if each.fits is not False else "does not fit")
        sources.setdefault(each.known_from, []).append(str(each.workers))
    console().print(table)
    for source, sizes in sources.items():
        console().print(f"{', '.join(sizes)}: {source}", markup=False)
    if note:
        console().print(f"note: {note}", style="yellow")


def _table(title: str, rows: Rows) -> Table:
    from rich.table import Table

    table = Table("", "", title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    return table


def size(count: float) -> str:
    """Bytes in the unit that suits them, of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def work_rows(plan: Plan) -> Rows:
    """Steps, samples, how a batch is cut, parameters."""
    epochs = "unknown: there is no manifest yet, give --samples" if plan.epochs is None else f"{plan.epochs:.1f}"
    split = f"{counted(plan.world, 'rank')} x {plan.micro_batch} x {plan.accumulation} accumulated"
    return [
        ("steps", f"{plan.steps:,}"),
        ("samples seen", f"{plan.samples:,}"),
        ("epochs", epochs + (f" of {plan.data.samples:,} ({plan.data.known_from})" if plan.data.samples else "")),
        ("global batch", f"{plan.global_batch:,} = {split}"),
        ("parameters", f"{plan.parameters / 1e6:,.1f} M"),
        ("precision, ZeRO", f"{plan.precision}, stage {plan.zero_stage}"),
    ]


def time_rows(plan: Plan) -> Rows:
    """Operations, and the time if it is known."""
    time = plan.time
    more = f" ({time.flops_per_sample_computed / 1e9:,.4g} as computed)"
    differs = time.flops_per_sample != time.flops_per_sample_computed
    rows = [
        ("GFLOP per sample", f"{time.flops_per_sample / 1e9:,.4g}" + (more if differs else "")),
        ("TFLOP per step", f"{time.flops_per_step / 1e12:,.4g}"),
    ]
    if time.step_seconds is None or time.hours is None:
        return [*rows, ("time", f"cannot tell: {time.known_from}")]
    said = "predicted" if time.predicted else "measured"
    rows.append((f"step, {said}", f"{time.step_seconds:.3g} s, {time.samples_per_second:,.0f} samples/s"))
    rows += [
        (f"  {part.phase}", f"{part.seconds * 1e3:,.1f} ms, {part.kernels:,.0f} kernels, {size(part.bytes)}")
        for part in time.phases
    ]
    rows.append((f"whole run, {said}", f"{duration(time.hours * 3600)} without failures"))
    rows.append(("from", time.known_from))
    if time.predicted:
        return rows
    return [*rows, ("MFU", "unknown: no peak is known of this device" if time.mfu is None else f"{time.mfu:.1%}")]


def memory_rows(plan: Plan) -> Rows:
    """Each part, the sum, and the verdict."""
    fit, memory = plan.fit, plan.memory
    rows = [(name, size(count)) for name, count in memory.device.items()]
    rows.append(("sum", size(memory.device_bytes)))
    rows += [(f"in host memory: {name}", size(count)) for name, count in memory.host.items()]
    if fit.limit is None:
        return [*rows, ("verdict", "unknown: give --device to compare it with a device's memory")]
    rows.append(("with CUDA and NCCL", f"{size(fit.needed)} of {size(fit.limit)}"))
    if fit.fits:
        return [*rows, ("verdict", "fits")]
    largest = max(memory.device, key=lambda name: memory.device[name])
    rows.append(("verdict", f"does not fit; the largest part is {largest}"))
    if fit.remedy is None:
        return [*rows, ("what helps", "no setting of this trainer: take more ranks, or devices with more memory")]
    return [*rows, ("what helps", _remedy(plan, fit.remedy))]


def host_rows(plan: Plan) -> Rows:
    """What all ranks of a node need of its own memory, and whether it is there."""
    host = plan.host
    each = counted(plan.world // plan.nodes, "rank and its processes", "ranks and their processes")
    ranks = f"{size(host.needed)} for {each}"
    if host.limit is None:
        return [("needed", ranks), ("verdict", "unknown: give --host-memory to compare it with a node's")]
    rows = [("needed", f"{ranks}, of {size(host.limit)}")]
    if host.fits:
        return [*rows, ("verdict", "fits")]
    rows.append(("verdict", "does not fit"))
    if host.remedy is None:
        return [*rows, ("what helps", "more nodes, which hold smaller shares, or fewer ranks on each")]
    return [*rows, ("what helps", _remedy(plan, host.remedy))]


def _remedy(plan: Plan, remedy: Remedy) -> str:
    name = plan.stage.removeprefix("train-")
    stage = "evaluation.judge" if name == "judge" else name
    settings = " ".join(f"{stage}.trainer.{path}" for path in _assignments(remedy.settings))
    return f"{settings}  -> {size(remedy.bytes)} ({remedy.why})"


def _assignments(settings: dict[str, Any]) -> list[str]:
    """Nested settings as overrides: {"a": {"b": 1}} gives a.b=1."""
    found = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += [f"{key}.{rest}" for rest in _assignments(value)]
        else:
            found.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return found


def storage_rows(plan: Plan) -> Rows:
    """Reads of data, and checkpoints."""
    rows: Rows = []
    reading, saved = plan.reading, plan.checkpoints
    if reading is None:
        rows.append(("data", "unknown: there is no manifest yet, give --samples"))
    else:
        read = "bytes unknown before ingest" if reading.bytes is None else size(reading.bytes)
        rows.append(("data", f"{read} in {reading.requests:,} GET requests: {reading.how}"))
        if reading.node_bytes:
            rows.append(("copy on each node", size(reading.node_bytes)))
    upload = f"{duration(saved.seconds)} in the background" if saved.seconds >= 1 else "less than a second"
    rows.append(("checkpoint", f"{size(saved.bytes)} in {saved.requests:,} PUT requests, {upload}"))
    rows.append(("checkpoints in all", f"{saved.count:,}, {size(saved.count * saved.bytes)} written"))
    return rows


def failure_rows(plan: Plan) -> Rows:
    """What failures cost, and what the run does."""
    if plan.failures is None or plan.gpu_hours is None:
        return [("failures, cost", "cannot tell before the time is known")]
    lost = plan.failures
    rows = [
        ("failures expected", f"{lost.expected:.1f}"),
        ("lost to them", f"{lost.lost_hours:.2f} h, with a checkpoint every {duration(lost.interval_seconds)}"),
        ("best interval", f"{duration(lost.best_seconds)} (Young/Daly): {lost.best_lost_hours:.2f} h lost"),
        ("device hours", f"{plan.gpu_hours:,.0f}"),
    ]
    return rows + ([] if plan.cost is None else [("cost", f"{plan.cost:,.0f} USD")])


def measured_table(plan: Plan, measured: Measured) -> Table:
    """Predicted beside measured."""
    from rich.table import Table

    table = Table(
        "", "predicted", "measured", title="after the run", title_justify="left", title_style="bold", box=None
    )
    time, saved = plan.time, plan.checkpoints

    def row(name: str, predicted: float | None, found: float | None, text: str) -> None:
        cells = ["-" if value is None else text.format(value) for value in (predicted, found)]
        table.add_row(name, *cells)

    row("seconds per step", time.step_seconds, measured.step_seconds, "{:.4g}")
    row("samples per second", time.samples_per_second, measured.samples_per_second, "{:,.1f}")
    if measured.device_bytes is not None:
        row("bytes on a rank's device", plan.memory.device_bytes, measured.device_bytes, "{:,.0f}")
    host = plan.memory.host_bytes if plan.memory.host else plan.memory.device_bytes
    row("bytes of a rank's process (predicted: without libraries)", host, measured.resident_bytes, "{:,.0f}")
    row("bytes of a checkpoint", saved.bytes, measured.checkpoint_bytes, "{:,.0f}")
    row("seconds of a checkpoint", saved.seconds, measured.checkpoint_seconds, "{:.3g}")
    between = None if plan.failures is None else plan.failures.interval_seconds
    row("seconds between checkpoints", between, measured.checkpoint_seconds_between, "{:.4g}")
    row("restarts", None if plan.failures is None else plan.failures.expected, measured.restarts, "{:.1f}")
    row("skipped steps", 0, measured.skipped_steps, "{:.0f}")
    return table
