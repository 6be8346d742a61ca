"""Published networks become exports that compute what they computed at home."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.cli import app
from cluster.stages.inputs import find_product
from data_pipeline.errors import UsageError
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.tokens.importing.networks import import_network
from trainer.evaluation.sampler import read_cards
from trainer.networks import load_generator

PARITY = Path(__file__).parents[1] / "parity"
TOKENIZER, GENERATOR = PARITY / "msvr4p3/state.safetensors", PARITY / "var_msvr4p3/state.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a published tokenizer, in the folder of a run."""
    output = str(tmp_path_factory.mktemp("imported") / "tokenizer/export")
    import_network(str(TOKENIZER), output)
    return output


def test_an_imported_tokenizer_makes_the_published_tokens(tokenizer: str) -> None:
    network, card = load_tokenizer(tokenizer, CPU)
    io = load_file(TOKENIZER.with_name("io.safetensors"))
    with torch.no_grad():
        tokens_BLF = network.tokenize(io["image_uint8"].float() / 127.5 - 1)
    for name in (name for name in io if name.startswith("tokens.")):
        branch, scale = (int(part.removeprefix("branch").removeprefix("scale")) for part in name.split(".")[1:])
        assert torch.equal(tokens_BLF[:, network.layout.span(scale), branch], io[name]), name
    assert card.lineage["imported"] == "ImageFolder MSVR tokenizer"
    assert card.encoder() != card.fingerprint()  # its halves are told apart, as those of a trained one


def test_an_imported_tokenizer_is_taken_as_an_input(tokenizer: str) -> None:
    run = str(Path(tokenizer).parents[1])
    assert find_product("tokenizer", run, "inputs.tokenizer") == find_product("tokenizer", tokenizer, "") == tokenizer


def test_an_imported_generator_gives_the_published_logits_and_belongs_to_its_tokenizer(
    tokenizer: str, tmp_path: Path
) -> None:
    output, run = str(tmp_path / "generator"), str(Path(tokenizer).parents[1])
    command = ["import", "network", str(GENERATOR), "-o", output, "--tokenizer", run]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "generator (VAR generator)" in " ".join(done.output.split())
    network, _ = load_generator(output, True, CPU)
    io = load_file(GENERATOR.with_name("io.safetensors"))
    with torch.no_grad():
        logits = network(io["label"], io["generator_input"])
    torch.testing.assert_close(logits.flatten(2), io["logits"], rtol=0, atol=1e-4)
    cards = read_cards(output, tokenizer)
    assert cards["generator"].lineage["tokenizer"] == cards["tokenizer"].encoder()


def test_a_generator_asks_for_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state\.safetensors is a generator: import the tokenizer .*--tokenizer"):
        import_network(str(GENERATOR), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("state.safetensors", None, r"there is no file .*state\.safetensors"),
        ("state.safetensors", b"\x80\x02pickle", r"state\.safetensors is no safetensors file .*pickle"),
        ("config.json", None, r"there is no file .*config\.json: .*--config"),
        ("config.json", b"[]", r"config\.json holds no options, but list"),
        (
            "config.json",
            b"{}",
            r"is of no family that can be imported: there are ImageFolder MSVR tokenizer, VAR",
        ),
        ("config.json", b'{"v_patch_nums": [1, 2, 3]}', r"state\.safetensors: "),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    shutil.copytree(TOKENIZER.parent, tmp_path / "published")
    path = tmp_path / "published" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        import_network(str(tmp_path / "published/state.safetensors"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_parameter_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER.parent, tmp_path / "published")
    path = tmp_path / "published/state.safetensors"
    state = load_file(path)
    del state["quant_conv.weight"]
    save_file(state, path)
    with pytest.raises(UsageError, match=r"state\.safetensors: the published tokenizer misses: quant_conv\.weight"):
        import_network(str(path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
