"""Published weights become exports; images become tokens and back, file by file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cluster.terminal.output import say, say_json
from data_pipeline.text.counted import counted

if TYPE_CHECKING:
    from data_pipeline.tokens.importing.networks import Imported
    from model.protocols import Tokenizer as Network
    from trainer.inference import Tokenizer
    from trainer.inference.fidelity import Fidelity
    from trainer.inference.image_files import ImageFiles

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them, at any URI.")]
TokenizerUri = Annotated[str, typer.Option("--tokenizer", help="A run, or the export of its tokenizer, at any URI.")]
Device = Annotated[str, typer.Option("--device", help="Of torch: cpu, cuda, cuda:1.")]
Fit = Annotated[Literal["crop", "pad"], typer.Option("--fit", help="How images become squares, as data.fit has it.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images at once.")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="Decode so many leading positions alone.")]
Scales = Annotated[int | None, typer.Option("--scales", min=1, help="Decode so many leading scales alone.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[str, typer.Option("--out", "-o", help="Folder of the PNG files to write, at any URI.")]
_ROUND_TRIP = 4
"""Images of a round trip that are shown one by one."""


def import_weights(
    source: Annotated[str, typer.Argument(metavar="FILE|FOLDER|URI", help="A file of weights, or a hub folder.")],
    output: Annotated[str, typer.Option("--out", "-o", help="Folder of the export to write, at any URI.")],
    config: Annotated[
        str | None,
        typer.Option("--config", help="Published options, JSON or YAML. Default: in the file, or config.json beside."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--as", metavar="KIND", help="What it is, if not what it looks like.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The weights as trained, not their moving average.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Of a generator: run or export of its tokenizer.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Of a generator: file with a class name per line, by label.")
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="Image or folder for the round trip. Default: a made-up picture.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Published weights of a tokenizer or generator → an export, for `inputs` and `init_from`. Nothing of them is run.

    Files of torch.save (.pt, .pth, .bin), safetensors, and hub folders. What a file is follows from its tensors. A
    tokenizer then encodes and decodes an image, since weights that were loaded wrong draw garbage without a word.
    """
    from cluster.stages.inputs import find_product
    from data_pipeline.tokens.importing.networks import Wish, import_network
    from data_pipeline.tokens.importing.tokens import read_classes
    from trainer.inference.image_files import find_images

    _check_device(device)
    spoken = find_product("tokenizer", tokenizer, "--tokenizer") if tokenizer else None
    names = read_classes(classes) if classes else ()
    files = find_images([images]) if images else None
    done = import_network(source, output, Wish(config, kind, raw, spoken, names))
    say(done.found, f"{output}: {done.card.kind}, {_layout(done)}, {done.card.fingerprint()[:16]}")
    if done.card.kind == "tokenizer":
        _round_trip(done, output, files, device)


def _layout(done: Imported) -> str:
    """What tokens it makes or predicts, as it was understood: a wrong guess is seen here."""
    from model.config import TokenizerConfig
    from trainer.networks import GeneratorCard

    config = done.network.config
    if isinstance(config, TokenizerConfig):
        size, layout = f"{config.image_size} px, ", config.layout if config.has_tokens else None
    else:
        size, layout = "", GeneratorCard.model_validate(done.card.config).layout
    if layout is None:
        return f"{size}no tokens"
    groups = " + ".join(map(str, layout.groups))
    return f"{size}{groups} positions of {' + '.join(map(str, layout.vocabularies))} codes"


def _round_trip(done: Imported, output: str, files: ImageFiles | None, device: str) -> None:
    """Show what a tokenizer keeps of some images, and warn where that is nothing."""
    from trainer.inference.fidelity import is_garbage
    from trainer.inference.tokenizer import of_network

    tokenizer = of_network(cast("Network", done.network), done.card, output, device)
    if not tokenizer.network.config.decodes:
        say("no image is reconstructed: it predicts the codes of a proxy whose decoder is not among these weights")
        return
    try:
        found = _fidelity(tokenizer, files)
    except ValueError as error:  # values that are no numbers
        say(f"warning: it reconstructs no image: {error}. {output} was written all the same", err=True)
        return
    _show(found[:_ROUND_TRIP], tokenizer, None, "a made-up picture" if files is None else "")
    _show_mean(found)
    if is_garbage(found):
        say(
            "warning: these reconstructions are garbage: hardly nearer to the images than one colour each. The weights "
            "may be loaded wrong (another kind, or options that no shape tells: heads, scales, normalization), trained "
            f"on other images (--images), or not trained at all. {output} was written all the same",
            err=True,
        )


