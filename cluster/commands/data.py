"""Data sets of images and tokens: check one, look into it, take it to and from other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.terminal.output import say, say_json
from data_pipeline.text.counted import counted

if TYPE_CHECKING:
    from data_pipeline.tokens.importing.tokens import Foreign, ForeignTokens

Folder = Annotated[str, typer.Argument(metavar="URI", help="Folder of image shards or token shards, at any URI.")]
Tokens = Annotated[str, typer.Argument(metavar="URI", help="Folder of token shards, at any URI.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder of the token shards to write, at any URI.")]
CodebookSize = Annotated[int, typer.Option("--codebook-size", help="Codes of the tokenizer that made them.")]
Grid = Annotated[int | None, typer.Option("--grid", help="Side of the token grid. Default: from the input.")]
Classes = Annotated[str | None, typer.Option("--classes", help="File with a class name per line, by label.")]
TokenizerName = Annotated[str, typer.Option("--tokenizer-name", help="What to call the tokenizer in the record.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Side of the images. Default: 16 per token.")]

imports = typer.Typer(no_args_is_help=True, help="Tokens of other programs → ours.")


def verify(
    uri: Folder,
    against: Annotated[str | None, typer.Option("--against", help="Images that tokens were made of.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read no image and no token.")] = False,
    as_json: Json = False,
) -> None:
    """Check a data set, from its bytes to its lineage; exit code 1 if anything is wrong."""
    from cluster.monitor import data_view
    from data_pipeline.errors import FoldtrainError
    from data_pipeline.tools.verifying import verify as check

    with progress_of("verify", "shards", quiet=as_json) as progress:
        report = check(uri, against, quick=quick, progress=progress)
    if as_json:
        say_json(report.to_json(), indent=1)
    else:
        data_view.show_report(report)
    if not report.passed:
        failed = [check for check in report.checks if not check.passed]
        raise FoldtrainError(f"{uri} is not right ({failed[0].name}): {failed[0].problems[0]}")


def inspect(
    uri: Folder,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples to list and to draw.")] = 16,
    grid: Annotated[str | None, typer.Option("--grid", metavar="FILE.png", help="Draw them into this file.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Export that decodes tokens.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Count codes of so many samples only.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in a data set: schema, samples, labels, how the codebooks are used."""
    from cluster.monitor import data_view
    from data_pipeline.tools.inspecting import inspect_data

    found = inspect_data(uri, samples, limit)
    if grid is not None:
        data_view.write_grid(uri, found.schema["kind"], tokenizer, samples, grid)
    if as_json:
        say_json(found.to_json(), indent=1)
    else:
        data_view.show_inspection(found)


def export(
    uri: Tokens,
    to: Annotated[str, typer.Option("--to", help="Folder to write to, at any URI.")],
    export_format: Annotated[str, typer.Option("--format", help="webdataset, npz or parquet.")],
) -> None:
    """Write tokens in the format of another trainer; the same command again completes it."""
    from data_pipeline.tokens.exporting import export_tokens

    with progress_of("export", "shards") as progress:
        record = export_tokens(uri, to, export_format, progress=progress)
    files = sum(part["files"] for part in record["parts"])
    say(f"{to}: {counted(record['tokens']['samples'], 'sample')} in {counted(files, 'file')}, see export.json")


@imports.command("llamagen")
def import_llamagen(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of extract_codes_c2i: its --code-path.")],
    output: Output,
    codebook_size: CodebookSize,
    grid: Grid = None,
    classes: Classes = None,
    codes: Annotated[str | None, typer.Option("--codes", help="Folder of codes, if it is elsewhere.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Folder of labels, if it is elsewhere.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Number of images; files beyond it repeat the first ones.")
    ] = None,
    tokenizer_name: TokenizerName = "unknown",
    image_size: ImageSize = None,
) -> None:
    """Codes and labels as .npy files, as LlamaGen's extract_codes_c2i writes them."""
    from data_pipeline.tokens.importing.llamagen import LlamaGenCodes
    from data_pipeline.tokens.importing.tokens import Foreign

    foreign = Foreign(codebook_size, grid, tokenizer_name, image_size)
    _import(LlamaGenCodes(folder, codes, labels, samples), foreign, output, classes)


@imports.command("rar")
def import_rar(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", help="File of RAR's pretokenization, at any URI.")],
    output: Output,
    codebook_size: CodebookSize,
    grid: Grid = None,
    classes: Classes = None,
    views: Annotated[
        int, typer.Option("--views", min=1, help="Lines in a row that are views of one image: 10 with --ten_crop.")
    ] = 1,
    tokenizer_name: TokenizerName = "unknown",
    image_size: ImageSize = None,
) -> None:
    """A line of JSON per view, as RAR's pretokenization writes them."""
    from data_pipeline.tokens.importing.rar import RARTokens
    from data_pipeline.tokens.importing.tokens import Foreign

    _import(RARTokens(file, views), Foreign(codebook_size, grid, tokenizer_name, image_size), output, classes)


def _import(source: ForeignTokens, foreign: Foreign, output: str, classes: str | None) -> None:
    from data_pipeline.tokens.importing.tokens import import_tokens, plan_import, read_classes

    plan = plan_import(source, foreign, output)
    names = read_classes(classes) if classes else None
    with progress_of("import", "samples") as progress:
        manifest = import_tokens(plan, names, progress)
    samples, views = counted(manifest.samples, "sample"), ", ".join(manifest.views)
    say(f"{output}: {samples}, views {views}, {manifest.fingerprint[:16]}")


@contextmanager
def progress_of(label: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], Any]]:
    """What a long step tells how far it is: a bar in a terminal, nothing elsewhere."""
    from cluster.progress.training_progress import ProgressLine
    from cluster.terminal.output import console

    if quiet or not console().is_terminal:
        yield lambda _done, _total: None
        return
    line = ProgressLine(label, unit)
    try:
        yield lambda done, total: line.update(done, total, "")
    finally:
        line.close()


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    panel = "Data"
    app.command("verify", rich_help_panel=panel)(verify)
    app.command("inspect", rich_help_panel=panel)(inspect)
    app.command("export", rich_help_panel=panel)(export)
    app.add_typer(imports, name="import", rich_help_panel=panel)
