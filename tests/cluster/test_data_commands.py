"""verify, inspect, export and import from the command line: what they print, and how they end."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.monitor.data_view import write_grid
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.shards.image_shards import ImageSample, finish_images, read_indexes, write_image_shard
from data_pipeline.shards.manifest import ImageManifest, TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.shards.weights import write_weights
from model.config import ImageFolderConfig, VectorConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer

TOKENIZER = ImageFolderConfig(
    image_size=16, patch_size=4, scales=(1, 2, 4), quantizer=VectorConfig(codebook_size=64, code_dim=8)
)
CONFIG = TOKENIZER.model_dump(mode="json")
KEYS = [f"cat/{number}" for number in range(6)]

Foldtrain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def export_uri(tmp_path: Path) -> str:
    """A tokenizer, not trained."""
    torch.manual_seed(0)
    uri = str(tmp_path / "tokenizer" / "export")
    write_weights(uri, "tokenizer", CONFIG, {"model": ImageFolderTokenizer(TOKENIZER).state_dict()}, {})
    return uri


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six pictures of two classes in two shards."""
    uri = str(tmp_path / "images" / "train")
    records = [
        write_image_shard(uri, f"images-{n:05d}.tar", [_sample(row) for row in range(3 * n, 3 * n + 3)], "plan")
        for n in range(2)
    ]
    finish_images(uri, read_indexes(uri, records), classes=("cat", "dog"), split="train")
    return Path(uri)


def _sample(row: int) -> ImageSample:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), (40 * row, 100, 0)).save(buffer, "PNG")
    return ImageSample(KEYS[row], row % 2, "png", buffer.getvalue())


@pytest.fixture
def tokens(images: Path, export_uri: str, tmp_path: Path) -> Path:
    """Tokens of them, in two shards."""
    from data_pipeline.shards.weights import read_card

    uri = str(tmp_path / "tokens")
    made_by = {
        "tokenizer": TokenizerRecord(encoder=read_card(export_uri, "tokenizer").encoder(), config=CONFIG),
        "layout": TOKENIZER.layout,
        "views": ("center",),
        "image_size": 16,
        "fit": "crop",
        "source": ImageManifest.read(str(images)).fingerprint,
    }
    draft = TokenManifest.build(samples=0, classes=("cat", "dog"), software={}, shards=(), **made_by)
    meta = draft.model_dump(mode="json", include=set(made_by))
    values = np.random.default_rng(0).integers(0, 64, (6, 1, 21, 2), dtype=np.uint16)
    label, key = np.array([0, 1, 0, 1, 0, 1], np.int32), np.array(KEYS, "S")
    records = [
        write_token_shard(uri, f"tokens-{n:05d}.tar", TokenBlock(values[part], label[part], key[part]), meta)
        for n, part in enumerate((slice(0, 3), slice(3, 6)))
    ]
    TokenManifest.build(samples=6, classes=("cat", "dog"), software={}, shards=tuple(records), **made_by).write(uri)
    return Path(uri)


def invoke(*arguments: str) -> Result:
    """The command in this process; errors of the user come as `result.exception`."""
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_verify_prints_a_line_per_check(tokens: Path) -> None:
    done = invoke("verify", str(tokens))
    assert done.exit_code == 0, done.output
    for line in ("checksums", "exactly once", "token range", "lineage", "against images"):
        assert f"│ {line}" in done.output
    assert "6 samples of tokens in 2 shards match their manifest" in done.output