def _fidelity(tokenizer: Tokenizer, files: ImageFiles | None) -> list[Fidelity]:
    from trainer.inference.fidelity import compare, photograph_like
    from trainer.inference.given_images import read_images
    from trainer.inference.image_files import read_batches

    size = tokenizer.image_size
    if files is None:
        image = read_images(photograph_like(size), size, "crop")
        return compare(["a made-up picture"], image, tokenizer.reconstruct(image, output="torch"))
    found: list[Fidelity] = []
    for names, image in read_batches(files, size, "crop", 64):
        found += compare(names, image, tokenizer.reconstruct(image, output="torch"))
    return found


def encode(
    images: Images,
    tokenizer: TokenizerUri,
    output: Annotated[str, typer.Option("--out", "-o", metavar="TOKENS.npz", help="The file to write, at any URI.")],
    fit: Fit = "crop",
    device: Device = "cpu",
    batch: Batch = 64,
) -> None:
    """Images → a file of their tokens, with the fingerprint of what made them."""
    import numpy as np

    from trainer.inference.image_files import find_images, read_batches
    from trainer.inference.token_files import TokenFile

    files = find_images(images)
    network = _with_tokens(_load(tokenizer, device, fit), tokenizer)
    parts = [network.encode(image, batch=batch) for _, image in read_batches(files, network.image_size, fit, batch)]
    tokens = np.concatenate(parts)
    TokenFile(tokens, files.names, network.fingerprint, network.layout, network.image_size, fit).write(output)
    _say_others(files)
    say(f"{output}: {counted(len(tokens), 'image')}, {_bits(network, None)}, encoder {network.fingerprint[:16]}")


def decode(
    tokens: Annotated[str, typer.Argument(metavar="TOKENS.npz", help="What `encode` has written, at any URI.")],
    tokenizer: TokenizerUri,
    output: Folder,
    keep: Keep = None,
    scales: Scales = None,
    device: Device = "cpu",
    batch: Batch = 64,
) -> None:
    """A file of tokens → PNG files, named as the images that were encoded."""
    from data_pipeline.errors import UsageError
    from trainer.inference.image_files import png_names
    from trainer.inference.token_files import read_token_file

    held = read_token_file(tokens)
    files = png_names(held.names)
    network = _with_tokens(_load(tokenizer, device), tokenizer)
    if held.encoder != network.fingerprint or held.layout != network.layout:
        raise UsageError(
            f"{tokens} has tokens of tokenizer {held.encoder[:16]}, but {tokenizer} is {network.fingerprint[:16]}: "
            "give the one that made them, or encode the images again"
        )
    kept = _kept(network, keep, scales)
    for start in range(0, len(files), batch):
        part = slice(start, start + batch)
        with _refusals(tokenizer):
            pictures = network.decode(held.tokens_NLF[part], keep=kept, output="pil", batch=batch)
        _write_png(output, files[part], pictures)
    say(f"{output}: {counted(len(files), 'image')}, {_bits(network, kept)}")


def reconstruct(
    images: Images,
    tokenizer: TokenizerUri,
    output: Folder,
    keep: Keep = None,
    scales: Scales = None,
    fit: Fit = "crop",
    device: Device = "cpu",
    batch: Batch = 64,
    as_json: Json = False,
    draw: Annotated[
        int | None, typer.Option("--draw", metavar="SEED", help="Decode draws of Gaussian latents, not their means.")
    ] = None,
) -> None:
    """Images → what is left of them as tokens: NAME.png beside the square that was encoded, NAME.original.png.

    A tokenizer with a Gaussian bottleneck has no tokens: the means of its latents are decoded, or draws (--draw).
    """
    from data_pipeline.errors import UsageError
    from trainer.inference.fidelity import bits, compare
    from trainer.inference.given_images import write_images
    from trainer.inference.image_files import find_images, png_names, read_batches

    files = find_images(images)
    names = png_names(files.names)
    network = _load(tokenizer, device, fit)
    if draw is not None and network.has_tokens:
        raise UsageError("--draw: nothing is drawn by a tokenizer that has tokens: leave it out")
    kept = _kept(network, keep, scales)
    found: list[Fidelity] = []
    for part, image in read_batches(files, network.image_size, fit, batch):
        with _refusals(tokenizer):
            seen = network.reconstruct(image, keep=kept, seed=draw, first=len(found), output="torch", batch=batch)
            pictures = write_images(seen, "pil")
        here = names[len(found) : len(found) + len(part)]
        _write_png(output, here, pictures)
        _write_png(output, [f"{name.removesuffix('.png')}.original.png" for name in here], write_images(image, "pil"))
        rows = compare(part, image, seen)
        if not as_json:
            _show(rows, network, kept)
        found += rows
    if as_json:
        rate: dict[str, float | None] = {"bits": None, "keep": None}
        if network.has_tokens:
            rate = {"bits": bits(network.layout, kept), "keep": kept or network.layout.positions}
        say_json(rate | {"images": [each.to_json() for each in found]}, indent=1)
        return
    _say_others(files)
    _show_mean(found)
    say(f"{output}: {2 * len(found):,} PNG files")


