"""Published networks become exports that compute what they computed at home, whatever file they come in."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.stages.inputs import find_product
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.tokens.importing.networks import Wish, import_network
from trainer.evaluation.samples.sampler import read_cards
from trainer.networks import load_generator

PARITY = Path(__file__).parents[1] / "parity"
TOKENIZER, GENERATOR = PARITY / "msvr4p3/state.safetensors", PARITY / "var_msvr4p3/state.safetensors"
CPU = torch.device("cpu")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a published tokenizer, in the folder of a run."""
    output = str(tmp_path_factory.mktemp("imported") / "tokenizer/export")
    import_network(str(TOKENIZER), output)
    return output


def options() -> dict[str, Any]:
    return dict(json.loads(TOKENIZER.with_name("config.json").read_text()))


def test_an_imported_tokenizer_makes_the_published_tokens(tokenizer: str) -> None:
    network, card = load_tokenizer(tokenizer, CPU)
    io = load_file(TOKENIZER.with_name("io.safetensors"))
    with torch.no_grad():
        tokens_BLF = network.tokenize(io["image_uint8"].float() / 127.5 - 1)
    for name in (name for name in io if name.startswith("tokens.")):
        branch, scale = (int(part.removeprefix("branch").removeprefix("scale")) for part in name.split(".")[1:])
        assert torch.equal(tokens_BLF[:, network.layout.span(scale), branch], io[name]), name
    assert card.lineage["imported"] == "ImageFolder MSVR tokenizer"
    assert card.lineage["sha256"] == storage.sha256(TOKENIZER.read_bytes())
    assert card.lineage["options"] == storage.fingerprint(options())
    assert card.encoder() != card.fingerprint()  # its halves are told apart, as those of a trained one


def test_an_imported_tokenizer_is_taken_as_an_input(tokenizer: str) -> None:
    run = str(Path(tokenizer).parents[1])
    assert find_product("tokenizer", run, "inputs.tokenizer") == find_product("tokenizer", tokenizer, "") == tokenizer


def test_an_imported_generator_gives_the_published_logits_and_belongs_to_its_tokenizer(
    tokenizer: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "generator")
    done = import_network(str(GENERATOR), output, Wish(tokenizer=tokenizer, classes=("a", "b")))
    assert done.card.kind == "generator"
    assert "VAR generator" in done.found
    network, _ = load_generator(output, True, CPU)
    io = load_file(GENERATOR.with_name("io.safetensors"))
    with torch.no_grad():
        logits = network(io["label"], io["generator_input"])
    torch.testing.assert_close(logits.flatten(2), io["logits"], rtol=0, atol=1e-4)
    cards = read_cards(output, tokenizer)
    assert cards["generator"].lineage["tokenizer"] == cards["tokenizer"].encoder()
    assert cards["generator"].classes == ("a", "b")


