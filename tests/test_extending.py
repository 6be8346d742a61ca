"""The files of docs/extending.md are what it says: two families that train and sample."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```\w+\n# ([\w.]+)\n(.*?)```", re.DOTALL)
TRAIN = """
import torch
import yaml
from cluster.config.loading import load_config
from data_pipeline.shards.halves import half_fingerprints, halves_of
from model.families import build_generator, build_tokenizer
from model.protocols import SamplingPlan

config = load_config("signs.yaml", []).with_classes(10)
torch.manual_seed(0)
tokenizer = build_tokenizer(config.tokenizer.model)
assert set(half_fingerprints({}, tokenizer.state_dict(), halves_of(tokenizer))) == {"encode", "decode"}
image = torch.rand(8, 3, 28, 28) * 2 - 1
optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
errors = []
for _ in range(30):
    output = tokenizer(image, {})
    loss = (output.reconstruction_BCHW - image).square().mean()
    (loss + sum(output.losses.values())).backward()
    optimizer.step()
    optimizer.zero_grad()
    errors.append(float(loss))
assert errors[-1] < 0.9 * errors[0], errors
tokens = tokenizer.tokenize(image)
codes = tokenizer.quantizer.dequantize(tokens[..., 0])
assert torch.equal(tokenizer.quantizer.tokenize(codes), tokens[..., 0])
generator = build_generator(config.generator.model, tokenizer.layout, config.tokenizer.model.forcing_width)
optimizer = torch.optim.Adam(generator.parameters(), 1e-2)
label, losses = torch.arange(8), []
for _ in range(60):
    terms = generator.training_terms(tokens, label, None, None)
    terms["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(terms["loss"]))
assert losses[-1] < 0.5 * losses[0], losses
drawn = generator.eval().sample(SamplingPlan(label, torch.full((8, 16, 1), 0.5), top_k=1), None)
assert (drawn == tokens).float().mean() > 0.5  # it has learnt these eight by heart
assert tokenizer.detokenize(drawn).shape == image.shape
"""
ELSEWHERE = """
import torch
from model.config import ImageFolderConfig
from model.families import build_tokenizer

quantizer = {"kind": "sign", "bits": 5}
scales = {"scales": [1, 2], "branches": 3, "dropout_min_scales": 1}
config = ImageFolderConfig.model_validate({"image_size": 16, "patch_size": 4, "quantizer": quantizer, **scales})
tokenizer = build_tokenizer(config)
output = tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1)
assert tokenizer.layout.vocabularies == (32, 32, 32)
assert output.tokens_BLF.shape == (2, 5, 3)
sum(output.losses.values()).backward()
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package of the page, installed as far as Python can tell."""
    files = dict(BLOCK.findall((ROOT / "docs/extending.md").read_text()))
    modules = {f"sign_{name}.py" for name in ("config", "families", "quantizer", "networks")}
    assert set(files) == {"pyproject.toml", "signs.yaml", "here_target.py", "here.yaml"} | modules
    (tmp_path / "work").mkdir()  # not the package's own folder: foldtrain leaves out where its user stands
    for name, text in files.items():
        (tmp_path / "work" / name if name == "signs.yaml" else tmp_path / name).write_text(text)
    points = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]
    installed = tmp_path / "signs-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: signs\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in points.items()]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path


def run(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{package}"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=package / "work", env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_families_of_the_page_train_and_sample(package: Path) -> None:
    done = run(package, "-c", TRAIN)
    assert done.returncode == 0, done.stderr


def test_the_config_of_the_page_is_understood(package: Path) -> None:
    done = run(package, "-m", "foldtrain", "config", "signs.yaml")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert (found["tokenizer"]["model"]["quantizer"]["bits"], found["generator"]["model"]["width"]) == (8, 64)


def test_a_kind_that_is_not_there_is_refused_with_those_that_are(package: Path) -> None:
    done = run(package, "-m", "foldtrain", "config", "signs.yaml", "generator.model.kind=rasterr")
    assert done.returncode == 2
    assert "generator.model.kind" in done.stderr
    assert "sign-raster" in done.stderr


@pytest.mark.slow
def test_the_quantizer_of_the_page_is_taken_by_other_tokenizers_in_scales_and_branches(package: Path) -> None:
    done = run(package, "-c", ELSEWHERE)
    assert done.returncode == 0, done.stderr


def test_finite_scalar_quantization_is_the_file_and_the_registration_of_the_page() -> None:
    page = (ROOT / "docs/extending.md").read_text()
    blocks = dict(re.findall(r"```python\n# (model/[\w./]+)\n(.*?)```", page, re.DOTALL))
    assert blocks.pop("model/quantizers/fsq.py") == (ROOT / "model/quantizers/fsq.py").read_text()
    registration = (ROOT / "model/config/quantizers.py").read_text()
    assert blocks.pop("model/config/quantizers.py") in registration
    assert blocks == {}
    (entry,) = re.findall(r"`(QuantizerFamily\(.*?\))`", page)
    assert entry in registration
