"""Images are functions of weights, seed and number; mixing networks is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.halves import halves_of
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.config import SamplingConfig
from trainer.evaluation.sampler import Sampler

VIT = ViTConfig(width=16, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=8,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
    dropout_min_scales=1,
)
GENERATOR = NextScaleConfig(num_classes=3, depth=1, width=16, heads=2)


GENERATOR_TOKENS = {"layout": TOKENIZER.layout.to_json(), "forcing_width": TOKENIZER.forcing_width}


@pytest.fixture
def networks(tmp_path: Path) -> tuple[str, str]:
    """URIs of a generator and its tokenizer, with random weights."""
    torch.manual_seed(0)
    tokenizer = ImageFolderTokenizer(TOKENIZER)
    uri = str(tmp_path / "tokenizer")
    config = TOKENIZER.model_dump(mode="json")
    state, halves = {"model": tokenizer.state_dict()}, halves_of(tokenizer)
    card = weights.write_weights(uri, "tokenizer", config, state, {}, halves=halves)
    generator = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
    torch.nn.init.normal_(generator.head.weight)
    both = {"generator": GENERATOR.model_dump(mode="json"), **GENERATOR_TOKENS}
    lineage = {"tokenizer": card.encoder()}
    weights.write_weights(str(tmp_path / "generator"), "generator", both, {"model": generator.state_dict()}, lineage)
    return str(tmp_path / "generator"), uri


def sampler(networks: tuple[str, str], seed: int = 0, **sampling: object) -> Sampler:
    config = SamplingConfig.model_validate({"guidance": 1.0} | sampling)
    return Sampler.load(*networks, config, seed, torch.device("cpu"))


def test_an_image_does_not_depend_on_the_batch_that_it_is_drawn_in(networks: tuple[str, str]) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    whole, parts = (torch.cat(list(sampler(networks, batch=batch).draw(labels))) for batch in (5, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_another_seed_gives_other_images(networks: tuple[str, str]) -> None:
    labels = torch.tensor([0, 1, 2])
    first, second = (torch.cat(list(sampler(networks, seed=seed).draw(labels))) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_class_that_the_generator_does_not_know_is_refused(networks: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"\[7\] are not among the generator's classes 0 to 2"):
        sampler(networks, classes=(0, 7)).classes()


def test_a_generator_is_refused_with_another_tokenizer(networks: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = ImageFolderTokenizer(TOKENIZER).state_dict()
    weights.write_weights(networks[1], "tokenizer", TOKENIZER.model_dump(mode="json"), {"model": other}, {})
    with pytest.raises(UsageError, match="was trained on tokens of tokenizer"):
        sampler(networks)


@pytest.mark.parametrize(("part", "valid"), [("decoder", True), ("from_latent", True), ("quantizer", False)])
def test_a_generator_goes_on_with_another_decoder_and_with_no_other_change(
    networks: tuple[str, str], part: str, valid: bool
) -> None:
    before = sampler(networks)
    labels = torch.tensor([0, 1, 2])
    images = torch.cat(list(before.draw(labels)))
    other = ImageFolderTokenizer(TOKENIZER)
    other.load_state_dict(before.tokenizer.state_dict())
    with torch.no_grad():
        for parameter in other.get_submodule(part).parameters():
            parameter += torch.randn_like(parameter)
    config, halves = TOKENIZER.model_dump(mode="json"), halves_of(other)
    weights.write_weights(networks[1], "tokenizer", config, {"model": other.state_dict()}, {}, halves=halves)
    if not valid:
        with pytest.raises(UsageError, match="was trained on tokens of tokenizer"):
            sampler(networks)
        return
    drawn = torch.cat(list(sampler(networks).draw(labels)))
    assert drawn.isfinite().all()
    assert not torch.equal(drawn, images)


def test_weights_that_were_changed_after_their_card_are_refused(networks: tuple[str, str]) -> None:
    path = Path(networks[0], "model.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        sampler(networks)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"groups": [1, 2**40], "vocabularies": [16, 16]}, "a layout has at most"),
        ({"groups": [1, 4]}, "a layout has groups and vocabularies"),
        ({"groups": [1, 4], "vocabularies": [16, 16], "scales": [1, 2]}, "a layout has groups and vocabularies"),
    ],
)
def test_a_layout_of_a_card_that_cannot_be_is_named(
    networks: tuple[str, str], layout: dict[str, object], reason: str
) -> None:
    path = Path(networks[0], "card.json")
    card = json.loads(path.read_text())
    card["config"]["layout"] = layout
    path.write_text(json.dumps(card))
    with pytest.raises(UsageError, match=rf"card\.json has a config that cannot be \(layout: {reason}"):
        sampler(networks)
