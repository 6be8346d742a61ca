"""Image shards to token shards: bytes follow from the plan, only what is missing is done, nothing is mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline import storage
from data_pipeline.config import TokensConfig
from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from data_pipeline.images.transforms import Transform, flip, to_model
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import Tokens
from data_pipeline.shards.weights import Card, write_weights
from data_pipeline.tokens.tokenizing import (
    SOFTWARE,
    TokenPlan,
    encoder_of,
    finish,
    load_encoder,
    missing,
    plan_tokens,
    record_name,
    tokenize_shard,
)
from data_pipeline.tokens.tokenizing import Images as ImageBatch
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.data_pipeline.small_data import TOKENIZER, Images, contents, encode, flip_byte, tokenize_all, tokenizer_card

Plans = Callable[..., TokenPlan]


def test_every_view_of_every_image_is_there_once_with_its_label_and_key(tokens: Path, images: Images) -> None:
    raw, shards = ImageShards(images.uri), TokenShards(str(tokens))
    pixels = [Transform(16)(raw.read(index)) for index in range(raw.count)]
    views = np.stack([encode(to_model(pixels)), encode(to_model([flip(image) for image in pixels]))], axis=1)
    assert np.array_equal(shards.tokens(np.arange(raw.count)), views)
    assert np.array_equal(shards.conditions, raw.labels)
    assert np.array_equal(shards.keys, raw.keys)


def test_random_views_follow_from_each_images_key(make_plan: Plans, images: Images) -> None:
    plan = make_plan("random", views=[{"random": 2, "seed": 3}, "center"])
    tokenize_all(plan)
    manifest, raw = TokenManifest.read(plan.output), ImageShards(images.uri)
    assert manifest.views == ("random_0_seed_3", "random_1_seed_3", "center")
    for number, name in enumerate(manifest.views):
        pixels = [Transform(16).views(raw.read(i), (name,), bytes(raw.keys[i]))[0] for i in range(raw.count)]
        found = TokenShards(plan.output).tokens(np.arange(raw.count))[:, number]
        assert np.array_equal(found, encode(to_model(pixels)))


def test_bytes_depend_neither_on_threads_nor_on_who_made_which_shard_when(tokens: Path, make_plan: Plans) -> None:
    plan = make_plan("again")
    for shard in reversed(missing(plan)):
        tokenize_shard(plan, shard, ImageShards(plan.images), encode, threads=3)
    finish(plan)
    assert contents(Path(plan.output)) == contents(tokens)


def same_elsewhere(plan: TokenPlan, uri: str) -> dict[str, bytes]:
    """The files of the plan's shards, made at another place."""
    there = dataclasses.replace(plan, output=uri)
    tokenize_all(there)
    assert missing(there) == []
    return {name: storage.read_bytes(f"{uri}/{name}") for name in storage.walk(uri)}


def test_the_output_may_be_at_any_uri(tokens: Path, make_plan: Plans) -> None:
    assert same_elsewhere(make_plan(), "memory://tokenized-by-a-test") == contents(tokens)


@pytest.mark.xdist_group("s3")
def test_tokens_on_object_storage_have_the_same_bytes(tokens: Path, make_plan: Plans, s3_uri: str) -> None:
    assert same_elsewhere(make_plan(), f"{s3_uri}/tokens") == contents(tokens)


def test_the_manifest_states_the_lineage(tokens: Path, images: Images) -> None:
    manifest = TokenManifest.read(str(tokens))
    assert manifest.tokenizer.encoder == tokenizer_card().fingerprint()
    assert manifest.source == ImageShards(images.uri).manifest.fingerprint
    assert manifest.layout == TOKENIZER.layout
    assert manifest.views == ("center", "center_flip")
    assert (manifest.image_size, manifest.fit) == (16, "crop")


def test_only_missing_shards_are_made_again(tokens: Path, make_plan: Plans) -> None:
    before = contents(tokens)
    for path in tokens.iterdir():
        os.utime(path, (1, 1))
    (tokens / "tokens-00001.tar").unlink()
    plan = make_plan()
    assert [shard.name for shard in missing(plan)] == ["tokens-00001.tar"]
    tokenize_all(plan)
    assert contents(tokens) == before
    assert {path.name for path in tokens.glob("*.tar") if path.stat().st_mtime == 1} == {
        "tokens-00000.tar",
        "tokens-00002.tar",
    }


def test_a_shard_without_its_commit_record_is_made_again(tokens: Path, make_plan: Plans) -> None:
    before = contents(tokens)
    (tokens / "manifest.json").unlink()
    (tokens / "tokens-00002.json").unlink()
    (tokens / "tokens-00002.tar").write_bytes(b"half")
    tokenize_all(make_plan())
    assert contents(tokens) == before


def test_a_run_may_be_continued_with_newer_software_and_says_so(make_plan: Plans) -> None:
    older = dataclasses.replace(make_plan(), software=dict.fromkeys(SOFTWARE, "1.0"))
    tokenize_shard(older, older.shards[0], ImageShards(older.images), encode)
    newer = dataclasses.replace(older, software=dict.fromkeys(SOFTWARE, "2.0"))
    tokenize_all(newer)
    assert TokenManifest.read(newer.output).software == {name: ["1.0", "2.0"] for name in SOFTWARE}
    assert missing(older) == []


