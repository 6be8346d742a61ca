"""docs/imagenet.md, followed: its configs load and ask for GPUs, its commands exist, both forms of ImageNet go in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer

from benchmarks.synthetic_imagenet import CMYK, PNG, write_hub, write_ilsvrc
from cluster.cli import app
from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.pool.ingesting import ingest
from data_pipeline.images.transforms import decode
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.tools.verifying import verify

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "imagenet.md").read_text()
CLASSES, PER_CLASS, TARS = 20, 5, 8


def blocks(language: str) -> list[str]:
    """The page's blocks of code."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip().startswith("foldtrain ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's paths lead, with the configs as the page has them."""
    root = tmp_path_factory.mktemp("imagenet")
    for text in blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        for old, new in {
            "s3://YOUR-BUCKET": f"{root}/bucket",
            "/data/": f"{root}/data/",
            "/local/": f"{root}/local/",
            "{0000..1023}": f"{{0000..{TARS - 1:04d}}}",
            "{00..63}": "{00..00}",
        }.items():
            text = text.replace(old, new)
        (root / name).write_text(text)
    write_ilsvrc(root / "data", CLASSES, PER_CLASS)
    write_hub(root / "data" / "imagenet-1k-wds", CLASSES, PER_CLASS, TARS)
    return root


def ingested(place: Path, name: str) -> tuple[RunConfig, ImageShards]:
    """What `foldtrain ingest` makes; so few images need no Ray."""
    config = load_config(place / name)
    assert ingest(config) in {0, CLASSES * (PER_CLASS + 1)}
    return config, ImageShards(config.product("images"))


@pytest.mark.parametrize("name", ["imagenet.yaml", "hub.yaml"])
def test_the_configs_of_the_page_ask_for_a_gpu_for_each_worker(place: Path, name: str) -> None:
    cluster = load_config(place / name).cluster
    assert (cluster.gpus_per_worker, cluster.address) == (1, "auto")


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.partition("#")[0].strip())
def test_each_command_of_the_page_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    context = command.make_context("foldtrain", list(words), resilient_parsing=False)
    while getattr(context.command, "commands", None):
        name, found, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        context = found.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", ["imagenet.yaml", "hub.yaml"])
def test_what_ingest_makes_of_it_passes_verify(place: Path, name: str) -> None:
    config, images = ingested(place, name)
    assert (images.count, len(images.manifest.classes), images.manifest.quarantined) == (
        CLASSES * PER_CLASS,
        CLASSES,
        0,
    )
    for split in ("train", "validation"):
        for quick in (True, False):
            assert verify(f"{config.folder('images')}/{split}", quick=quick).passed


def test_both_forms_are_the_same_images_with_the_same_labels(place: Path) -> None:
    forms = [ingested(place, name)[1] for name in ("imagenet.yaml", "hub.yaml")]
    labels = [dict(zip(images.keys.tolist(), images.labels.tolist(), strict=True)) for images in forms]
    assert labels[0] == labels[1]
    assert len(labels[0]) == CLASSES * PER_CLASS


def test_the_odd_files_of_imagenet_are_images_like_any_other(place: Path) -> None:
    _, images = ingested(place, "imagenet.yaml")
    keys = [key.decode() for key in images.keys.tolist()]
    odd = [name for name in (PNG, *CMYK) if name in keys]
    assert PNG in odd
    assert len(odd) >= CLASSES - 1
    for name in odd:
        assert np.asarray(decode(images.read(keys.index(name)))).shape[-1] == 3
