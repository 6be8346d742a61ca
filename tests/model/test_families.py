"""The registry of families, and what each may say of tokens."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
from pydantic import ValidationError

from model import families
from model.config import GeneratorConfig, ImageFolderConfig, NextScaleConfig, TokenizerConfig, VectorConfig, registered
from model.config.registered import choice_of
from model.families import GeneratorFamily, TokenizerFamily
from model.layout import TokenLayout
from trainer.config import GeneratorStageConfig, TokenizerStageConfig

TRAINER = {"steps": 1, "global_batch": 1}


def load(monkeypatch: pytest.MonkeyPatch, *found: Any) -> tuple[families.Family, ...]:
    points = [EntryPoint(f"point{number}", "somewhere:FAMILY", families.GROUP) for number in range(len(found))]
    monkeypatch.setattr(EntryPoint, "load", lambda point: found[int(point.name[5:])])
    monkeypatch.setattr(registered, "entry_points", lambda group: points)
    return families.families.__wrapped__()


def test_a_config_without_a_kind_is_of_todays() -> None:
    tokenizer = TokenizerStageConfig.model_validate({"model": {}, "loss": {}, "trainer": TRAINER})
    generator = GeneratorStageConfig.model_validate({"model": {}, "trainer": TRAINER})
    assert isinstance(tokenizer.model, ImageFolderConfig)
    assert isinstance(generator.model, NextScaleConfig)
    assert tokenizer.model_dump(mode="json")["model"]["kind"] == "imagefolder"


def test_a_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="next-scale"):
        GeneratorStageConfig.model_validate({"model": {"kind": "nextscale"}, "trainer": TRAINER})


def test_what_is_no_family_is_refused_with_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"entry point point0 = somewhere:FAMILY of .* is no family"):
        load(monkeypatch, "a string")


def test_two_families_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="next-scale is there already"):
        load(monkeypatch, GeneratorFamily(NextScaleConfig, "somewhere:Network"))


def test_a_tokenizer_and_a_generator_may_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same(GeneratorConfig):
        kind: str = "imagefolder"

    assert len(load(monkeypatch, GeneratorFamily(Same, "somewhere:Network"))) == len(families._OWN) + 1


def test_a_choice_of_several_kinds_takes_the_first_without_one() -> None:
    from pydantic import TypeAdapter

    class Other(TokenizerConfig):
        kind: str = "other"
        size: int = 3

    adapter: TypeAdapter[Any] = TypeAdapter(choice_of([ImageFolderConfig, Other]))
    assert isinstance(adapter.validate_python({}), ImageFolderConfig)
    assert adapter.validate_python({"kind": "other", "size": 5}).size == 5
    assert isinstance(adapter.validate_python(Other()), Other)
    with pytest.raises(ValidationError, match="'imagefolder', 'other'"):
        adapter.validate_python({"kind": "third"})


REFUSED = {
    "gives none": (TokenLayout((1, 4), (8, 8)), None),
    "one scale of 256 positions": (TokenLayout((256,), (8, 8)), 8),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_next_scale_says_why_it_cannot_predict_such_tokens(reason: str) -> None:
    layout, width = REFUSED[reason]
    with pytest.raises(ValueError, match=reason):
        families.build_generator(NextScaleConfig(num_classes=2, depth=1, width=8, heads=1), layout, width)


def test_sums_come_from_the_part_of_a_tokenizer_that_its_family_names() -> None:
    config = ImageFolderConfig(scales=(1, 2), quantizer=VectorConfig(codebook_size=8, code_dim=4), dropout_min_scales=1)
    tokenizer: Any = families.build_tokenizer(config)
    assert families.forcing_of(tokenizer) is tokenizer.quantizer
    assert families.tokenizer_families()["imagefolder"] == TokenizerFamily(
        ImageFolderConfig,
        "model.tokenizers.imagefolder:ImageFolderTokenizer",
        "model.quantizers.multi_scale:FoldedQuantizer",
        "quantizer.",
    )
    assert tokenizer.quantizer.width == config.forcing_width == 8