def test_a_generator_asks_for_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state\.safetensors is a generator: import the tokenizer .*--tokenizer"):
        import_network(str(GENERATOR), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_generator_takes_no_more_names_of_classes_than_it_knows(tokenizer: str, tmp_path: Path) -> None:
    names = tuple(map(str, range(11)))
    with pytest.raises(UsageError, match=r"11 names of classes, but .* knows 10 classes"):
        import_network(str(GENERATOR), str(tmp_path / "out"), Wish(tokenizer=tokenizer, classes=names))
    assert not (tmp_path / "out").exists()


def _as_average(state: State) -> dict[str, Any]:
    """ImageFolder's best_ckpt.pt."""
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    teachers = {"semantic_model.a": torch.zeros(2), "detail_model.b": torch.zeros(2)}
    more = {"optimizer": {"state": {}}, "discriminator": {"a": torch.ones(1)}, "steps": 7}
    return {"model": raw, "ema": state | teachers, "args": argparse.Namespace(**options()), **more}


def _as_part(state: State) -> dict[str, Any]:
    """ImageFolder's ar-ckpt-last.pth."""
    generator = load_file(GENERATOR)
    return {"trainer": {"var_wo_ddp": generator, "vae_local": state}, "args": argparse.Namespace(**options())}


CONTAINERS: dict[str, tuple[str, Callable[[State], dict[str, Any]], str | None]] = {
    "imagefolder": ("best_ckpt.pt", _as_average, None),
    "imagefolder-generator": ("ar-ckpt-last.pth", _as_part, "msvr"),
    "plain": ("vae.pth", lambda state: state, None),
    "model": ("vq.pt", lambda state: {"model": state}, None),
    "module": ("vq.pt", lambda state: {"module": state}, None),
    "state-dict": ("vq.bin", lambda state: {"state_dict": state, "epoch": 3}, None),
    "ddp": ("vq.pt", lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, None),
    "compiled": ("vq.pt", lambda state: {"model": {f"_orig_mod.{name}": each for name, each in state.items()}}, None),
    "double": ("vq.pt", lambda state: {"model": {name: tensor.double() for name, tensor in state.items()}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_export(name: str, tokenizer: str, tmp_path: Path) -> None:
    file, make, kind = CONTAINERS[name]
    torch.save(make(load_file(TOKENIZER)), tmp_path / file)
    has_options = name.startswith("imagefolder")
    (tmp_path / "options.json").write_text(json.dumps(options()))
    wish = Wish(kind=kind, options=None if has_options else str(tmp_path / "options.json"))
    done = import_network(str(tmp_path / file), str(tmp_path / "out"), wish)
    assert done.card.fingerprint() == weights_of(tokenizer).fingerprint()
    assert done.card.lineage["sha256"] == storage.sha256((tmp_path / file).read_bytes())


def weights_of(uri: str) -> Any:
    from data_pipeline.shards.weights import read_card

    return read_card(uri, "tokenizer")


def test_a_hub_folder_gives_the_same_export(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    shutil.copy(TOKENIZER, tmp_path / "hub/model.safetensors")
    shutil.copy(TOKENIZER.with_name("config.json"), tmp_path / "hub/config.json")
    done = import_network(str(tmp_path / "hub"), str(tmp_path / "out"))
    assert done.card.fingerprint() == weights_of(tokenizer).fingerprint()


def test_what_was_taken_and_what_was_left_is_said(tmp_path: Path) -> None:
    torch.save(_as_average(load_file(TOKENIZER)), tmp_path / "best_ckpt.pt")
    done = import_network(str(tmp_path / "best_ckpt.pt"), str(tmp_path / "out"))
    assert done.found.startswith(f"{tmp_path}/best_ckpt.pt: ImageFolder MSVR tokenizer, ")
    assert "the moving average of its weights (ema; --raw takes those as trained)" in done.found
    assert "2 tensors of frozen teachers dropped" in done.found
    assert "left aside: model, args, optimizer, discriminator, steps" in done.found
    assert "options: in the file" in done.found
    assert done.card.lineage["weights"] == "ema"


def test_raw_takes_the_weights_as_trained(tmp_path: Path) -> None:
    torch.save(_as_average(load_file(TOKENIZER)), tmp_path / "best_ckpt.pt")
    done = import_network(str(tmp_path / "best_ckpt.pt"), str(tmp_path / "out"), Wish(raw=True))
    assert done.card.lineage["weights"] == "model"
    assert not load_file(tmp_path / "out/model.safetensors")["encoder.queries_QD"].any()


def published(folder: Path, change: Callable[[State], State] = lambda state: state) -> Path:
    """A copy of the published tokenizer with other parameters."""
    shutil.copytree(TOKENIZER.parent, folder)
    save_file(change(load_file(folder / "state.safetensors")), folder / "state.safetensors")
    return folder / "state.safetensors"


def test_options_that_are_given_stand_above_those_beside_the_file(tmp_path: Path) -> None:
    path = published(tmp_path / "published")
    (tmp_path / "other.yaml").write_text(json.dumps(options() | {"v_patch_nums": [1, 7]}))
    done = import_network(str(path), str(tmp_path / "out"), Wish(options=str(tmp_path / "other.yaml")))
    assert done.card.config["scales"] == [1, 7]
    with pytest.raises(UsageError, match=r"there is no file .*nothing\.json: --config names the published options"):
        import_network(str(path), str(tmp_path / "out2"), Wish(options=str(tmp_path / "nothing.json")))


def _without(state: State, name: str) -> State:
    return {each: tensor for each, tensor in state.items() if each != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"quant_conv.bias": torch.zeros(3)}, r"unexpected shapes: quant_conv\.bias \[3\]"),
        (lambda state: state | {"extra": torch.zeros(3)}, "parameters that are not known: extra"),
        (lambda state: _without(state, "quant_conv.bias"), r"misses: quant_conv\.bias"),
        (lambda state: state | {"quant_conv.bias": torch.full((16,), torch.inf)}, r"infinite .*: quant_conv\.bias"),
        (
            lambda _: {"a": torch.zeros(2), "b": torch.ones(1)},
            r"its 2 tensors \(a, b, …\) are those of no family .*--as",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tmp_path: Path, change: Callable[[State], State], words: str
) -> None:
    path = published(tmp_path / "published", change)
    with pytest.raises(UsageError, match=rf"state\.safetensors: .*{words}"):
        import_network(str(path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_kind_that_is_asked_for_says_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state\.safetensors: .*misses: "):
        import_network(str(GENERATOR), str(tmp_path / "out"), Wish(kind="msvr"))
    with pytest.raises(UsageError, match="there is no kind nothing: there are msvr"):
        import_network(str(TOKENIZER), str(tmp_path / "out"), Wish(kind="nothing"))


def test_a_tensor_beyond_its_bytes_is_refused(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(10**5, 10**6)
    torch.save(load_file(TOKENIZER) | {"quant_conv.bias": wide}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"a\.pt: quant_conv\.bias of shape .* is larger than its bytes"):
        import_network(str(tmp_path / "a.pt"), str(tmp_path / "out"))


def test_an_option_that_no_shape_tells_is_asked_for(tmp_path: Path) -> None:
    path = published(tmp_path / "published")
    (tmp_path / "published/config.json").unlink()
    with pytest.raises(UsageError, match=r"v_patch_nums"):
        import_network(str(path), str(tmp_path / "out"), Wish(kind="msvr"))
