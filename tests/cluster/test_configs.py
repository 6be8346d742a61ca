"""Every config that comes with foldtrain loads."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from cluster.config.files import packaged, packaged_names
from cluster.config.loading import load_config
from cluster.targets.opening import load_target
from data_pipeline.errors import UsageError

FOLDER = Path(str(resources.files("configs")))
FILES = sorted(FOLDER / name for name in packaged_names())
TARGETS = sorted((FOLDER / "cluster").glob("*.yaml"))


def test_the_quickstart_is_among_them() -> None:
    assert Path(packaged("quickstart.yaml")) in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_it_loads(path: Path) -> None:
    assert load_config(path).run


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_a_target_loads_by_its_name_and_its_file_is_no_config_of_a_run(path: Path) -> None:
    name, section = load_target(path.stem)
    assert (name, section) == (path.stem, load_target(str(path))[1])
    assert f"cluster/{path.name}" not in packaged_names()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("imagefolder/generator-d*.yaml")), ids=lambda path: path.stem)
def test_a_generator_takes_images_tokens_and_tokenizer_from_the_run_that_all_share(path: Path) -> None:
    shared, config = load_config(FOLDER / "tokenizer/imagefolder-msvr10p2-4096.yaml").run, load_config(path)
    assert [config.given(name) for name in ("images", "tokens", "tokenizer")] == [shared] * 3
    assert config.run != shared


@pytest.mark.parametrize(
    "name", [name for name in packaged_names() if name.startswith(("imagefolder/g", "tokenizer/"))]
)
def test_the_recipes_for_imagenet_ask_for_gpus(name: str) -> None:
    assert load_config(f"package:{name}").cluster.gpus_per_worker == 1


def test_a_config_extends_one_that_comes_with_foldtrain_from_any_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    layers = ["package:imagefolder/generator-d20.yaml", "package:imagefolder/gpus-8.yaml"]
    mine.write_text(yaml.safe_dump({"extends": layers, "run": "s3://bucket/mine"}))
    config = load_config(mine)
    assert (config.run, config.generator.model.depth, config.cluster.workers) == ("s3://bucket/mine", 20, 8)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("imagefolder/gpu-8.yaml", "did you mean package:imagefolder/gpus-8.yaml"),
        ("../pyproject.yaml", "there are "),
        ("/etc/passwd", "there are "),
        ("imagefolder", "imagefolder"),
    ],
)
def test_a_packaged_config_that_is_none_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: 'package:{name}'")
    with pytest.raises(UsageError, match="is no config that comes with foldtrain") as caught:
        load_config(mine)
    assert hint in str(caught.value)
    assert str(mine) in str(caught.value)
