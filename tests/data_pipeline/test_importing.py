"""Tokens of other programs become a data set of ours, or a message that names the file or the line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.loading.loader import TokenBatches
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import TokenBlock, check_tokenizer
from data_pipeline.tokens.importing.llamagen import LlamaGenCodes
from data_pipeline.tokens.importing.rar import RARTokens
from data_pipeline.tokens.importing.tokens import Foreign, ForeignTokens, import_tokens, plan_import, read_classes
from data_pipeline.tools.verifying import verify
from model.layout import TokenLayout
from tests.data_pipeline.small_data import contents, tokenizer_card

IMAGES, VIEWS, SIDE, CODES = 23, 2, 3, 100
FOREIGN = Foreign(codebook_size=CODES, tokenizer_name="VQ-16")


def random_tokens(images: int = IMAGES, views: int = VIEWS) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, CODES, (images, views, SIDE * SIDE)), np.sort(generator.integers(0, 4, images))


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A folder as extract_codes_c2i leaves it."""
    for folder in ("codes", "labels"):
        (tmp_path / "llamagen" / f"imagenet256_{folder}").mkdir(parents=True)
    for number, (tokens, label) in enumerate(zip(*random_tokens(), strict=True)):
        np.save(tmp_path / f"llamagen/imagenet256_codes/{number}.npy", tokens[None])
        np.save(tmp_path / f"llamagen/imagenet256_labels/{number}.npy", np.array([label]))
    return tmp_path / "llamagen"


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """A file as RAR's pretokenization leaves it with ten crops, here of two."""
    tokens_NWL, label_N = random_tokens()
    rows = [
        {"class_id": int(label), "tokens": view.tolist()}
        for views, label in zip(tokens_NWL, label_N, strict=True)
        for view in views
    ]
    path = tmp_path / "pretokenized.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def change_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = text + "\n"
    path.write_text("".join(lines))


def imported(source: ForeignTokens, output: Path, shard_samples: int = 10, **foreign: Any) -> TokenManifest:
    plan = plan_import(source, Foreign(**(vars(FOREIGN) | foreign)), str(output), shard_samples)
    return import_tokens(plan)


def read(output: Path) -> TokenBlock:
    manifest = TokenManifest.read(str(output))
    blocks = [read_token_shard(str(output), shard) for shard in manifest.shards]
    return TokenBlock(
        *(np.concatenate([getattr(b, name) for b in blocks]) for name in ("tokens_NWLF", "condition", "key"))
    )


def test_codes_of_llamagen_come_in_as_they_are(codes: Path, tmp_path: Path) -> None:
    manifest = imported(LlamaGenCodes(str(codes)), tmp_path / "out")
    block, (tokens, labels) = read(tmp_path / "out"), random_tokens()
    assert np.array_equal(block.tokens_NWLF[..., 0], tokens)
    assert np.array_equal(block.condition, labels)
    assert [bytes(key).decode() for key in block.key[:2]] == ["00000000", "00000001"]
    assert manifest.layout == TokenLayout((SIDE * SIDE,), (CODES,))
    assert manifest.views == ("center", "center_flip")
    assert manifest.image_size == 16 * SIDE
    assert [shard.samples for shard in manifest.shards] == [10, 10, 3]


def test_lines_of_rar_come_in_as_they_are(jsonl: Path, tmp_path: Path) -> None:
    manifest = imported(RARTokens(str(jsonl), views=2), tmp_path / "out")
    block, (tokens, labels) = read(tmp_path / "out"), random_tokens()
    assert np.array_equal(block.tokens_NWLF[..., 0], tokens)
    assert np.array_equal(block.condition, labels)
    assert [bytes(key).decode() for key in block.key[:2]] == ["000000001", "000000003"]
    assert manifest.samples == IMAGES


def test_each_line_is_a_sample_unless_views_are_asked_for(jsonl: Path, tmp_path: Path) -> None:
    manifest = imported(RARTokens(str(jsonl)), tmp_path / "out")
    assert (manifest.samples, manifest.views) == (IMAGES * VIEWS, ("imported_0",))


