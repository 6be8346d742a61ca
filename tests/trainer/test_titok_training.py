"""TiTok's two stages end to end: a proxy's codes are learnt, then painted; and tokens outlive the second stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from data_pipeline.config import ReadingConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.weights import Card, write_weights
from model.config import MaskgitVqganConfig, TokenizerConfig, VectorConfig
from model.config.titok import PixelDecoderConfig, TiTokConfig, TiTokViTConfig
from model.families import build_tokenizer
from model.tokenizers.titok import TiTokTokenizer
from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrainerConfig, ValidationConfig
from trainer.inference.tokenizer import load_tokenizer
from trainer.job import INITIAL, PROXY, TrainJob
from trainer.planning.model_flops import sample_flops
from trainer.stages import build_stage, tokenizer
from trainer.stages.guides import Guides
from trainer.stages.tokenizer import TokenizerStage

LEVELS: dict[str, Any] = {"widths": (4, 4, 8), "norm_groups": 2}
PROXY_CONFIG = MaskgitVqganConfig(
    image_size=16,
    scales=(4,),
    encoder=MaskgitVqganConfig().encoder.model_copy(update=LEVELS),
    decoder=MaskgitVqganConfig().decoder.model_copy(update=LEVELS),
    quantizer=VectorConfig(codebook_size=32, code_dim=8, lookup="euclidean", initialization="sphere"),
)
VIT = TiTokViTConfig(width=32, depth=2, heads=4, patch_size=4)
STAGE_1 = TiTokConfig(
    image_size=16,
    latents=8,
    encoder=VIT,
    decoder=VIT,
    target="codes",
    proxy_codes=32,
    quantizer=VectorConfig(codebook_size=16, code_dim=6, lookup="euclidean", unit_codes=True, initialization="uniform"),
    pixel_decoder=PixelDecoderConfig.of(PROXY_CONFIG),
)
STAGE_2 = STAGE_1.model_copy(update={"target": "pixels"})
CPU = torch.device("cpu")


class NoImages:
    """A data set that is not read."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


class PlainEngine:
    """torch's AdamW, as an engine of one micro-batch."""

    accumulation = 1

    def __init__(self, module: nn.Module) -> None:
        self._optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()

    def accumulate(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()


def images(batch: int = 16) -> Tensor:
    """Bright and dark halves of every colour, uint8."""
    return (
        torch.rand(batch, 3, 2, 2, generator=torch.Generator().manual_seed(1))
        .mul(255)
        .byte()
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
    )


def seen(pixels_BCHW: Tensor) -> Tensor:
    return pixels_BCHW.float() / 127.5 - 1


@pytest.fixture
def proxy(tmp_path: Path) -> tuple[str, Card]:
    torch.manual_seed(3)
    return export(str(tmp_path / "proxy"), PROXY_CONFIG, cast("nn.Module", build_tokenizer(PROXY_CONFIG)))


def export(uri: str, config: TokenizerConfig, module: nn.Module, average: bool = False) -> tuple[str, Card]:
    """Commit a tokenizer; with a moving average, that is the module, and the weights are others."""
    state = module.state_dict()
    files = {"model": {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "ema": state}
    files = files if average else {"model": state}
    made = write_weights(uri, "tokenizer", config.model_dump(mode="json"), files, {}, halves=halves_of(module))
    return uri, made


def stage_of(model: TiTokConfig, folder: Path, inputs: dict[str, tuple[str, str]]) -> TokenizerStage:
    """The stage as a worker builds it, from inputs and their fingerprints."""
    section = TokenizerStageConfig(
        model=model, loss=TokenizerLossConfig(), trainer=TrainerConfig(steps=9, global_batch=16)
    )
    uris, lineage = ({name: pair[at] for name, pair in inputs.items()} for at in (0, 1))
    job = TrainJob("tokenizer", str(folder), section, 0, "squash", ReadingConfig(), uris, lineage, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "open_images", NoImages)
        patch.setattr(tokenizer, "ImageBatches", NoImages)
        torch.manual_seed(4)
        return cast("TokenizerStage", build_stage(job, CPU))


def train(stage: TokenizerStage, steps: int) -> list[dict[str, float]]:
    """The terms of each step."""
    module = stage.trainables[stage.exported].module.train()
    engines = cast("Any", {stage.exported: PlainEngine(module)})
    batch = dataclasses.replace(stage.blank_batch(16), pixels_BCHW=images(), seed_B=torch.arange(16))
    found = []
    for _ in range(steps):
        terms = stage.step([batch], engines, 3e-3)
        found.append({name: float(terms[name]) for name in terms})
    module.eval()
    return found


@pytest.mark.slow
def test_a_proxys_codes_are_learnt_then_painted_and_tokens_stay_valid(tmp_path: Path, proxy: tuple[str, Card]) -> None:
    uri, card = proxy
    first = stage_of(STAGE_1, tmp_path / "first", {PROXY: (uri, card.fingerprint())})
    module = cast("TiTokTokenizer", first.network)
    teacher = load_tokenizer(uri)
    painter = {name: tensor.clone() for name, tensor in module.state_dict().items() if name.startswith("pixel_")}
    assert torch.equal(painter["pixel_codebook.codebook"], teacher.network.codebook)
    for name, tensor in teacher.network.decoder.state_dict().items():
        assert torch.equal(painter[f"pixel_decoder.{name}"], tensor)

    terms = train(first, 40)
    assert terms[0].keys() >= {"loss", "codes", "codebook", "commitment"}
    assert terms[0]["loss"] == pytest.approx(sum(terms[0][name] for name in ("codes", "codebook", "commitment")))
    assert terms[-1]["codes"] < 0.8 * terms[0]["codes"]
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in painter.items())

    uri_1, card_1 = export(str(tmp_path / "first/export"), STAGE_1, module, average=True)
    second = stage_of(STAGE_2, tmp_path / "second", {INITIAL: (uri_1, card_1.fingerprint())})
    painted = cast("TiTokTokenizer", second.network)
    assert all(torch.equal(tensor, painted.state_dict()[name]) for name, tensor in module.state_dict().items())
    terms = train(second, 8)
    assert terms[0].keys() >= {"loss", "reconstruction"}
    assert "codes" not in terms[0]
    assert "codebook" not in terms[0]
    assert terms[-1]["reconstruction"] < terms[0]["reconstruction"]

    uri_2, card_2 = export(str(tmp_path / "second/export"), STAGE_2, painted)
    assert card_2.encoder() == card_1.encoder()
    before, after = load_tokenizer(uri_1), load_tokenizer(uri_2)
    tokens = before.encode(images())
    assert tokens.shape == (16, 8, 1)
    assert (after.encode(images()) == tokens).all()
    shown = after.decode(tokens, output="torch")
    assert shown.shape == (16, 3, 16, 16)
    error = (after.network.detokenize(torch.from_numpy(tokens)) - seen(images())).square().mean()
    assert float(error) < terms[0]["reconstruction"]


def test_a_step_of_stage_1_learns_what_the_proxy_says_of_the_same_images(
    tmp_path: Path, proxy: tuple[str, Card]
) -> None:
    uri, card = proxy
    stage = stage_of(STAGE_1, tmp_path, {PROXY: (uri, card.fingerprint())})
    given: list[Tensor] = []
    module = stage.trainables[stage.exported].module
    module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]["proxy_BK"]))
    train(stage, 1)
    assert torch.equal(given[0], load_tokenizer(uri).network.tokenize(seen(images()))[..., 0])
    assert len(given[0].unique()) > 1