def test_verify_ends_with_1_and_names_shard_and_key(foldtrain: Foldtrain, tokens: Path) -> None:
    shard = tokens / "tokens-00001.tar"
    data = bytearray(shard.read_bytes())
    data[512 + 128 + 5] ^= 1
    shard.write_bytes(data)
    done = foldtrain("verify", str(tokens))
    assert done.returncode == 1
    assert "tokens-00001.tar: sample cat/3 is corrupt (CRC-32 differs)" in done.stdout
    assert "tokens-00001.tar" in done.stderr
    assert "cat/3" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_as_json_is_the_whole_report(tokens: Path, images: Path) -> None:
    done = invoke("verify", str(tokens), "--against", str(images), "--quick", "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["passed"], report["samples"]) == (0, True, 6)


def test_verify_as_json_still_ends_with_1(tokens: Path) -> None:
    (tokens / "tokens-00000.tar").unlink()
    done = invoke("verify", str(tokens), "--json")
    assert isinstance(done.exception, FoldtrainError)
    assert done.exception.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False


@pytest.mark.parametrize("command", [("verify",), ("inspect",), ("export", "--to", "out", "--format", "npz")])
def test_a_folder_that_is_no_data_set_ends_with_2(
    foldtrain_here: Foldtrain, tmp_path: Path, command: tuple[str]
) -> None:
    done = foldtrain_here(*command, str(tmp_path))
    assert done.returncode == 2
    assert "no complete data set" in done.stderr


def test_inspect_shows_schema_samples_labels_and_codes(tokens: Path) -> None:
    done = invoke("inspect", str(tokens), "--samples", "2")
    assert done.exit_code == 0, done.output
    for text in ("layout.vocabularies", "cat/1", "labels (2 classes)", "codebook use over 6 samples", "perplexity"):
        assert text in done.output
    assert "cat/2" not in done.output


def test_inspect_as_json(images: Path) -> None:
    found = json.loads(invoke("inspect", str(images), "--json").stdout)
    assert found["label_counts"] == {"cat": 3, "dog": 3}


def test_a_grid_of_images_shows_them(images: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "grid.png")
    assert invoke("inspect", str(images), "--grid", path).exit_code == 0
    with Image.open(path) as grid:
        colours = {colour for _, colour in grid.getcolors(maxcolors=100) or []}
    assert {(40 * row, 100, 0) for row in range(6)} <= colours


def test_a_grid_of_tokens_shows_what_they_stand_for(tokens: Path, export_uri: str, tmp_path: Path) -> None:
    path = str(tmp_path / "grid.png")
    done = invoke("inspect", str(tokens), "--grid", path, "--tokenizer", export_uri, "--samples", "4")
    assert done.exit_code == 0, done.output
    with Image.open(path) as grid:
        assert grid.size == (2 + 4 * 98, 2 + 98)
        assert len(np.unique(np.asarray(grid))) > 10


def test_a_grid_of_tokens_needs_their_tokenizer(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --tokenizer EXPORT"):
        write_grid(str(tokens), "tokens", None, 4, str(tmp_path / "grid.png"))


def test_a_grid_is_a_png(images: Path) -> None:
    with pytest.raises(UsageError, match=r"--grid a\.gif: name a \.png file"):
        write_grid(str(images), "images", None, 4, "a.gif")


def test_export_says_what_it_wrote(tokens: Path, tmp_path: Path) -> None:
    done = invoke("export", str(tokens), "--to", str(tmp_path / "out"), "--format", "npz")
    assert "6 samples in 2 files, see export.json" in done.output
    assert np.load(tmp_path / "out" / "tokens-00001.npz")["tokens"].shape == (3, 1, 21, 2)


def test_import_of_rar_makes_a_data_set_that_verify_passes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"class_id": {n}, "tokens": [1, 2, 3, {n}]}}\n' for n in range(5)))
    done = invoke("import", "rar", str(tmp_path / "a.jsonl"), "--output", f"{tmp_path}/out", "--codebook-size", "1024")
    assert "5 samples" in done.output, done.exception
    assert invoke("verify", str(tmp_path / "out")).exit_code == 0


def test_import_of_llamagen_makes_a_data_set_that_verify_passes(tmp_path: Path) -> None:
    for name, array in (("codes", np.zeros((1, 10, 4), np.int64)), ("labels", np.zeros(1, np.int64))):
        (tmp_path / f"imagenet256_{name}").mkdir()
        np.save(tmp_path / f"imagenet256_{name}" / "0.npy", array)
    done = invoke("import", "llamagen", str(tmp_path), "-o", f"{tmp_path}/out", "--codebook-size", "16384")
    assert "views ten_crop_0, " in done.output, done.exception
    assert invoke("verify", str(tmp_path / "out")).exit_code == 0


def test_import_ends_with_2_and_the_line(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"class_id": 0, "tokens": [7]}\n{"class_id": 0, "tokens": [1024]}\n')
    done = foldtrain_here("import", "rar", "a.jsonl", "--output", "out", "--codebook-size", "1024")
    assert done.returncode == 2
    assert "a.jsonl, line 2: token 1024 is outside 0 to 1023" in done.stderr


def test_the_commands_import_nothing_slow_before_they_are_called() -> None:
    slow = ("numpy", "torch", "pyarrow", "PIL")
    code = f"import sys, cluster.commands.data; print([name for name in {slow!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