def test_a_set_with_a_missing_shard_is_not_completed(make_plan: Plans) -> None:
    plan = make_plan()
    tokenize_shard(plan, plan.shards[0], ImageShards(plan.images), encode)
    with pytest.raises(FoldtrainError, match=r"still misses tokens-00001\.tar \(2 of 3 shards\)"):
        finish(plan)
    assert not (Path(plan.output) / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"card": tokenizer_card("b" * 64)}, "tokenizer.encoder: "),
        ({"shard_samples": 5}, "shard_samples: 8 -> 5"),
        ({"flip": False}, "views: "),
        ({"batch": 5}, "batch: 3 -> 5"),
        ({"decode": "fast"}, "decode: "),
        ({"precision": "bf16"}, "precision: "),
    ],
)
def test_tokens_made_otherwise_are_neither_reused_nor_overwritten(
    tokens: Path, make_plan: Plans, change: dict[str, object], difference: str
) -> None:
    before = contents(tokens)
    with pytest.raises(UsageError) as error:
        missing(make_plan(**change))
    assert difference in str(error.value)
    assert "Choose another tokens.output, or delete that folder" in str(error.value)
    assert contents(tokens) == before


def test_a_damaged_image_stops_its_shard_and_is_named(make_plan: Plans, images: Images) -> None:
    flip_byte(images.folder / "images-00001.tar", 700)
    plan, raw = make_plan(), ImageShards(images.uri)
    with pytest.raises(CorruptShardError, match=rf"images-00001\.tar: sample {raw.key(7)} is corrupt"):
        tokenize_shard(plan, plan.shards[0], raw, encode)
    assert not Path(plan.output).exists()


def test_a_token_outside_of_the_codebook_is_refused(make_plan: Plans) -> None:
    plan = make_plan()
    with pytest.raises(FoldtrainError, match="gave token 64 in fold 0, but its codebook has 64"):
        tokenize_shard(
            plan, plan.shards[0], ImageShards(plan.images), lambda images: encode(images) // 64 + np.uint16(64)
        )


def test_progress_counts_every_image(make_plan: Plans) -> None:
    plan, seen = make_plan(), []
    tokenize_shard(plan, plan.shards[2], ImageShards(plan.images), encode, seen.append)
    assert seen == [3, 1]


def write_tokenizer(folder: Path, seed: int) -> tuple[Card, ImageFolderTokenizer]:
    torch.manual_seed(seed)
    network = ImageFolderTokenizer(TOKENIZER).eval()
    files = {"model": network.state_dict()}
    return write_weights(str(folder), "tokenizer", TOKENIZER.model_dump(mode="json"), files, {}), network


def test_the_encoder_is_the_tokenizer_of_the_plan(make_plan: Plans, tmp_path: Path) -> None:
    card, network = write_tokenizer(tmp_path / "weights", seed=0)
    plan = make_plan(card=card)
    image_BCHW = to_model([Transform(16)(ImageShards(plan.images).read(index)) for index in range(3)])
    with torch.inference_mode():
        expected = network.tokenize(torch.from_numpy(image_BCHW))
    assert np.array_equal(load_encoder(plan, str(tmp_path / "weights"))(image_BCHW), expected.numpy())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_runs_in_the_precision_of_the_plan(precision: str, dtype: torch.dtype) -> None:
    network, seen = ImageFolderTokenizer(TOKENIZER).eval(), []
    network.to_latent.register_forward_hook(lambda _module, _inputs, latent: seen.append(latent.dtype))
    encoder_of(network, precision, "cpu")(np.zeros((2, 3, 16, 16), np.float32))
    assert seen == [dtype]


def test_a_shard_that_another_process_has_committed_stays(tokens: Path, make_plan: Plans) -> None:
    plan = make_plan()
    for path in tokens.iterdir():
        os.utime(path, (1, 1))
    tokenize_shard(plan, plan.shards[0], ImageShards(plan.images), encode)
    assert {path.stat().st_mtime for path in tokens.glob("tokens-00000.*")} == {1}


def test_what_progress_raises_ends_a_shard_uncommitted(make_plan: Plans) -> None:
    plan = make_plan()

    def stop(_images: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tokenize_shard(plan, plan.shards[0], ImageShards(plan.images), encode, stop)
    assert not Path(plan.output).exists()


def test_views_that_images_cannot_have_are_refused(images: Images) -> None:
    with pytest.raises(UsageError, match=r"tokens\.views: .*ten_crop"):
        plan_tokens(images.uri, tokenizer_card(), TokensConfig(views=("ten_crop",)), "memory://none", "pad")


def test_weights_that_changed_since_the_plan_are_refused(make_plan: Plans, tmp_path: Path) -> None:
    plan = make_plan(card=write_tokenizer(tmp_path / "weights", seed=0)[0])
    write_tokenizer(tmp_path / "weights", seed=1)
    with pytest.raises(UsageError, match="it was trained again meanwhile"):
        load_encoder(plan, str(tmp_path / "weights"))


def test_a_tar_that_another_process_has_put_stays_and_is_what_the_record_describes(
    make_plan: Plans, images: Images
) -> None:
    plan = make_plan()
    shards, first = ImageShards(images.uri), plan.shards[0]

    def other_encode(image_BCHW: ImageBatch) -> Tokens:
        return (encode(image_BCHW) + 1) % TOKENIZER.quantizer.vocabulary

    theirs = tokenize_shard(plan, first, shards, other_encode)
    (Path(plan.output) / record_name(first.name)).unlink()
    ours = tokenize_shard(plan, first, shards, encode)
    assert ours == theirs
    assert ours.shard.sha256 == hashlib.sha256((Path(plan.output) / first.name).read_bytes()).hexdigest()


def test_a_damaged_tar_without_a_record_is_replaced(make_plan: Plans, images: Images) -> None:
    plan = make_plan()
    first, path = plan.shards[0], Path(plan.output) / plan.shards[0].name
    tokenize_shard(plan, first, ImageShards(images.uri), encode)
    whole = path.read_bytes()
    (Path(plan.output) / record_name(first.name)).unlink()
    flip_byte(path, 700)
    tokenize_shard(plan, first, ImageShards(images.uri), encode)
    assert path.read_bytes() == whole
