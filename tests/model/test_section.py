"""A section that is given in part keeps the defaults of its place."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import ValidationError

from model.config.convolutional import MaskgitVqganConfig
from model.config.quantizers import VectorConfig
from model.config.section import Section
from model.config.titok import TiTokConfig


class Blocks(Section):
    kind: Literal["blocks"] = "blocks"
    widths: tuple[int, ...] = (128,)
    attention: bool = True


class Other(Section):
    kind: Literal["other"]
    attention: bool = True


class Network(Section):
    encoder: Blocks | Other = Blocks(attention=False)
    decoder: Blocks = Blocks()


class Run(Section):
    network: Network = Network(decoder=Blocks(widths=(64,)))


def test_what_is_not_given_is_the_default_of_the_place() -> None:
    found = Network.model_validate({"encoder": {"widths": [32]}, "decoder": {"widths": [32]}})

    assert found.encoder == Blocks(widths=(32,), attention=False)
    assert found.decoder == Blocks(widths=(32,), attention=True)


def test_what_is_given_goes_before_the_default() -> None:
    assert Network.model_validate({"encoder": {"attention": True}}).encoder.attention


def test_another_kind_has_its_own_defaults() -> None:
    assert Network.model_validate({"encoder": {"kind": "other"}}).encoder == Other(kind="other", attention=True)


def test_it_holds_in_sections_of_sections() -> None:
    found = Run.model_validate({"network": {"decoder": {"attention": False}}})

    assert found.network == Network(decoder=Blocks(widths=(64,), attention=False))


def test_what_is_no_section_is_an_error_as_ever() -> None:
    with pytest.raises(ValidationError, match="valid dictionary"):
        Run.model_validate({"network": 3})


def test_maskgits_vqgan_of_other_widths_is_still_maskgits() -> None:
    narrow = {"widths": [32, 64, 64, 64, 64]}
    found = MaskgitVqganConfig.model_validate({"encoder": narrow, "decoder": narrow})

    assert (found.encoder.attention_levels, found.encoder.middle_attention) == (0, False)
    assert found.encoder.shortcut == "branch"
    assert (found.encoder.downsampling, found.encoder.end_kernel, found.encoder.residual_bias) == ("pooled", 1, False)
    assert (found.decoder.attention_levels, found.decoder.middle_attention, found.decoder.blocks) == (0, False, (2,))


def test_titoks_codes_of_another_number_are_still_of_length_one() -> None:
    quantizer = TiTokConfig.model_validate({"quantizer": {"codebook_size": 8192}}).quantizer

    assert isinstance(quantizer, VectorConfig)
    assert (quantizer.codebook_size, quantizer.code_dim, quantizer.unit_codes) == (8192, 12, True)