def _load(uri: str, device: str, fit: Literal["crop", "pad"] = "crop") -> Tokenizer:
    from trainer.inference import load_tokenizer

    _check_device(device)
    return load_tokenizer(uri, device=device, fit=fit)


@contextmanager
def _refusals(uri: str) -> Iterator[None]:
    """Inside, what a tokenizer refuses is the error of a file: it paints nothing, or has diverged."""
    from data_pipeline.errors import UsageError

    try:
        yield
    except ValueError as error:
        raise UsageError(f"{uri}: {error}") from None


def _with_tokens(network: Tokenizer, uri: str) -> Tokenizer:
    """The tokenizer, if it has tokens.

    Raises:
        UsageError: if not.
    """
    from data_pipeline.errors import UsageError
    from model.config.titok import NO_TOKENS

    if not network.has_tokens:
        raise UsageError(f"--tokenizer: {uri}: {NO_TOKENS}")
    return network


def _check_device(name: str) -> None:
    """Refuse a device that this machine has not, before anything is read.

    Raises:
        UsageError: if torch cannot use it.
    """
    from data_pipeline.errors import UsageError
    from trainer.inference.exports import find_device

    try:
        find_device(name)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from None


def _kept(network: Tokenizer, keep: int | None, scales: int | None) -> int | None:
    """How many positions are decoded: as many as are asked for, or as some scales have.

    Raises:
        UsageError: if an image cannot be decoded from so many.
    """
    from data_pipeline.errors import UsageError

    if keep is not None and scales is not None:
        raise UsageError("--keep counts positions and --scales scales: give one of them")
    if not network.has_tokens:
        if keep is not None or scales is not None:
            raise UsageError("--keep and --scales count tokens, and this tokenizer has none: leave them out")
        return None
    groups, prefixes = network.layout.groups, network.prefixes
    if scales is not None and not 0 < scales <= len(groups):
        raise UsageError(f"--scales {scales}: this tokenizer has {len(groups)}")
    asked = sum(groups[:scales]) if scales is not None else keep
    if asked is not None and asked not in prefixes:
        shown = ", ".join(map(str, prefixes[:32]))
        name = f"--keep {keep}" if scales is None else f"--scales {scales}"
        raise UsageError(f"{name}: images can be decoded from {shown} positions of this tokenizer's tokens")
    return asked


def _write_png(folder: str, names: Sequence[str], pictures: Sequence[object]) -> None:
    from data_pipeline import storage
    from trainer.evaluation.images import to_png

    for name, picture in zip(names, pictures, strict=True):
        storage.write_bytes(storage.join(folder, name), to_png(picture))  # type: ignore[arg-type]


def _bits(network: Tokenizer, keep: int | None) -> str:
    from trainer.inference.fidelity import bits

    if not network.has_tokens:
        return "Gaussian latents, no tokens"
    rate = bits(network.layout, keep)
    positions = keep or network.layout.positions
    tokens = f"{positions} x {network.layout.folds}" if network.layout.folds > 1 else f"{positions}"
    return f"{tokens} tokens, {rate:,.0f} bits an image ({rate / network.image_size**2:.3f} a pixel)"


def _show(found: Sequence[Fidelity], network: Tokenizer, keep: int | None, name: str = "") -> None:
    for each in found:
        say(f"{name or each.name}: squared error {each.error:.4f}, PSNR {each.psnr:.2f} dB, {_bits(network, keep)}")


def _show_mean(found: Sequence[Fidelity]) -> None:
    """Means over images; the PSNR is the mean of the images', as papers have it."""
    count = len(found)
    error, plain = (
        sum(values) / count for values in zip(*((each.error, each.plain_error) for each in found), strict=True)
    )
    psnr = math.fsum(each.psnr for each in found) / count
    share = f", {error / plain:.0%} of that of each image's mean colour ({plain:.4f})" if plain else ""
    say(f"mean of {count:,}: squared error {error:.4f}{share}, PSNR {psnr:.2f} dB")


def _say_others(files: ImageFiles) -> None:
    if files.others:
        others = counted(files.others, "file that is not named as an image", "files that are not named as images")
        say(f"left aside: {others}", err=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    panel = "Networks"
    app.command("import-weights", rich_help_panel=panel)(import_weights)
    app.command("encode", rich_help_panel=panel)(encode)
    app.command("decode", rich_help_panel=panel)(decode)
    app.command("reconstruct", rich_help_panel=panel)(reconstruct)
