"""`foldtrain evaluate`: the stage of a config; or a tokenizer, or a set of images, of anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.commands.sample import cluster_of

if TYPE_CHECKING:
    from model.config.losses import PerceptualConfig
    from trainer.config.feature_networks import FeatureNetworkConfig
    from trainer.evaluation.naming.numbers import Number
    from trainer.evaluation.tokenizers.perturbed_tokens import TokenPerturbation

_RUN = "run"
_HELP = "Judge a run (evaluate CONFIG; --explain, --sweep), a tokenizer, or images of anybody."
_NETWORK_HELP = "inception:FILE, timm:NAME[@FILE], torchvision:NAME@FILE or classifier:URI; may be given several times."


class _RunByDefault(TyperGroup):
    """What does not begin with the name of a command belongs to `run`: `evaluate CONFIG`, `evaluate --explain RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [_RUN, *args]
        found: list[str] = super().parse_args(ctx, args)
        return found


app = typer.Typer(cls=_RunByDefault, no_args_is_help=True)

Size = Annotated[int | None, typer.Option("--size", min=1, help="Side of the squares that images are cut to.")]
Most = Annotated[int | None, typer.Option("--n", min=2, help="Images, the first ones. Default: all.")]
Inception = Annotated[
    str | None,
    typer.Option("--inception", metavar="FILE", help="The 2015 Inception: FID, sFID, IS, precision, recall."),
]
Networks = Annotated[list[str] | None, typer.Option("--network", metavar="KIND:NAME@FILE", help=_NETWORK_HELP)]
Out = Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Where evaluation.json goes, at any URI.")]
PrecisionRecall = Annotated[
    bool, typer.Option("--precision-recall/--no-precision-recall", help="They take images times images.")
]
Workers = Annotated[str | None, typer.Option("--workers", metavar="N|MIN:MAX", help="On Ray, with so many workers.")]
Resamples = Annotated[int, typer.Option("--resamples", min=0, help="Of the bootstrap: ± of distances.")]
Cpus = Annotated[float, typer.Option("--cpus-per-worker", help="CPUs of each.")]
Gpus = Annotated[int, typer.Option("--gpus-per-worker", help="0 or 1.")]
Address = Annotated[str | None, typer.Option("--address", help="Of a Ray cluster, as cluster.address.")]


def networks_of(inception: str | None, given: list[str] | None) -> list[FeatureNetworkConfig]:
    """The networks that were typed.

    Raises:
        UsageError: if one is not known, or cannot be so.
    """
    from pydantic import TypeAdapter, ValidationError

    from data_pipeline.errors import UsageError
    from data_pipeline.text.json_records import first_problem
    from trainer.config.feature_networks import FeatureNetworkConfig

    adapter: TypeAdapter[FeatureNetworkConfig] = TypeAdapter(FeatureNetworkConfig)
    found = []
    for text in [*([f"inception:{inception}"] if inception else []), *(given or [])]:
        try:
            found.append(adapter.validate_python(_network(text)))
        except ValidationError as error:
            raise UsageError(f"--network {text}: {first_problem(error)} ({_NETWORK_HELP})") from None
    return found


def _network(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    if kind == "inception":
        return {"kind": kind, "file": rest}
    if kind == "classifier":
        return {"kind": kind, "uri": rest}
    name, _, file = rest.partition("@")
    return {"kind": kind, "network": name} | ({"file": file} if file else {})


@app.command(_RUN)
def stage(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML config; for --explain a run will do.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each number there is follows from.")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="KEY=START:STOP:STEP", help="Of sampling; several give all combinations."),
    ] = None,
) -> None:
    """Judge a run, which `evaluate CONFIG` does, too: evaluation.json; or sweep settings, or explain its numbers."""
    if explain and sweep:
        from data_pipeline.errors import UsageError

        raise UsageError("--explain tells of numbers that are there, --sweep makes them: give one of the two")
    if explain:
        _explain(config, overrides)
    elif sweep:
        _sweep(config, overrides, sweep)
    else:
        from cluster.commands.stages import run

        run("evaluate", config, overrides)


def _explain(place: str, overrides: list[str] | None) -> None:
    from cluster.config.loading import load_config
    from cluster.stages.explaining import explain
    from cluster.terminal.output import say

    is_config = place.endswith((".yaml", ".yml")) or place.startswith("package:")
    for line in explain(load_config(place, overrides or []).run if is_config else place):
        say(line)


def _sweep(place: str, overrides: list[str] | None, given: list[str]) -> None:
    from cluster.config.loading import load_config
    from cluster.stages.inputs import with_found
    from cluster.stages.sweeping import parse_sweep, sweep
    from trainer.registry import FOLDERS

    points = parse_sweep(given)
    sweep(with_found(load_config(place, overrides or []), FOLDERS), points)


@app.command("images")
def images(
    shown: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder, an npz, image shards, or samples.")],
    output: Out,
    reference: Annotated[
        str, typer.Option("--reference", metavar="IMAGES|FILE.npz", help="What they are compared with; ADM's npz, too.")
    ],
    inception: Inception = None,
    network: Networks = None,
    size: Size = None,
    most: Most = None,
    splits: Annotated[int, typer.Option("--splits", min=1, help="Of the Inception score.")] = 10,
    resamples: Resamples = 0,
    neighbours: PrecisionRecall = True,
    workers: Workers = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    address: Address = None,
) -> None:
    """Compare images of anybody with others, or with published statistics."""
    from cluster.stages.evaluating_given import How, evaluate_images
    from trainer.evaluation.set_numbers import MetricOptions

    how = How(
        output=output,
        networks=networks_of(inception, network),
        size=size,
        most=most,
        options=MetricOptions(splits, resamples, neighbours),
        cluster=cluster_of(workers, cpus, gpus, address),
    )
    _say(evaluate_images(shown, reference, how), output)


@app.command("tokenizer")
def tokenizer(
    uri: Annotated[str, typer.Argument(metavar="RUN|URI", help="A run, or the export or import of a tokenizer.")],
    output: Out,
    shown: Annotated[str, typer.Option("--images", metavar="IMAGES", help="Image shards, a folder, or an npz.")],
    inception: Inception = None,
    network: Networks = None,
    perceptual: Annotated[
        list[str] | None, typer.Option("--perceptual", metavar="KIND[:KEY=VALUE,…]", help="lpips:file=…,heads=…")
    ] = None,
    prefixes: Annotated[
        bool, typer.Option("--prefixes", help="Distances at each prefix of the tokens, too; and of --baselines.")
    ] = False,
    perturb: Annotated[
        str | None,
        typer.Option(
            "--perturb", metavar="ALPHA[,ALPHA]:DELTA[:SEED]", help="Again with tokens replaced by near ones (pFID)."
        ),
    ] = None,
    probe: Annotated[
        str | None, typer.Option("--probe", metavar="IMAGES", help="Linear probes, trained on these, with classes.")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option("--baselines", metavar="IMAGES", help="Error by bits, with components of these images, and JPEG."),
    ] = None,
    legibility: Annotated[
        bool, typer.Option("--legibility", help="Whether text can be read in reconstructions.")
    ] = False,
    resamples: Resamples = 0,
    neighbours: PrecisionRecall = True,
    size: Size = None,
    most: Most = None,
    workers: Workers = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    address: Address = None,
) -> None:
    """Measure any tokenizer: errors at each prefix, use of codes, distances; and what else is asked for."""
    from cluster.stages.evaluating_given import How
    from cluster.stages.evaluating_tokenizer import Asked, evaluate_tokenizer
    from trainer.evaluation.set_numbers import MetricOptions

    how = How(
        output=output,
        networks=networks_of(inception, network),
        size=size,
        most=most,
        perceptual=_perceptual(perceptual or []),
        options=MetricOptions(resamples=resamples, precision_recall=neighbours),
        cluster=cluster_of(workers, cpus, gpus, address),
    )
    asked = Asked(prefixes, _perturbations(perturb), probe, baselines, legibility)
    _say(evaluate_tokenizer(uri, shown, how, asked), output)


def _perceptual(given: list[str]) -> tuple[PerceptualConfig, ...]:
    from pydantic import TypeAdapter, ValidationError

    from data_pipeline.errors import UsageError
    from data_pipeline.text.json_records import first_problem
    from model.config.losses import AnyPerceptualConfig

    found = []
    for text in given:
        kind, _, rest = text.partition(":")
        pairs = (each.partition("=") for each in rest.split(",") if each)
        try:
            made = TypeAdapter(AnyPerceptualConfig).validate_python({"kind": kind} | {key: to for key, _, to in pairs})
        except ValidationError as error:
            raise UsageError(f"--perceptual {text}: {first_problem(error)}") from None
        found.append(made)
    return tuple(found)


def _perturbations(text: str | None) -> list[TokenPerturbation]:
    from data_pipeline.errors import UsageError
    from trainer.evaluation.tokenizers.perturbed_tokens import TokenPerturbation

    if text is None:
        return []
    try:
        alphas, delta, *seed = text.split(":")
        (number,) = map(int, seed or ["0"])
        return [TokenPerturbation(float(alpha), int(delta), number) for alpha in alphas.split(",")]
    except ValueError:
        raise UsageError(
            f"--perturb {text}: give ALPHA:DELTA, as 0.5:100, several as 0.1,0.5:100, or ALPHA:DELTA:SEED"
        ) from None


def _say(numbers: list[Number], output: str) -> None:
    from cluster.terminal.output import say
    from trainer.evaluation.naming.number_names import full_name

    for number in numbers:
        say(full_name(number))
    say(f"{output.rstrip('/')}/evaluation.html; `foldtrain compare` takes the folder")


def register(parent: typer.Typer) -> None:
    """Add the commands of this file."""
    parent.add_typer(app, name="evaluate", rich_help_panel="Stages", help=_HELP)