def test_reading_may_begin_anywhere_in_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'{{"class_id": {n // 2 % 7}, "tokens": [{n % 50}]}}\n' for n in range(5000)))
    tokens, labels, keys = RARTokens(str(path), views=2).read(2203, 2206)
    assert tokens[..., 0].tolist() == [[n % 50, (n + 1) % 50] for n in (4406, 4408, 4410)]
    assert labels.tolist() == [n % 7 for n in (2203, 2204, 2205)]
    assert keys == ["000004407", "000004409", "000004411"]


@pytest.mark.parametrize("program", ["llamagen", "rar"])
def test_what_was_imported_passes_verify_and_says_where_it_comes_from(
    codes: Path, jsonl: Path, program: str, tmp_path: Path
) -> None:
    source: ForeignTokens = LlamaGenCodes(str(codes)) if program == "llamagen" else RARTokens(str(jsonl), 2)
    manifest = imported(source, tmp_path / "out")
    assert verify(str(tmp_path / "out")).passed
    record = {"imported": program, "name": "VQ-16", "codebook_size": CODES, "grid": SIDE}
    assert manifest.tokenizer.config == record
    assert manifest.tokenizer.encoder == storage.fingerprint(record)
    assert manifest.source == source.fingerprint()


def test_imported_tokens_are_not_taken_for_those_of_a_tokenizer_of_ours(jsonl: Path, tmp_path: Path) -> None:
    manifest, card = imported(RARTokens(str(jsonl)), tmp_path / "out"), tokenizer_card()
    with pytest.raises(UsageError, match="imported, and made by the tokenizer 'VQ-16' of rar"):
        check_tokenizer(manifest, card)


