"""Published models, shrunk, compute here what they computed at home, once `import-weights` has read them.

Reads the folders of tests/parity, and of FOLDTRAIN_PARITY_DIR where that is set: config.json, state.safetensors and
io.safetensors each. Nothing here knows a size: names and shapes come from the folders.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.shards.tokenizers import load_tokenizer as load_exported
from data_pipeline.tokens.importing.networks import Wish, import_network
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.protocols import Generator, Tokenizer
from model.published.families import FAMILIES, find_family
from model.published.imagefolder import load_tokenizer, published_name
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.model.published.checks import CHECKS
from tests.model.published.stand_in import stand_in
from trainer.networks import load_generator

HERE = Path(__file__).parents[1] / "parity"
GIVEN = os.environ.get("FOLDTRAIN_PARITY_DIR")


def folders(directory: Path) -> list[Path]:
    """The models of a directory; the directory itself, which fails, if it holds none."""
    return sorted(path.parent for path in directory.glob("*/config.json")) or [directory]


CASES = [pytest.param(folder, id=f"here-{folder.name}") for folder in folders(HERE)]
CASES += [pytest.param(folder, id=folder.name) for folder in (folders(Path(GIVEN)) if GIVEN else [])]


@pytest.mark.parametrize("folder", CASES)
def test_a_published_model_computes_what_it_computed_at_home(folder: Path, tmp_path: Path) -> None:
    name, network = _imported(folder, tmp_path)
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        CHECKS[name](network, io)


def test_every_family_has_a_check() -> None:
    assert set(CHECKS) == {family.name for family in FAMILIES}


def _imported(folder: Path, place: Path) -> tuple[str, Tokenizer | Generator]:
    """The name of a model's family, and its export, read again."""
    output = str(place / folder.name)
    spoken = _spoken(folder, place)
    card = import_network(str(folder / "state.safetensors"), output, Wish(tokenizer=spoken)).card
    cpu, name = torch.device("cpu"), str(card.lineage["imported"])
    return name, load_exported(output, cpu)[0] if card.kind == "tokenizer" else load_generator(output, True, cpu)[0]


def _spoken(folder: Path, place: Path) -> str | None:
    """Of a generator: the export of the tokenizer whose tokens it predicts, or of one that stands for it."""
    options = json.loads((folder / "config.json").read_text())
    name = options.get("tokenizer")
    if name is None:
        return stand_in(folder, options, load_file(folder / "state.safetensors"), place)
    _imported(folder.parent / str(name), place)
    return str(place / str(name))


VIT = ViTConfig(width=24, depth=1, heads=2)


def _published(shared: int, branches: int = 2) -> ImageFolderTokenizer:
    torch.manual_seed(shared)
    config = ImageFolderConfig(
        image_size=20,
        patch_size=4,
        encoder=VIT,
        decoder=ViTConfig(width=16, depth=2, heads=2, layer_scale=None),
        branches=branches,
        scales=(1, 2, 3),
        quantizer=VectorConfig(codebook_size=32, code_dim=6),
        shared_residual_convs=shared,
    )
    return ImageFolderTokenizer(config).eval()


def _state(tokenizer: ImageFolderTokenizer) -> dict[str, Tensor]:
    state = {published_name(name, tokenizer.config): tensor for name, tensor in tokenizer.state_dict().items()}
    state["quant_conv.weight"] = state["quant_conv.weight"][:, :, None, None]
    state["encoder.latent_tokens"] = state["encoder.latent_tokens"][None]
    return {**state, "encoder.lvl1LC": torch.zeros(1, 3), "semantic_model.cls_token": torch.zeros(1)}


def _options(tokenizer: ImageFolderTokenizer) -> dict[str, object]:
    scales = list(tokenizer.config.scales)
    return {
        "v_patch_nums": scales,
        "share_quant_resi": tokenizer.config.shared_residual_convs,
        "vit": {"num_heads": 2},
    }


@pytest.mark.parametrize(("shared", "branches"), [(0, 2), (1, 3), (2, 1), (4, 2)])
def test_sizes_come_from_the_state_and_weights_survive(shared: int, branches: int) -> None:
    tokenizer = _published(shared, branches)
    loaded = load_tokenizer(_options(tokenizer), _state(tokenizer))
    image_BCHW = torch.rand(2, 3, 20, 20) * 2 - 1
    tokens_BLF = tokenizer.tokenize(image_BCHW)
    assert torch.equal(loaded.tokenize(image_BCHW), tokens_BLF)
    assert torch.equal(loaded.detokenize(tokens_BLF), tokenizer.detokenize(tokens_BLF))


def test_a_missing_parameter_is_named() -> None:
    tokenizer = _published(2)
    state = _state(tokenizer)
    del state["quantizes.1.quant_resi.qresi_ls.0.bias"]
    with pytest.raises(ValueError, match=r"misses: quantizes\.1\.quant_resi\.qresi_ls\.0\.bias$"):
        load_tokenizer(_options(tokenizer), state)


def test_an_unknown_parameter_is_named() -> None:
    tokenizer = _published(2)
    with pytest.raises(ValueError, match=r"not known: decoder\.extra$"):
        load_tokenizer(_options(tokenizer), {**_state(tokenizer), "decoder.extra": torch.zeros(1)})


def test_a_parameter_of_another_shape_is_named() -> None:
    tokenizer = _published(2)
    state = {**_state(tokenizer), "decoder.mask_token": torch.zeros(1, 1, 17)}
    with pytest.raises(
        ValueError, match=r"unexpected shapes: decoder\.mask_token \[1, 1, 17\], which should hold \[16\]$"
    ):
        load_tokenizer(_options(tokenizer), state)


@pytest.mark.parametrize("gone", ["encoder.lvl_embed.weight", "encoder.model.pos_embed", "decoder.model.pos_embed"])
def test_what_is_no_vit_that_shares_its_positions_is_of_no_imagefolder_family(gone: str) -> None:
    tokenizer = _published(1)
    state = _state(tokenizer)
    assert find_family({}, state) is not None
    del state[gone]
    assert find_family({}, state) is None
