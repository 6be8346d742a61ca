"""Every config that comes with foldtrain loads."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from cluster.commands.stages import packaged
from cluster.config.loading import load_config

FOLDER = Path(str(resources.files("configs")))
FILES = sorted(FOLDER.rglob("*.yaml"))


def test_the_quickstart_is_among_them() -> None:
    assert Path(packaged("quickstart.yaml")) in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_loads(path: Path) -> None:
    assert load_config(path).run


@pytest.mark.parametrize("path", sorted(FOLDER.glob("imagefolder/generator-d*.yaml")), ids=lambda path: path.stem)
def test_a_generator_takes_images_tokens_and_tokenizer_from_the_run_that_all_share(path: Path) -> None:
    shared, config = load_config(FOLDER / "tokenizer/imagefolder-msvr10p2-4096.yaml").run, load_config(path)
    assert [config.given(name) for name in ("images", "tokens", "tokenizer")] == [shared] * 3
    assert config.run != shared
