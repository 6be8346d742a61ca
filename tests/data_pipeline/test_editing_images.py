"""Sets of images made of others, and tokens of them: only what is new is tokenized."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, FolderSource, ReadingConfig, TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.loading.loader import ImageBatches
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.tokens.commits import read_commits
from data_pipeline.tokens.plan import plan_tokens
from data_pipeline.tools import editing
from data_pipeline.tools.choosing import Choice
from data_pipeline.tools.preflight import check_images
from data_pipeline.tools.reusing import ReusePlan, plan_reuse
from tests.data_pipeline.small_data import Images, contents, jpeg, tokenize_all, tokenizer_card


@pytest.fixture
def more(tmp_path: Path) -> str:
    """Ten further pictures in two shards, of a class that the others have and one that they have not."""
    for label, name in enumerate(("class1", "zebra")):
        for number in range(5):
            path = tmp_path / "more photos" / name / f"new {number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(100 + 10 * label + number))
    source = FolderSource(path=str(tmp_path / "more photos"))
    ingest(DataConfig(source=source, shard_samples=6), str(tmp_path / "more"), seed=0)
    return str(tmp_path / "more" / "train")


def samples(uri: str) -> list[tuple[str, str, bytes]]:
    """Key, class and file of each image."""
    shards = ImageShards(uri)
    names = shards.manifest.classes
    found = [(shards.key(i), names[shards.labels[i]], shards.read(i)) for i in range(shards.count)]
    assert [data for _, _, data in found] == list(shards.scan(0, shards.count))
    return found


def test_appended_images_are_those_of_both_sets_and_nothing_is_copied(
    tmp_path: Path, images: Images, more: str
) -> None:
    before, output = contents(tmp_path), str(tmp_path / "both")
    assert editing.append([images.uri, more], output).write(say=lambda _: None)
    assert samples(output) == samples(images.uri) + samples(more)
    manifest = check_images(output, every_byte=True)
    assert manifest.classes == ("class0", "class1", "zebra")
    assert [shard.samples for shard in manifest.shards] == [7, 7, 6, 6, 4]
    after = contents(tmp_path)
    assert all(after[name] == data for name, data in before.items())
    assert {path.name for path in Path(output).iterdir()} == {"manifest.json", "shards.bin", "index.bin", "lease"}


@pytest.mark.parametrize("choice", [Choice(first=9), Choice(classes=("class1",)), Choice(share=0.3, seed=4)])
def test_a_subset_of_images_holds_what_was_chosen_in_their_order(
    tmp_path: Path, images: Images, choice: Choice
) -> None:
    output, every = str(tmp_path / "few"), samples(images.uri)
    editing.subset(images.uri, output, choice).write(say=lambda _: None)
    found = samples(output)
    assert found == [sample for sample in every if sample in found]
    expected = {Choice(first=9): 9, Choice(classes=("class1",)): 10}.get(choice, 6)
    assert len(found) == expected
    if choice.classes:
        assert {name for _, name, _ in found} == {"class1"}
    if choice.first:
        assert found == every[:9]


def test_batches_of_a_mix_of_images_draw_by_weight(tmp_path: Path, images: Images, more: str) -> None:
    output = str(tmp_path / "mixed")
    editing.mix({images.uri: 0.5, more: 1}, output).write(say=lambda _: None)
    batches = ImageBatches(
        ImageShards(output), image_size=8, fit="crop", seed=1, global_batch=20, reading=ReadingConfig(threads=0)
    )
    seen = Counter(index for step in range(2) for index in batches.batch(step).index_B.tolist())
    assert {index: seen[index] for index in range(20)} == dict.fromkeys(range(20), 1)
    assert {index: seen[index] for index in range(20, 30)} == dict.fromkeys(range(20, 30), 2)


def test_images_that_are_in_both_sets_are_refused(tmp_path: Path, images: Images) -> None:
    few = str(tmp_path / "few")
    editing.subset(images.uri, few, Choice(first=3)).write(say=lambda _: None)
    with pytest.raises(UsageError, match="3 keys are in two of the sets"):
        editing.append([images.uri, few], str(tmp_path / "both"))


def test_images_and_tokens_are_not_put_together(tmp_path: Path, images: Images, tokens: Path) -> None:
    with pytest.raises(UsageError, match="some of the sets hold images and some tokens"):
        editing.append([images.uri, str(tokens)], str(tmp_path / "both"))
    with pytest.raises(UsageError, match="images have no views"):
        editing.views([images.uri, images.uri], str(tmp_path / "both"))


def test_keys_of_several_widths_and_extensions_stay_as_they_are(tmp_path: Path, images: Images, more: str) -> None:
    output = str(tmp_path / "both")
    editing.append([more, images.uri], output).write(say=lambda _: None)
    keys = np.concatenate([ImageShards(more).keys, ImageShards(images.uri).keys])
    assert ImageShards(output).keys.tolist() == keys.tolist()
    assert ImageManifest.read(output).samples == 30


# ------------------------------------------------------------------------------------------- tokens of appended images


def reuse_of(tmp_path: Path, images: str, tokens: list[str], output: str, **changes: object) -> ReusePlan:
    config = {"views": ("center", "center_flip"), "shard_samples": 8, "batch": 3, "reuse": tokens}
    return plan_reuse(
        images, tokenizer_card(), TokensConfig.model_validate(config | changes), str(tmp_path / output), "crop"
    )


def make_all(plan: ReusePlan) -> int:
    """Make what is missing, as a driver does. Returns the number of shards made."""
    made = sum(len(read_commits(each).missing) for each in plan.plans)
    for each in plan.plans:
        tokenize_all(each)
    plan.finish(say=lambda _: None)
    return made


def test_only_new_images_are_tokenized_and_old_shards_stay_whole(
    tmp_path: Path, images: Images, tokens: Path, more: str
) -> None:
    both, before = str(tmp_path / "both"), contents(tokens)
    editing.append([images.uri, more], both).write(say=lambda _: None)
    plan = reuse_of(tmp_path, both, [str(tokens)], "all tokens")
    assert make_all(plan) == 2  # of ten images, eight and two; three shards are there
    manifest = TokenManifest.read(plan.output)
    assert [shard.samples for shard in manifest.shards] == [8, 8, 4, 8, 2]
    assert [shard.folder for shard in manifest.shards][:3] == [str(tokens)] * 3
    assert contents(tokens) == before
    assert manifest.source == ImageManifest.read(both).fingerprint
    assert make_all(reuse_of(tmp_path, both, [str(tokens)], "all tokens")) == 0

    config = TokensConfig(views=("center", "center_flip"), shard_samples=8, batch=3)
    anew = plan_tokens(both, tokenizer_card(), config, str(tmp_path / "anew"), "crop")
    tokenize_all(anew)  # every image again
    cache, everything = NodeCache(str(tmp_path / "cache")), np.arange(30)
    found, expected = TokenShards(plan.output, cache), TokenShards(anew.output, cache)
    assert np.array_equal(found.tokens(everything), expected.tokens(everything))
    assert np.array_equal(found.conditions, expected.conditions)
    assert found.keys.tolist() == expected.keys.tolist()


def test_tokens_that_were_appended_are_reused_when_images_are_appended_again(
    tmp_path: Path, images: Images, tokens: Path, more: str
) -> None:
    both, all_of = str(tmp_path / "both"), str(tmp_path / "all of them")
    editing.append([images.uri, more], both).write(say=lambda _: None)
    make_all(reuse_of(tmp_path, both, [str(tokens)], "tokens of both"))
    (tmp_path / "last photo" / "class0").mkdir(parents=True)
    (tmp_path / "last photo" / "class0" / "last.jpg").write_bytes(jpeg(999))
    ingest(DataConfig(source=FolderSource(path=str(tmp_path / "last photo"))), str(tmp_path / "last"), seed=0)
    editing.append([both, str(tmp_path / "last" / "train")], all_of).write(say=lambda _: None)
    plan = reuse_of(tmp_path, all_of, [str(tmp_path / "tokens of both")], "tokens of all")
    assert make_all(plan) == 1
    assert TokenManifest.read(plan.output).samples == 31


def test_tokens_that_were_made_otherwise_or_of_other_images_are_not_reused(
    tmp_path: Path, images: Images, tokens: Path, more: str
) -> None:
    both, alone = str(tmp_path / "both"), str(tmp_path / "alone")
    editing.append([images.uri, more], both).write(say=lambda _: None)
    with pytest.raises(UsageError, match=r"was made otherwise .*\n.*views: .*center_flip"):
        reuse_of(tmp_path, both, [str(tokens)], "x", views=("center",))
    with pytest.raises(UsageError, match="is for images that were appended"):
        reuse_of(tmp_path, images.uri, [str(tokens)], "x")
    editing.subset(images.uri, alone, Choice(first=3)).write(say=lambda _: None)
    editing.append([alone, more], str(tmp_path / "few and more")).write(say=lambda _: None)
    with pytest.raises(UsageError, match="which are none of those that were appended"):
        reuse_of(tmp_path, str(tmp_path / "few and more"), [str(tokens)], "x")
