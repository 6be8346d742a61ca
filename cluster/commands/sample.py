"""`foldtrain sample`: the stage of a config, or images of chosen classes of any trained generator, as files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_pipeline.text.counted import counted

if TYPE_CHECKING:
    from cluster.config.run import ClusterConfig
    from cluster.stages.drawing import Wanted

_WHAT, _HOW, _WHERE, _KEPT = "Which images", "How they are drawn", "Where it runs", "Conditioned on an image"


def _option(panel: str, *names: str, **settings: Any) -> Any:
    """An option of the command, in its part of the help."""
    return typer.Option(*names, rich_help_panel=panel, **settings)


Run = Annotated[
    str, typer.Argument(metavar="CONFIG|RUN|URI", help="A config; or a run, or the export of a generator, at any URI.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of a CONFIG.")]
Out = Annotated[str | None, _option(_WHAT, "--out", "-o", metavar="FOLDER|FILE.npz", help="What to write, at any URI.")]
Format = Annotated[
    Literal["png", "npz", "shards"] | None,
    _option(_WHAT, "--format", help="Default: npz for a FILE.npz, else png. shards: tars."),
]
Classes = Annotated[
    list[str] | None, _option(_WHAT, "--class", help="lion,3,7-9: names, numbers, ranges, none. Default: all.")
]
Count = Annotated[
    int | None,
    _option(_WHAT, "--n", min=1, help="In all; classes take turns. Default: one of each --class, or 16."),
]
Plan = Annotated[str | None, _option(_WHAT, "--plan", metavar="FILE", help='Lines "50 per class", "16 of lion,3".')]
Seed = Annotated[int | None, _option(_WHAT, "--seed", min=0, help="Default: that of the run.")]
Checkpoint = Annotated[
    str | None,
    _option(_WHAT, "--checkpoint", metavar="STEP|last|best|URI", help="Default: the finished export."),
]
Weights = Annotated[
    Literal["ema", "raw"] | None, _option(_WHAT, "--weights", help="Default: the moving average, if there is one.")
]
TokenizerUri = Annotated[str | None, _option(_WHAT, "--tokenizer", help="Run or export of it, if not the run's own.")]
Guidance = Annotated[float | None, _option(_HOW, "--guidance", help="g of c + g (c - u). Default: the run's.")]
Schedule = Annotated[
    str | None, _option(_HOW, "--guidance-schedule", metavar="KIND[:POWER]", help="constant, linear, cosine:3.")
]
Temperature = Annotated[float | None, _option(_HOW, "--temperature")]
TopK = Annotated[int | None, _option(_HOW, "--top-k")]
TopP = Annotated[float | None, _option(_HOW, "--top-p")]
Steps = Annotated[int | None, _option(_HOW, "--steps", min=1, help="Of an order that has them.")]
OrderOption = Annotated[
    list[str] | None, _option(_HOW, "--order", metavar="KEY=VALUE", help="Other options of the order.")
]
Precision = Annotated[Literal["fp32", "bf16"] | None, _option(_HOW, "--precision")]
RoundingMode = Annotated[
    Literal["nearest", "floor", "adm"] | None,
    _option(_HOW, "--rounding", help="How values become bytes (docs/evaluation.md). Default: nearest."),
]
Reference = Annotated[str | None, _option(_KEPT, "--reference", metavar="IMAGE", help="A file, at any URI.")]
Keep = Annotated[
    str | None,
    _option(_KEPT, "--keep", metavar="WHAT", help="detail, semantic (a branch), scales:N, latents:N, mask:FILE."),
]
Fit = Annotated[Literal["crop", "pad"], _option(_KEPT, "--fit", help="How it becomes a square.")]
DeviceName = Annotated[str, _option(_WHERE, "--device", help="Of this process: cpu, cuda, cuda:1.")]
Workers = Annotated[str | None, _option(_WHERE, "--workers", metavar="N|MIN:MAX", help="On Ray, with so many workers.")]
Cpus = Annotated[float, _option(_WHERE, "--cpus-per-worker", help="CPUs of each.")]
Gpus = Annotated[int, _option(_WHERE, "--gpus-per-worker", help="0 or 1.")]
Address = Annotated[str | None, _option(_WHERE, "--address", help="Of a Ray cluster, as cluster.address.")]
Batch = Annotated[int | None, _option(_WHERE, "--batch", min=1, help="Images at once on a GPU.")]
CpuBatch = Annotated[int | None, _option(_WHERE, "--cpu-batch", min=1, help="Images at once on a CPU.")]
CudaGraphs = Annotated[
    bool | None, _option(_WHERE, "--cuda-graphs/--no-cuda-graphs", help="On a GPU, launch a batch at once.")
]


def sample(
    context: typer.Context,
    run: Run,
    overrides: Overrides = None,
    output: Out = None,
    kind: Format = None,
    classes: Classes = None,
    count: Count = None,
    plan: Plan = None,
    seed: Seed = None,
    checkpoint: Checkpoint = None,
    kept_weights: Weights = None,
    tokenizer: TokenizerUri = None,
    guidance: Guidance = None,
    schedule: Schedule = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    steps: Steps = None,
    order: OrderOption = None,
    precision: Precision = None,
    rounding: RoundingMode = None,
    reference: Reference = None,
    keep: Keep = None,
    fit: Fit = "crop",
    device: DeviceName = "cpu",
    workers: Workers = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    address: Address = None,
    batch: Batch = None,
    cpu_batch: CpuBatch = None,
    cuda_graphs: CudaGraphs = None,
) -> None:
    """Draw images: `sample CONFIG` is the stage of a run; `sample RUN --out FOLDER` draws what you choose.

    The latter goes on where it was killed, and --workers draws on Ray; `foldtrain scale` FOLDER changes their number.
    sampling.json beside the images says all that made them.
    """
    if output is None:
        _run_stage(context, run, overrides)
        return
    from cluster.stages.drawing import Wanted

    how: dict[str, Any] = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    how |= {"precision": precision, "batch": batch, "cpu_batch": cpu_batch, "cuda_graphs": cuda_graphs}
    wanted = Wanted(
        run=run,
        output=output,
        kind=kind,
        classes=tuple(classes or ()),
        plan=plan,
        count=count,
        seed=seed,
        settings=_settings(how, schedule, steps, order),
        checkpoint=checkpoint,
        raw=None if kept_weights is None else kept_weights == "raw",
        tokenizer=tokenizer,
        reference=reference,
        keep=keep,
        rounding=rounding or "nearest",
        fit=fit,
        device=device,
        cluster=cluster_of(workers, cpus, gpus, address),
    )
    _draw(_of_overrides(wanted, overrides))


def _is_config(run: str) -> bool:
    return run.endswith((".yaml", ".yml")) or run.startswith("package:")


def _run_stage(context: typer.Context, run: str, overrides: list[str] | None) -> None:
    """The stage of a config, which takes no options."""
    from data_pipeline.errors import UsageError

    sources = {name: context.get_parameter_source(name) for name in context.params.keys() - {"run", "overrides"}}
    if not _is_config(run) or any(source and source.name == "COMMANDLINE" for source in sources.values()):
        raise UsageError(
            "--out is missing: name the folder, or the file.npz, that the images go to. Without options, "
            "`foldtrain sample CONFIG` draws samples/grid.png of the run"
        )
    from cluster.commands.stages import run as run_stage

    run_stage("sample", run, overrides)


def _settings(how: dict[str, Any], schedule: str | None, steps: int | None, order: list[str] | None) -> dict[str, Any]:
    """What was typed of the section `sampling`."""
    given = how | {
        "guidance_schedule": None if schedule is None else _schedule(schedule),
        "order": _order(steps, order or []) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _of_overrides(wanted: Wanted, overrides: list[str] | None) -> Wanted:
    """What is wanted of a config with these overrides, or of a run, which has none."""
    from data_pipeline.errors import UsageError

    if _is_config(wanted.run):
        return _of_config(wanted, overrides or [])
    if overrides:
        raise UsageError(f"{overrides[0]!r}: overrides are of a CONFIG; a RUN is sampled with options")
    return wanted


def _draw(wanted: Wanted) -> None:
    from cluster.stages.drawing import draw
    from cluster.terminal.output import say

    done = draw(wanted)
    total = done.plan.labels.images
    how = f"{counted(done.now, 'image')} drawn" if done.now else "is finished already"
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


def cluster_of(workers: str | None, cpus: float, gpus: int, address: str | None) -> ClusterConfig | None:
    """The cluster whose workers were asked for by options; None for this process.

    Raises:
        UsageError: if that cannot be.
    """
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
