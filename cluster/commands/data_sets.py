"""Data sets made of others, without copying a shard or computing a token: `foldtrain data`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.data import progress_of
from cluster.terminal.output import say
from data_pipeline.text.counted import counted

if TYPE_CHECKING:
    from data_pipeline.tools.editing import Planned

data = typer.Typer(
    no_args_is_help=True,
    help="Data sets made of others: a new manifest over shards that are there. Nothing is copied or computed anew; "
    "the shards stay where they are, and have to.",
)

Sets = Annotated[list[str], typer.Argument(metavar="URI...", help="Folders of data sets, at any URI, in this order.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder of the new manifest, at any URI.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would come to, and write nothing.")]
MOST_KEY_FILE_BYTES = 2**30


@data.command("append")
def append(
    uris: Sets,
    output: Output,
    images: Annotated[
        str | None,
        typer.Option("--images", help="Of tokens: the images of all of them, appended in the same order."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """The samples of some sets, one set after another; classes are joined by name."""
    from data_pipeline.tools import editing

    _make(lambda: editing.append(uris, output, images), dry_run)


@data.command("subset")
def subset(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Folder of a data set, at any URI.")],
    output: Output,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Of this class; may be given several times.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option("--keys", metavar="FILE", help="A text file with a key per line, at any URI.")
    ] = None,
    share: Annotated[
        float | None, typer.Option("--share", min=0, max=1, help="This share, drawn by --seed; a larger one holds it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of --share.")] = 0,
    first: Annotated[int | None, typer.Option("--first", min=1, help="The first so many of what is left.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Some samples of a set, in its order. What is given holds all at once, a share and --first last."""
    from data_pipeline import storage
    from data_pipeline.errors import UsageError
    from data_pipeline.tools import editing
    from data_pipeline.tools.choosing import Choice

    if not classes and keys is None and share is None and first is None:
        raise UsageError("say which samples: --class, --keys, --share or --first")
    try:
        lines = storage.read_bytes(keys, MOST_KEY_FILE_BYTES).decode().splitlines() if keys is not None else []
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UsageError(f"--keys {keys}: it is no text file ({error})") from None
    named = tuple(line.strip() for line in lines if line.strip())
    if keys is not None and not named:
        raise UsageError(f"--keys {keys}: it names no key")
    choice = Choice(tuple(classes or ()), named, share, seed, first)
    with progress_of("subset", "shards") as progress:
        _make(lambda: editing.subset(uri, output, choice, progress), dry_run)


@data.command("mix")
def mix(
    sets: Annotated[
        list[str],
        typer.Argument(metavar="URI=WEIGHT...", help="Folders of data sets, each with its weight: runs/a/tokens=0.5"),
    ],
    output: Output,
    dry_run: DryRun = False,
) -> None:
    """Some sets by weight: how often each sample of a set is seen in an epoch, on average."""
    from data_pipeline.tools import editing

    _make(lambda: editing.mix(parse_weights(sets), output), dry_run)


@data.command("views")
def views(uris: Sets, output: Output, dry_run: DryRun = False) -> None:
    """Sets of tokens of the same images, each with other views, as one with all views."""
    from data_pipeline.tools import editing

    with progress_of("views", "shards") as progress:
        _make(lambda: editing.views(uris, output, progress), dry_run)


def parse_weights(sets: list[str]) -> dict[str, float]:
    """Weights by URI, from "URI=WEIGHT".

    Raises:
        UsageError: if one is not of that form, or a set is named twice.
    """
    from data_pipeline.errors import UsageError

    found: dict[str, float] = {}
    for each in sets:
        uri, sign, text = each.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not sign or not uri or not 0 < weight < float("inf"):
            raise UsageError(f"{each} is no URI=WEIGHT with a number above 0, such as runs/a/tokens=0.5")
        if uri in found:
            raise UsageError(f"{uri} is given twice: add its weights")
        found[uri] = weight
    return found


def _make(plan: Callable[[], Planned], dry_run: bool) -> None:
    planned = plan()
    manifest, made = planned.manifest, "would be"
    if not dry_run:
        made = "is" if planned.write(say=say) else "was already"
    say(*planned.summary)
    shards = counted(len(manifest.shards), "shard that stays where it is", "shards that stay where they are")
    what = f"{counted(manifest.samples, 'sample')} of {shards} ({manifest.shards.total_bytes:,} bytes)"
    say(f"{planned.output} {made} a set of {manifest.kind} {manifest.fingerprint[:16]}: {what}")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(data, name="data", rich_help_panel="Data")
