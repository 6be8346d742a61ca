"""`foldtrain evaluate`: the stage of a config; or a tokenizer, or a set of images, of anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from trainer.config.feature_networks import FeatureNetworkConfig

_STAGE = "stage"
_NETWORK_HELP = "inception:FILE, timm:NAME[@FILE], torchvision:NAME@FILE or classifier:URI; may be given several times."


class _StageByDefault(TyperGroup):
    """What does not begin with the name of a command is the stage's: `evaluate CONFIG`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args and args[0] not in self.commands:
            return _STAGE, self.commands[_STAGE], args
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_StageByDefault, no_args_is_help=True)

Size = Annotated[int | None, typer.Option("--size", min=1, help="Side of the squares that images are cut to.")]
Most = Annotated[int | None, typer.Option("--n", min=2, help="Images, the first ones. Default: all.")]
Inception = Annotated[
    str | None,
    typer.Option("--inception", metavar="FILE", help="The 2015 Inception: FID, sFID, IS, precision, recall."),
]
Networks = Annotated[list[str] | None, typer.Option("--network", metavar="KIND:NAME@FILE", help=_NETWORK_HELP)]
Out = Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Where evaluation.json goes, at any URI.")]
Workers = Annotated[str | None, typer.Option("--workers", metavar="N|MIN:MAX", help="On Ray, with so many workers.")]
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