def test_imported_tokens_come_in_training_batches(jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    imported(RARTokens(str(jsonl), 2), tmp_path / "out")
    batch = TokenBatches(TokenShards(str(tmp_path / "out")), seed=0, global_batch=8).batch(0)
    tokens_NWL, label_N = random_tokens()
    assert np.array_equal(batch.condition_B, label_N[batch.index_B])
    for tokens_LF, index in zip(batch.tokens_BLF, batch.index_B, strict=True):
        assert tokens_LF[:, 0].tolist() in tokens_NWL[index].tolist()


class _InterruptionError(Exception):
    pass


def _stop(done: int, _total: int) -> None:
    if done >= 10:
        raise _InterruptionError


def test_an_interrupted_import_ends_in_the_same_bytes(jsonl: Path, tmp_path: Path) -> None:
    plan = plan_import(RARTokens(str(jsonl), 2), FOREIGN, str(tmp_path / "out"), 10)
    with pytest.raises(_InterruptionError):
        import_tokens(plan, progress=_stop)
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = (tmp_path / "out" / "tokens-00000.tar").stat().st_mtime_ns
    import_tokens(plan)
    imported(RARTokens(str(jsonl), 2), tmp_path / "fresh")
    assert (tmp_path / "out" / "tokens-00000.tar").stat().st_mtime_ns == kept
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_an_import_that_is_done_reads_a_listing_and_each_record_once(jsonl: Path) -> None:
    plan = plan_import(RARTokens(str(jsonl), VIEWS), FOREIGN, f"memory://{uuid4().hex}", 2)
    classes = ("a", "b", "c", "d")
    import_tokens(plan, classes)
    with storage.counted() as asked:
        import_tokens(plan, classes)
    assert (asked["list"], asked["get"], asked["head"]) == (1, 12, 0)


def test_another_input_is_not_mixed_into_the_same_folder(jsonl: Path, tmp_path: Path) -> None:
    imported(RARTokens(str(jsonl), 2), tmp_path / "out")
    with pytest.raises(UsageError, match=r"tokens that were made otherwise (?s:.*)codebook_size: 100 -> 200"):
        imported(RARTokens(str(jsonl), 2), tmp_path / "out", codebook_size=200)


def test_classes_have_the_names_of_a_file_or_their_numbers(jsonl: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nshark\nray\n")
    plan = plan_import(RARTokens(str(jsonl), 2), FOREIGN, str(tmp_path / "named"))
    named = import_tokens(plan, read_classes(str(tmp_path / "names.txt")))
    assert named.classes == ("tench", "goldfish", "shark", "ray")
    assert imported(RARTokens(str(jsonl), 2), tmp_path / "out").classes == ("0", "1", "2", "3")


def test_the_images_that_the_sampler_repeated_can_be_left_out(codes: Path, tmp_path: Path) -> None:
    assert imported(LlamaGenCodes(str(codes), samples=20), tmp_path / "out").samples == 20


def test_the_folders_may_be_named(codes: Path, tmp_path: Path) -> None:
    folders = [str((codes / f"imagenet256_{name}").rename(tmp_path / name)) for name in ("codes", "labels")]
    assert LlamaGenCodes(str(codes), *folders).samples == IMAGES
    with pytest.raises(UsageError, match="give both --codes and --labels"):
        LlamaGenCodes(str(codes), folders[0])


def test_a_folder_without_codes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"should hold one folder <dataset><size>_codes \(none\)"):
        LlamaGenCodes(str(tmp_path))


@pytest.mark.parametrize("folder", ["codes", "labels"])
def test_a_file_that_is_missing_is_named(codes: Path, folder: str) -> None:
    (codes / f"imagenet256_{folder}" / "7.npy").unlink()
    with pytest.raises(UsageError, match=rf"imagenet256_{folder}/7\.npy is missing"):
        LlamaGenCodes(str(codes))


@pytest.mark.parametrize(
    ("folder", "array", "message"),
    [
        ("codes", np.zeros((1, 2, 4), np.int64), r"codes/5\.npy has codes of shape \[2, 4\], the first has \[2, 9\]"),
        ("codes", np.zeros((2, 9), np.int64), r"codes/5\.npy has shape \[2, 9\], not \[1, views, tokens\]"),
        ("codes", np.zeros((1, 2, 9)), r"codes/5\.npy holds float64, not whole numbers"),
        ("codes", np.full((1, 2, 9), CODES), rf"codes/5\.npy: token {CODES} is outside 0 to {CODES - 1}"),
        ("codes", np.full((1, 2, 9), -1), r"codes/5\.npy: token -1 is outside"),
        ("labels", np.zeros(2, np.int64), r"labels/5\.npy has shape \[2\], not \[1\]"),
        ("labels", np.array([-3]), r"codes/5\.npy: class -3 is outside 0 to"),
    ],
)
def test_a_file_that_is_not_right_is_named(
    codes: Path, folder: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(codes / f"imagenet256_{folder}" / "5.npy", array)
    with pytest.raises(UsageError, match=message):
        imported(LlamaGenCodes(str(codes)), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_that_was_cut_is_named(codes: Path, tmp_path: Path) -> None:
    path = codes / "imagenet256_codes" / "5.npy"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(UsageError, match=r"codes/5\.npy is no \.npy file of numbers"):
        imported(LlamaGenCodes(str(codes)), tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"line 5: not \{\"class_id\""),
        ('{"tokens": [1]}', r"line 5: not .*'class_id'"),
        pytest.param("[" * 100_000, "line 5: .* nested deeper", id="deep"),
        pytest.param(f'{{"class_id": 0, "tokens": [{"1, " * 400_000}1]}}', "has a line of more than", id="long"),
        ('{"class_id": "0", "tokens": [1]}', r"line 5: class_id should be a whole number"),
        ('{"class_id": 0, "tokens": [1, 2]}', r"line 5: 2 tokens, the first line has 9"),
        ('{"class_id": 0, "tokens": [1, 2, 3, 4, 5, 6, 7, 8, 1.5]}', r"line 5: tokens should be whole numbers"),
        ('{"class_id": 0, "tokens": [1, 2, 3, 4, 5, 6, 7, 8, 100]}', r"line 5: token 100 is outside 0 to 99"),
        (
            '{"class_id": 0, "tokens": [1, 2, 3, 4, 5, 6, 7, 8, 99999999999999999999]}',
            r"line 5: .* has more than 64 bits",
        ),
    ],
)
def test_a_line_that_is_not_right_is_named(jsonl: Path, line: str, message: str, tmp_path: Path) -> None:
    change_line(jsonl, 5, line)
    with pytest.raises(UsageError, match=message):
        imported(RARTokens(str(jsonl)), tmp_path / "out")


def test_views_of_two_classes_are_no_views_of_one_image(jsonl: Path, tmp_path: Path) -> None:
    record = json.loads(jsonl.read_text().splitlines()[5])
    change_line(jsonl, 6, json.dumps(record | {"class_id": 3}))
    with pytest.raises(UsageError, match=r"line 6: class 3, but the line before has 0; 2 lines"):
        imported(RARTokens(str(jsonl), 2), tmp_path / "out")


def test_a_line_without_the_other_views_is_noticed_before_anything_is_written(jsonl: Path) -> None:
    with pytest.raises(UsageError, match="has 46 lines, which is no multiple of --views 10"):
        RARTokens(str(jsonl), 10)


@pytest.mark.parametrize("text", [None, ""])
def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UsageError, match=r"a\.jsonl is (no file|empty)"):
        RARTokens(str(tmp_path / "a.jsonl"))


