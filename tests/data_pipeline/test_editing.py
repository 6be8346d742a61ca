"""Data sets made of others: their samples are those of their parents by arithmetic, and nothing is copied."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.loading.loader import TokenBatches
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.edits import ROWS_NAME, Edit, Parent, Selection
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import read_arrays
from data_pipeline.shards.token_windows import TokenWindows
from data_pipeline.tools import editing
from data_pipeline.tools.choosing import Choice
from data_pipeline.tools.editing import Planned
from tests.data_pipeline.small_data import contents, flip_byte, write_tokens

WINDOW = 2


class Samples(NamedTuple):
    """All samples of a set, in its order."""

    tokens: npt.NDArray[np.integer]
    class_names: list[str]
    keys: list[bytes]


def by_hand(folder: str, classes: tuple[str, ...] = ("cat", "dog")) -> Samples:
    """The samples of a set without parents, from its tars alone."""
    parts = [read_arrays(path.name, path.read_bytes()) for path in sorted(Path(folder).glob("*.tar"))]
    labels = np.concatenate([part["condition"] for part in parts])
    keys = [key for part in parts for key in part["key"].tolist()]
    return Samples(np.concatenate([part["tokens"] for part in parts]), [classes[label] for label in labels], keys)


def take(samples: Samples, rows: list[int]) -> Samples:
    return Samples(samples.tokens[rows], [samples.class_names[r] for r in rows], [samples.keys[r] for r in rows])


def check(uri: str, expected: Samples, tmp_path: Path) -> None:
    """A set holds these samples, read in one copy, by windows, and by its columns alone."""
    cache, everything = NodeCache(str(tmp_path / "cache")), np.arange(len(expected.keys))
    for shards in (TokenShards(uri, cache), TokenWindows(uri, cache, WINDOW)):
        assert shards.count == len(expected.keys)
        assert np.array_equal(shards.tokens(everything), expected.tokens)
        names = shards.manifest.classes
        assert [names[label] for label in shards.conditions[everything].tolist()] == expected.class_names
        assert shards.keys[everything].tolist() == expected.keys
    reader = TokenReader(uri, shards.manifest)
    columns = [reader.columns(number) for number in range(len(shards.manifest.shards))]
    assert [key for each in columns for key in each.key.tolist()] == expected.keys
    assert [names[each] for part in columns for each in part.condition.tolist()] == expected.class_names


def write(planned: Planned) -> str:
    assert planned.write(say=lambda _: None)
    return planned.output


@pytest.fixture
def one(tmp_path: Path) -> str:
    return write_tokens(tmp_path / "one", (5, 4, 3))


@pytest.fixture
def other(tmp_path: Path) -> str:
    return write_tokens(tmp_path / "other", (6, 2), classes=("dog", "emu"), prefix="another", source="c" * 64)


def joined(one: Samples, other: Samples) -> Samples:
    return Samples(
        np.concatenate([one.tokens, other.tokens]), one.class_names + other.class_names, one.keys + other.keys
    )


def test_an_appended_set_holds_both_and_joins_classes_by_name(tmp_path: Path, one: str, other: str) -> None:
    before = contents(tmp_path)
    uri = write(editing.append([one, other], str(tmp_path / "both")))
    check(uri, joined(by_hand(one), by_hand(other, ("dog", "emu"))), tmp_path)
    assert TokenManifest.read(uri).classes == ("cat", "dog", "emu")
    after = contents(tmp_path)
    assert all(after[name] == data for name, data in before.items())
    assert {path.name for path in Path(uri).iterdir()} == {"manifest.json", "shards.bin", "lease"}


def test_an_edit_states_its_parents_and_what_was_asked(tmp_path: Path, one: str) -> None:
    manifest = TokenManifest.read(write(editing.subset(one, str(tmp_path / "few"), Choice(first=3))))
    assert manifest.edit is not None
    (parent,) = manifest.edit.parents
    assert (parent.uri, parent.fingerprint) == (one, TokenManifest.read(one).fingerprint)
    assert (manifest.edit.operation, manifest.edit.asked) == ("subset", {"first": "3"})


@pytest.mark.parametrize(
    ("choice", "rows"),
    [
        (Choice(first=7), list(range(7))),
        (Choice(classes=("dog",)), [1, 3, 5, 7, 9, 11]),
        (Choice(keys=("sample/xx10", "sample/0")), [0, 10]),
        (Choice(classes=("cat",), first=2), [0, 2]),
        (Choice(share=1.0), list(range(12))),
    ],
)
def test_a_subset_holds_what_was_chosen_in_the_sets_order(
    tmp_path: Path, one: str, choice: Choice, rows: list[int]
) -> None:
    uri = write(editing.subset(one, str(tmp_path / "few"), choice))
    check(uri, take(by_hand(one), rows), tmp_path)
    shard_of = np.repeat([0, 1, 2], [5, 4, 3])
    assert [shard.name for shard in TokenManifest.read(uri).shards] == [
        f"tokens-{number:05d}.tar" for number in dict.fromkeys(shard_of[rows].tolist())
    ]


def test_a_share_has_its_size_follows_from_the_seed_and_grows(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "many", (40, 60))

    def keys(share: float, seed: int) -> set[bytes]:
        planned = editing.subset(uri, str(tmp_path / f"{share}-{seed}"), Choice(share=share, seed=seed))
        return set(TokenShards(write(planned), NodeCache(str(tmp_path / "cache"))).keys.tolist())

    small, large, others = keys(0.1, 1), keys(0.3, 1), keys(0.1, 2)
    assert (len(small), len(large)) == (10, 30)
    assert small < large
    assert small != others


def test_views_of_the_same_images_are_joined_sample_by_sample_however_they_are_cut(tmp_path: Path, one: str) -> None:
    more = write_tokens(tmp_path / "more", (7, 5), ("flip", "corner"))
    rename_keys_as(one, more)
    uri = write(editing.views([one, more], str(tmp_path / "joined")))
    first, second = by_hand(one), by_hand(more)
    expected = Samples(np.concatenate([first.tokens, second.tokens], 1), first.class_names, first.keys)
    assert TokenManifest.read(uri).views == ("center", "flip", "corner")
    check(uri, expected, tmp_path)
    rows = [0, 6, 11]
    few = write(
        editing.subset(uri, str(tmp_path / "few"), Choice(keys=tuple(first.keys[row].decode() for row in rows)))
    )
    check(few, take(expected, rows), tmp_path)


def rename_keys_as(one: str, other: str) -> None:
    """Write the shards of a set again, with the keys of another one."""
    from data_pipeline.shards.token_shards import TokenBlock, write_token_shard

    manifest, keys, start, shards = TokenManifest.read(other), by_hand(one).keys, 0, []
    for record in manifest.shards:
        path = Path(other) / record.name
        found = read_arrays(record.name, path.read_bytes())
        key = np.array(keys[start : start + record.samples], "S")
        block = TokenBlock(found["tokens"].copy(), found["condition"].copy(), key)
        path.unlink()
        shards.append(write_token_shard(other, record.name, block, {}))
        start += record.samples
    fields = {name: getattr(manifest, name) for name in TokenManifest.model_fields if name != "fingerprint"}
    TokenManifest.build(**fields | {"shards": tuple(shards)}).write(other)


def test_edits_of_edits_are_read_through_all_of_them(tmp_path: Path, one: str, other: str) -> None:
    both = write(editing.append([one, other], str(tmp_path / "both")))
    dogs = write(editing.subset(both, str(tmp_path / "dogs"), Choice(classes=("dog",))))
    again = write(editing.append([dogs, other], str(tmp_path / "again")))
    all_of, others = joined(by_hand(one), by_hand(other, ("dog", "emu"))), by_hand(other, ("dog", "emu"))
    rows = [row for row, name in enumerate(all_of.class_names) if name == "dog"]
    check(again, joined(take(all_of, rows), others), tmp_path)


def test_a_set_that_grows_day_by_day_is_no_chain(tmp_path: Path, one: str, other: str) -> None:
    both = write(editing.append([one, other], str(tmp_path / "both")))
    third = write_tokens(tmp_path / "third", (4,), prefix="of the third day")
    uri = write(editing.append([both, third], str(tmp_path / "all")))
    edit = TokenManifest.read(uri).edit
    assert edit is not None
    assert [parent.uri for parent in edit.parents] == [one, other, third]


def remote_sets(tmp_path: Path, sizes: tuple[int, ...]) -> tuple[str, str]:
    """A set on a remote filesystem, and the same on a disk."""
    here, remote = write_tokens(tmp_path / "here", sizes), f"memory://{tmp_path.name}/far"
    fsspec.filesystem("memory").put(here + "/", remote + "/", recursive=True)
    return remote, here


def test_a_subset_of_few_samples_reads_them_and_not_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, here = remote_sets(tmp_path, (400, 400, 400))
    rows = [3, 4, 5, 399, 401, 799]
    keys = tuple(by_hand(here).keys[row].decode() for row in rows)
    uri = write(editing.subset(remote, remote + "-few", Choice(keys=keys)))
    asked: list[int] = []
    read_ranges, read_bytes = storage.read_ranges, storage.read_bytes

    def noted(path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        asked.extend(length for _, length in ranges)
        return read_ranges(path, ranges)

    def without_tars(path: str, *most: int) -> bytes:
        assert not path.endswith(".tar")
        return read_bytes(path, *most)

    monkeypatch.setattr(storage, "read_ranges", noted)
    monkeypatch.setattr(storage, "read_bytes", without_tars)
    shards = TokenShards(uri, NodeCache(str(tmp_path / "cache")))
    monkeypatch.undo()
    assert asked == [by_hand(here).tokens[0].nbytes] * 6
    assert np.array_equal(shards.tokens(np.arange(6)), by_hand(here).tokens[rows])
    assert shards.keys.tolist() == [key.encode() for key in keys]


def test_a_damaged_sample_of_few_is_named(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "set", (40,))
    few = write(editing.subset(uri, str(tmp_path / "few"), Choice(keys=("sample/3", "sample/30"))))
    path = Path(uri) / "tokens-00000.tar"
    flip_byte(path, path.read_bytes().index(by_hand(uri).tokens[30].tobytes()) + 5)
    with pytest.raises(CorruptShardError, match=r"tokens-00000\.tar: sample sample/30 is corrupt"):
        TokenShards(few, NodeCache(str(tmp_path / "cache")))


@pytest.mark.parametrize("operation", ["append", "subset", "views", "mix"])
def test_few_samples_are_read_through_any_edit(tmp_path: Path, operation: str) -> None:
    one = write_tokens(tmp_path / "one", (40,))
    other = write_tokens(tmp_path / "other", (24,), classes=("dog", "emu"), prefix="another")
    all_of, others = by_hand(one), by_hand(other, ("dog", "emu"))
    flips = write_tokens(tmp_path / "flips", (40,), ("flip",))
    output, both = str(tmp_path / "made"), joined(all_of, others)
    two_views = all_of._replace(tokens=np.concatenate([all_of.tokens, by_hand(flips).tokens], 1))
    made, expected = {
        "append": (lambda: editing.append([one, other], output), both),
        "mix": (lambda: editing.mix({one: 1, other: 1}, output), both),
        "subset": (lambda: editing.subset(one, output, Choice(classes=("dog",))), take(all_of, list(range(1, 40, 2)))),
        "views": (lambda: editing.views([one, flips], output), two_views),
    }[operation]
    rows = [2, 17, len(expected.keys) - 1]
    keys = tuple(expected.keys[row].decode() for row in rows)
    few = write(editing.subset(write(made()), str(tmp_path / "few"), Choice(keys=keys)))
    check(few, take(expected, rows), tmp_path)


# ------------------------------------------------------------------------------------------------------------- mixes


@pytest.mark.parametrize("window", [None, 1])
def test_a_mix_sees_each_sample_as_often_as_its_weight_says(
    tmp_path: Path, one: str, other: str, window: int | None
) -> None:
    planned = editing.mix({one: 1.0, other: 0.25}, str(tmp_path / "mixed"))
    assert planned.summary[1].endswith("2 of its 8 samples in an epoch, each 0 or 1 times (0.25 on average)")
    shards = TokenShards(write(planned), NodeCache(str(tmp_path / "cache")))
    batches = TokenBatches(shards, 3, 2, window)
    for epoch in range(4):  # 12 + 2 positions each, 7 steps
        seen = Counter(index for step in range(7) for index in batches.batch(7 * epoch + step).index_B.tolist())
        assert {index: seen[index] for index in range(12)} == dict.fromkeys(range(12), 1)
        assert sum(seen[index] for index in range(12, 20)) == 2
    after = Counter(index for step in range(28) for index in batches.batch(step).index_B.tolist())
    assert {index: after[index] for index in range(12, 20)} == dict.fromkeys(range(12, 20), 1)  # none is starved
    check(planned.output, joined(by_hand(one), by_hand(other, ("dog", "emu"))), tmp_path)


def test_batches_of_a_mix_by_windows_are_those_of_one_copy(tmp_path: Path, one: str, other: str) -> None:
    uri, cache = write(editing.mix({one: 0.5, other: 3}, str(tmp_path / "mixed"))), NodeCache(str(tmp_path / "cache"))
    whole = TokenBatches(TokenShards(uri, cache), 3, 4, 1)
    parts = [TokenBatches(TokenWindows(uri, cache, 1), 3, 4, 1) for _ in range(2)]
    for step in range(40):
        expected = whole.batch(step)
        found = [batches.batch(step, rank, 2) for rank, batches in enumerate(parts)]
        assert np.array_equal(np.concatenate([each.tokens_BLF for each in found]), expected.tokens_BLF)
        assert np.array_equal(np.concatenate([each.condition_B for each in found]), expected.condition_B)


def test_a_set_may_be_mixed_with_a_part_of_itself(tmp_path: Path, one: str) -> None:
    dogs = write(editing.subset(one, str(tmp_path / "dogs"), Choice(classes=("dog",))))
    uri = write(editing.mix({one: 1, dogs: 2}, str(tmp_path / "more dogs")))
    shards = TokenShards(uri, NodeCache(str(tmp_path / "cache")))
    batches = TokenBatches(shards, 0, 12)
    keys = Counter(key for step in range(2) for key in shards.keys[batches.batch(step).index_B].tolist())
    hand = by_hand(one)
    assert keys == {key: 3 if name == "dog" else 1 for key, name in zip(hand.keys, hand.class_names, strict=True)}


# ---------------------------------------------------------------------------------------------------------- refusals


def test_sets_that_differ_are_refused_with_the_difference(tmp_path: Path, one: str) -> None:
    other = write_tokens(tmp_path / "other", (3,), image_size=32)
    for plan in (lambda: editing.append([one, other], "x"), lambda: editing.mix({one: 1, other: 1}, "x")):
        with pytest.raises(UsageError, match="image_size: 16 -> 32"):
            plan()


def test_views_of_other_images_are_refused(tmp_path: Path, one: str) -> None:
    more = write_tokens(tmp_path / "more", (7, 5), ("flip",))  # the same numbers, other keys
    with pytest.raises(UsageError, match="has other samples than"):
        editing.views([one, more], str(tmp_path / "joined"))
    with pytest.raises(UsageError, match="two of the sets have the view center"):
        editing.views([one, write_tokens(tmp_path / "twice", (5, 4, 3))], str(tmp_path / "joined"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(classes=("cow",)), "has no class 'cow'"),
        (Choice(keys=("sample/0", "nobody")), r"has no sample 'nobody' \(1 of 2 keys"),
        (Choice(share=0.01), "no sample of .* is left"),
    ],
)
def test_a_subset_of_what_is_not_there_is_refused(tmp_path: Path, one: str, choice: Choice, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        editing.subset(one, str(tmp_path / "few"), choice)


def test_a_weight_that_leaves_nothing_and_a_mix_of_a_mix_are_refused(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(UsageError, match=r"the weight 0\.01 takes 0 of its samples"):
        editing.mix({one: 1, other: 0.01}, str(tmp_path / "mixed"))
    mixed = write(editing.mix({one: 1, other: 1}, str(tmp_path / "mixed")))
    with pytest.raises(UsageError, match="is a mix itself"):
        editing.mix({mixed: 1, other: 1}, str(tmp_path / "again"))


def test_the_same_edit_again_writes_nothing_and_another_is_refused(tmp_path: Path, one: str, other: str) -> None:
    output = str(tmp_path / "few")
    write(editing.subset(one, output, Choice(first=3)))
    assert not editing.subset(one, output, Choice(first=3)).write(say=lambda _: None)
    with pytest.raises(UsageError, match="already holds another data set"):
        editing.subset(one, output, Choice(first=4)).write(say=lambda _: None)
    with pytest.raises(UsageError, match="is the data set itself"):
        editing.subset(one, one, Choice(first=4))


def test_a_parent_that_is_gone_or_changed_is_named(tmp_path: Path, one: str, other: str) -> None:
    uri, cache = write(editing.append([one, other], str(tmp_path / "both"))), NodeCache(str(tmp_path / "cache"))
    write_tokens(tmp_path / "other", (6, 2), classes=("dog", "emu"), prefix="yet another", source="c" * 64)
    with pytest.raises(UsageError, match=rf"is made of the data set \w+ at {other}, which now holds \w+: restore"):
        TokenShards(uri, cache)
    (Path(other) / "manifest.json").unlink()
    with pytest.raises(UsageError, match=rf"is made of {other}, which cannot be read"):
        TokenShards(uri, cache)


def test_a_selection_that_is_damaged_is_named(tmp_path: Path, one: str) -> None:
    uri = write(editing.subset(one, str(tmp_path / "few"), Choice(first=7)))
    path = Path(uri) / ROWS_NAME
    flip_byte(path, path.stat().st_size - 1)
    with pytest.raises(UsageError, match=r"rows\.bin is no selection of rows"):
        TokenShards(uri, NodeCache(str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("of", "row", "message"),
    [
        ([0, 2], [0, 4, 3], "selects rows that are not there"),  # shard 2 has three rows
        ([2, 0], [0, 1, 0], "selects rows that are not there"),
        ([0, 2], [1, 1, 0], "selects a row twice"),
        ([0, 3], [0, 1, 0], "has rows of other shards than the manifest"),
        ([0, 2], [0, 1], "has rows of other shards than the manifest"),
    ],
)
def test_a_selection_of_what_is_not_there_is_refused(
    tmp_path: Path, of: list[int], row: list[int], message: str
) -> None:
    starts, parent = np.array([0, 2, 3]), np.array([0, 5, 9, 12])
    made = Selection(np.array(of), np.array(row), starts)
    made.write(str(tmp_path))
    with pytest.raises(CorruptShardError, match=message):
        Selection.read(str(tmp_path), made.statement(), starts, parent)


def rebuilt(uri: str, **changes: object) -> None:
    """Write the manifest of a set again, with other fields."""
    manifest = TokenManifest.read(uri)
    fields = {name: getattr(manifest, name) for name in TokenManifest.model_fields if name != "fingerprint"}
    TokenManifest.build(**fields | changes).write(uri)


def test_a_child_that_states_other_samples_than_its_parent_is_refused(tmp_path: Path, one: str, other: str) -> None:
    uri = write(editing.append([one, other], str(tmp_path / "both")))
    first, *rest = TokenManifest.read(uri).shards
    rebuilt(uri, shards=(first.model_copy(update={"samples": 4}), *rest), samples=19)
    with pytest.raises(
        UsageError, match=r"says that it has 4 samples of .*tokens-00000\.tar, where its parents have 5"
    ):
        TokenShards(uri, NodeCache(str(tmp_path / "cache")))


def test_views_whose_samples_differ_are_not_joined_by_a_manifest_that_says_so(tmp_path: Path, one: str) -> None:
    more = write_tokens(tmp_path / "more", (7, 5), ("flip",))  # of other keys
    parents = tuple(
        Parent(uri=uri, fingerprint=TokenManifest.read(uri).fingerprint, shards=len(TokenManifest.read(uri).shards))
        for uri in (one, more)
    )
    uri = write(editing.subset(one, str(tmp_path / "joined"), Choice(first=12)))
    rebuilt(uri, edit=Edit(operation="views", parents=parents), views=("center", "flip"))
    with pytest.raises(UsageError, match=r"has other samples than .* from sample 5 on"):
        TokenShards(uri, NodeCache(str(tmp_path / "cache")))


@pytest.mark.parametrize("change", [{"views": ("flip",)}, {"image_size": 99}, {"classes": ("cat", "cow")}])
def test_a_child_that_does_not_fit_its_parent_is_refused(
    tmp_path: Path, one: str, other: str, change: dict[str, object]
) -> None:
    uri = write(editing.append([one, other], str(tmp_path / "both")))
    rebuilt(uri, **change)
    with pytest.raises(UsageError, match="make it anew"):
        TokenShards(uri, NodeCache(str(tmp_path / "cache")))
