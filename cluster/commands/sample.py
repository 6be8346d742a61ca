"""`foldtrain sample`: the stage of a config, or images of chosen classes of any trained generator, as files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cluster.config.run import ClusterConfig
    from cluster.stages.drawing import Wanted

_WHAT, _HOW, _WHERE, _KEPT = "Which images", "How they are drawn", "Where it runs", "Conditioned on an image"


def sample(
    run: Annotated[
        str,
        typer.Argument(metavar="CONFIG|RUN|URI", help="A config; or a run, or the export of a generator, at any URI."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of a CONFIG.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER|FILE.npz", help="What to write, at any URI.", rich_help_panel=_WHAT
        ),
    ] = None,
    kind: Annotated[
        Literal["png", "npz", "shards"] | None,
        typer.Option("--format", help="Default: npz for a FILE.npz, else png. shards: tars.", rich_help_panel=_WHAT),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="lion,3,7-9: names, numbers, ranges, none. Default: all.", rich_help_panel=_WHAT),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, help="In all; classes take turns. Default: one of each --class, or 16.", rich_help_panel=_WHAT
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="FILE", help='Lines "50 per class", "16 of lion,3".', rich_help_panel=_WHAT),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Default: that of the run.", rich_help_panel=_WHAT)
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="STEP|last|best|URI", help="Default: the finished export.", rich_help_panel=_WHAT
        ),
    ] = None,
    kept_weights: Annotated[
        Literal["ema", "raw"] | None,
        typer.Option("--weights", help="Default: the moving average, if there is one.", rich_help_panel=_WHAT),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Run or export of it, if not the run's own.", rich_help_panel=_WHAT),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="g of c + g (c - u). Default: the run's.", rich_help_panel=_HOW)
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--guidance-schedule", metavar="KIND[:POWER]", help="constant, linear, cosine:3.", rich_help_panel=_HOW
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", rich_help_panel=_HOW)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", rich_help_panel=_HOW)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", rich_help_panel=_HOW)] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of an order that has them.", rich_help_panel=_HOW)
    ] = None,
    order: Annotated[
        list[str] | None,
        typer.Option("--order", metavar="KEY=VALUE", help="Other options of the order.", rich_help_panel=_HOW),
    ] = None,
    precision: Annotated[Literal["fp32", "bf16"] | None, typer.Option("--precision", rich_help_panel=_HOW)] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="IMAGE", help="A file, at any URI.", rich_help_panel=_KEPT)
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="WHAT",
            help="detail, semantic (a branch), scales:N, latents:N, mask:FILE.",
            rich_help_panel=_KEPT,
        ),
    ] = None,
    fit: Annotated[
        Literal["crop", "pad"], typer.Option("--fit", help="How it becomes a square.", rich_help_panel=_KEPT)
    ] = "crop",
    device: Annotated[
        str, typer.Option("--device", help="Of this process: cpu, cuda, cuda:1.", rich_help_panel=_WHERE)
    ] = "cpu",
    workers: Annotated[
        str | None,
        typer.Option("--workers", metavar="N|MIN:MAX", help="On Ray, with so many workers.", rich_help_panel=_WHERE),
    ] = None,
    cpus: Annotated[float, typer.Option("--cpus-per-worker", help="CPUs of each.", rich_help_panel=_WHERE)] = 1,
    gpus: Annotated[int, typer.Option("--gpus-per-worker", help="0 or 1.", rich_help_panel=_WHERE)] = 0,
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster, as cluster.address.", rich_help_panel=_WHERE)
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images at once on a GPU.", rich_help_panel=_WHERE)
    ] = None,
    cpu_batch: Annotated[
        int | None, typer.Option("--cpu-batch", min=1, help="Images at once on a CPU.", rich_help_panel=_WHERE)
    ] = None,
) -> None:
    """Draw images: `sample CONFIG` is the stage of a run; `sample RUN --out FOLDER` draws what you choose.

    The latter goes on where it was killed, and --workers draws on Ray; `foldtrain scale` FOLDER changes their number.
    sampling.json beside the images says all that made them.
    """
    from data_pipeline.errors import UsageError

    is_config = run.endswith((".yaml", ".yml")) or run.startswith("package:")
    if output is None:
        given: list[Any] = [
            classes,
            count,
            plan,
            seed,
            checkpoint,
            kept_weights,
            tokenizer,
            reference,
            keep,
            workers,
            kind,
        ]
        given += [guidance, schedule, temperature, top_k, top_p, steps, order, precision, batch, cpu_batch]
        if not is_config or any(value is not None for value in given):
            raise UsageError(
                "--out is missing: name the folder, or the file.npz, that the images go to. Without options, "
                "`foldtrain sample CONFIG` draws samples/grid.png of the run"
            )
        from cluster.commands.stages import run as run_stage

        run_stage("sample", run, overrides)
        return
    if overrides and not is_config:
        raise UsageError(f"{overrides[0]!r}: overrides are of a CONFIG; a RUN is sampled with options")
    settings: dict[str, Any] = {
        "guidance": guidance,
        "guidance_schedule": None if schedule is None else _schedule(schedule),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "precision": precision,
        "batch": batch,
        "cpu_batch": cpu_batch,
        "order": _order(steps, order or []) or None,
    }
    from cluster.stages.drawing import Wanted

    wanted = Wanted(
        run=run,
        output=output,
        kind=kind,
        classes=tuple(classes or ()),
        plan=plan,
        count=count,
        seed=seed,
        settings={name: value for name, value in settings.items() if value is not None},
        checkpoint=checkpoint,
        raw=None if kept_weights is None else kept_weights == "raw",
        tokenizer=tokenizer,
        reference=reference,
        keep=keep,
        fit=fit,
        device=device,
        cluster=_cluster(workers, cpus, gpus, address),
    )
    _draw(_of_config(wanted, overrides or []) if is_config else wanted)


def _draw(wanted: Wanted) -> None:
    from cluster.stages.drawing import draw
    from cluster.terminal.output import say

    done = draw(wanted)
    total = done.plan.labels.images
    how = f"{done.now:,} images drawn" if done.now else "is finished already"
    rest = f", {total:,} in all" if 0 < done.now < total else ""
    say(f"{done.plan.output}: {how}{rest}; {done.plan.beside('sampling.json')} says what made them")


def _of_config(wanted: Wanted, overrides: list[str]) -> Wanted:
    """What is wanted of the run of a config, with its sampling and its seed below what was typed."""
    from cluster.config.loading import load_config
    from data_pipeline import storage

    config = load_config(wanted.run, overrides)
    typed = wanted.settings or {}
    sampling = config.sampling.model_dump()
    return replace(
        wanted,
        run=config.given("generator") or config.run,
        seed=config.seed if wanted.seed is None else wanted.seed,
        settings=sampling | typed | {"order": sampling["order"] | typed.get("order", {})},
        tokenizer=wanted.tokenizer or config.given("tokenizer") or storage.join(config.run, "tokenizer"),
    )


def _cluster(workers: str | None, cpus: float, gpus: int, address: str | None) -> ClusterConfig | None:
    from pydantic import ValidationError

    from cluster.config.run import ClusterConfig
    from data_pipeline.errors import UsageError
    from data_pipeline.text.json_records import first_problem

    if workers is None:
        if address is not None or gpus:
            raise UsageError("--address and --gpus-per-worker are of workers on Ray: give --workers, too")
        return None
    given = {"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus, "address": address}
    try:
        return ClusterConfig.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"--{first_problem(error).replace('_', '-')}") from None


def _schedule(text: str) -> dict[str, Any]:
    from data_pipeline.errors import UsageError

    kind, colon, power = text.partition(":")
    if not colon:
        return {"kind": kind}
    try:
        return {"kind": kind, "power": float(power)}
    except ValueError:
        raise UsageError(f"--guidance-schedule {text}: the power behind the colon is a number") from None


def _order(steps: int | None, given: list[str]) -> dict[str, Any]:
    """Options of the order; values are YAML."""
    from cluster.config.loading import parse_overrides

    found = parse_overrides([f"sampling.order.{each}" for each in given])
    order: dict[str, Any] = found.get("sampling", {}).get("order", {})
    return order | ({} if steps is None else {"steps": steps})