def test_a_proxy_that_was_replaced_during_the_start_is_refused(tmp_path: Path, proxy: tuple[str, Card]) -> None:
    with pytest.raises(UsageError, match=r"inputs.proxy: the tokenizer at .*proxy was replaced"):
        stage_of(STAGE_1, tmp_path, {PROXY: (proxy[0], "0" * 64)})


def test_images_are_asked_for_only_where_there_are_any() -> None:
    """Of losses while codes are learnt, and of validation without anything to paint codes with."""
    trainer = TrainerConfig(steps=2, global_batch=2)
    distance: Any = {"perceptual": [{"kind": "teacher", "weight": 1.0}]}
    with pytest.raises(ValidationError, match="learns codes: leave them out"):
        TokenizerStageConfig(model=STAGE_1, loss=distance, trainer=trainer)
    TokenizerStageConfig(model=STAGE_2, loss=distance, trainer=trainer)
    blind = STAGE_1.model_copy(update={"pixel_decoder": None})
    TokenizerStageConfig(model=STAGE_1, validation=ValidationConfig(), trainer=trainer)
    with pytest.raises(ValidationError, match=r"give model\.pixel_decoder, or set validation to null"):
        TokenizerStageConfig(model=blind, validation=ValidationConfig(), trainer=trainer)


def test_without_a_proxy_a_blank_batch_has_codes_in_place_of_its_own() -> None:
    config = TokenizerStageConfig(
        model=STAGE_1, loss=TokenizerLossConfig(), trainer=TrainerConfig(steps=2, global_batch=2)
    )
    stage = TokenizerStage.without_data(config, build_tokenizer(STAGE_1), Guides(config.loss, None), CPU)
    assert stage.blank_batch(2).drawn_B["proxy_BK"].shape == (2, 16)


@pytest.mark.parametrize(
    ("proxy_change", "change", "message"),
    [
        ({"image_size": 32, "scales": (8,)}, {}, "the proxy sees images of 32 px, and image_size is 16"),
        ({}, {"proxy_codes": 64}, "gives an image 16 positions .* 32 codes, and the decoder predicts 16 .* 64 codes"),
        ({}, {"decoder": VIT.model_copy(update={"patch_size": 8})}, "the decoder predicts 4 positions"),
        (
            {"decoder": PROXY_CONFIG.decoder.model_copy(update={"widths": (4, 8, 8)})},
            {},
            r"pixel_decoder has other sizes .*widths \(4, 4, 8\) -> \(4, 8, 8\)",
        ),
    ],
)
def test_a_tokenizer_that_is_no_proxy_is_refused_with_what_differs(
    proxy_change: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    STAGE_1.check_proxy(PROXY_CONFIG)
    with pytest.raises(ValueError, match=message):
        STAGE_1.model_copy(update=change).check_proxy(PROXY_CONFIG.model_copy(update=proxy_change))


@pytest.mark.slow
def test_the_operations_of_a_sample_count_its_proxy() -> None:
    section = TokenizerStageConfig(model=STAGE_1, trainer=TrainerConfig(steps=2, global_batch=2)).model_dump(
        mode="json"
    )
    model = STAGE_1.model_dump(mode="json")
    alone = sample_flops("tokenizer", section, model, None)
    with_proxy = sample_flops("tokenizer", section, model, None, PROXY_CONFIG.model_dump(mode="json"))
    assert with_proxy > alone > 0