def test_a_length_that_is_no_square_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"class_id": 0, "tokens": [1, 2, 3, 4, 5]}\n')
    with pytest.raises(UsageError, match=r"line 1 has 5 tokens a view; that is no square"):
        imported(RARTokens(str(tmp_path / "a.jsonl")), tmp_path / "out")


def test_a_grid_that_does_not_fit_is_refused(jsonl: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 1 has 9 tokens a view; --grid 16 asks for 256"):
        imported(RARTokens(str(jsonl)), tmp_path / "out", grid=16)


def test_a_codebook_beyond_all_bounds_is_refused(jsonl: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--codebook-size 4294967297: 2 to 4294967296 are possible"):
        imported(RARTokens(str(jsonl)), tmp_path / "out", codebook_size=2**32 + 1)


@pytest.mark.parametrize("token", [65_541, 2**32 + 5, -65_531])
def test_a_token_that_16_or_32_bits_would_make_5_of_is_refused(codes: Path, token: int, tmp_path: Path) -> None:
    path = codes / "imagenet256_codes/3.npy"
    array = np.load(path)
    array[0, 1, 2] = token
    np.save(path, array)
    with pytest.raises(UsageError, match=rf"3\.npy: token {token} is outside 0 to {CODES - 1}"):
        imported(LlamaGenCodes(str(codes)), tmp_path / "out")


def test_a_number_that_64_bits_would_make_negative_is_named(codes: Path, tmp_path: Path) -> None:
    path = codes / "imagenet256_codes/3.npy"
    array = np.load(path).astype(np.uint64)
    array[0, 1, 2] = 2**64 - 3
    np.save(path, array)
    with pytest.raises(UsageError, match=r"3\.npy holds the number 18446744073709551613, which has more than 63 bits"):
        imported(LlamaGenCodes(str(codes)), tmp_path / "out")


def test_a_large_codebook_is_stored_in_32_bits(jsonl: Path, tmp_path: Path) -> None:
    found = {
        codes: imported(RARTokens(str(jsonl)), tmp_path / str(codes), codebook_size=codes) for codes in (CODES, 65537)
    }
    blocks = [read_token_shard(str(tmp_path / str(codes)), made.shards[0]).tokens_NWLF for codes, made in found.items()]
    assert [block.dtype for block in blocks] == ["uint16", "uint32"]
    assert np.array_equal(*blocks)


def test_a_label_without_a_name_is_named(jsonl: Path, tmp_path: Path) -> None:
    plan = plan_import(RARTokens(str(jsonl), 2), FOREIGN, str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"pretokenized\.jsonl, line \d+: class \d is outside 0 to 1"):
        import_tokens(plan, ("a", "b"))


@pytest.mark.xdist_group("s3")
def test_input_and_output_may_be_on_s3(codes: Path, jsonl: Path, s3_uri: str, tmp_path: Path) -> None:
    for name, data in {**contents(codes), "pretokenized.jsonl": jsonl.read_bytes()}.items():
        storage.write_bytes(f"{s3_uri}/{name}", data)
    for name, source in (("a", LlamaGenCodes(s3_uri)), ("b", RARTokens(f"{s3_uri}/pretokenized.jsonl", 2))):
        assert isinstance(source, LlamaGenCodes | RARTokens)
        import_tokens(plan_import(source, FOREIGN, f"{s3_uri}/{name}", 10))
        assert verify(f"{s3_uri}/{name}").passed
