"""Other programs read what is written: WebDataset, GNU tar, numpy, awscli. None of them needs torch of us."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipeline import storage
from data_pipeline.shards.image_shards import read_index
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_archive import read_token_shard
from tests.data_pipeline.small_data import Images


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_webdataset_reads_images_with_their_keys_and_labels(images: Images) -> None:
    shard = ImageManifest.read(images.uri).shards[0]
    index = read_index(images.uri, shard)
    samples = list(webdataset.WebDataset(f"{images.uri}/{shard.name}", shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == index.key
    assert [int(sample["cls"]) for sample in samples] == index.label
    assert all(Image.open(io.BytesIO(sample["jpg"])).size == (20, 24) for sample in samples)


def test_webdataset_reads_a_token_shard_as_one_sample(tokens: Path) -> None:
    shard = TokenManifest.read(str(tokens)).shards[1]
    block = read_token_shard(str(tokens), shard)
    (sample,) = webdataset.WebDataset(str(tokens / shard.name), shardshuffle=False).decode()
    assert np.array_equal(sample["tokens.npy"], block.tokens_NWLF)
    assert np.array_equal(sample["condition.npy"], block.condition)
    assert np.array_equal(sample["key.npy"], block.key)
    assert sample["meta.json"]["views"] == ["center", "center_flip"]


def test_tar_lists_an_image_shard(images: Images) -> None:
    shard = ImageManifest.read(images.uri).shards[2]
    keys = read_index(images.uri, shard).key
    listed = run("tar", "--list", "--file", f"{images.uri}/{shard.name}").split("\n")[:-1]
    assert listed == [name for key in keys for name in (f"{key}.jpg", f"{key}.cls")]


def test_numpy_loads_what_tar_extracts_from_a_token_shard(tokens: Path, tmp_path: Path) -> None:
    shard = TokenManifest.read(str(tokens)).shards[0]
    (tmp_path / "extracted").mkdir()
    run("tar", "--extract", "--file", str(tokens / shard.name), "--directory", str(tmp_path / "extracted"))
    block = read_token_shard(str(tokens), shard)
    for field, wanted in (("tokens", block.tokens_NWLF), ("condition", block.condition), ("key", block.key)):
        found = np.load(tmp_path / "extracted" / f"tokens-00000.{field}.npy")
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


def test_tar_extracts_an_image_as_it_was_in_the_source(images: Images, tmp_path: Path) -> None:
    index = read_index(images.uri, ImageManifest.read(images.uri).shards[0])
    run("tar", "--extract", "--file", f"{images.uri}/images-00000.tar", "--directory", str(tmp_path))
    original = tmp_path / "photos" / f"{index.key[0].replace('_', ' ')}.jpg"
    assert (tmp_path / f"{index.key[0]}.jpg").read_bytes() == original.read_bytes()


@pytest.mark.xdist_group("s3")
def test_awscli_lists_and_fetches_the_shards_of_a_bucket(tokens: Path, s3_uri: str, tmp_path: Path) -> None:
    manifest = TokenManifest.read(str(tokens))
    for path in tokens.iterdir():
        storage.write_bytes(f"{s3_uri}/{path.name}", path.read_bytes())
    aws = str(Path(sys.executable).parent / "aws")
    rows = [line.split() for line in run(aws, "s3", "ls", f"{s3_uri}/").splitlines()]
    sizes = {row[-1]: int(row[-2]) for row in rows if row[-1].endswith(".tar")}
    assert sizes == {shard.name: shard.bytes for shard in manifest.shards}
    run(aws, "s3", "cp", "--quiet", f"{s3_uri}/tokens-00000.tar", str(tmp_path / "fetched.tar"))
    member = subprocess.run(
        ["tar", "--extract", "--to-stdout", "--file", str(tmp_path / "fetched.tar"), "tokens-00000.tokens.npy"],
        capture_output=True,
        check=True,
    ).stdout
    assert np.array_equal(np.load(io.BytesIO(member)), read_token_shard(s3_uri, manifest.shards[0]).tokens_NWLF)


def test_the_tools_import_neither_torch_nor_ray() -> None:
    modules = ["tools.verifying", "tools.inspecting", "tokens.exporting", "shards.token_archive"]
    modules += ["tokens.importing.llamagen", "tokens.importing.rar"]
    imports = "; ".join(f"import data_pipeline.{name}" for name in modules)
    code = f"import sys; {imports}; assert not {{'torch', 'ray', 'pyarrow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
