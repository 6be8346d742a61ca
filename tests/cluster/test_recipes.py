"""The recipes that come with foldtrain have the sizes, tokens and schedules of what was published."""

from __future__ import annotations

import math
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.stages.planning import stage_configs
from data_pipeline.images.crop_kinds import ADM_RANDOM, VAR_RANDOM, AnyCrop, ResizeRandomCrop
from model.families import build_discriminator, build_tokenizer
from trainer.config import TokenizerStageConfig, TrainerConfig
from trainer.engine.schedule import learning_rate
from trainer.planning.blank_stages import blank_stage, one_rank
from trainer.planning.fake_device import fake_device
from trainer.stages.adversary import own_trainer

FOLDER = Path(str(resources.files("configs")))
RECIPES = sorted(path.stem for path in FOLDER.glob("tokenizer/*.yaml"))
ROWS = [f"row-{number}" for number in range(1, 9)]
EPOCH = 1251


@cache
def recipe(name: str) -> RunConfig:
    return load_config(FOLDER / ("ablation" if name in ROWS else "tokenizer") / f"{name}.yaml")


def stage(name: str) -> TokenizerStageConfig:
    found = recipe(name).tokenizer
    assert found is not None
    return found


@cache
def blank(name: str) -> nn.Module:
    """The recipe's tokenizer without weights."""
    with torch.device("meta"):
        return cast("nn.Module", build_tokenizer(stage(name).model.without_pretraining()))


def critic(name: str) -> TrainerConfig:
    """How the recipe's discriminator is optimized."""
    section = stage(name)
    assert section.loss.adversarial is not None
    return own_trainer(section.loss.adversarial, section.trainer)


def count(name: str, *, trained: bool = False) -> int:
    return sum(weight.numel() for weight in blank(name).parameters() if weight.requires_grad or not trained)


PUBLISHED = {
    "imagefolder-msvr10p2-4096": 172.33e6,
    "titok-s-128-stage1": 83.67e6,
    "titok-s-128-stage2": 83.67e6,
    "titok-b-64-stage1": 204.81e6,
    "titok-b-64-stage2": 204.81e6,
    "titok-l-32-stage1": 641.05e6,
    "titok-l-32-stage2": 641.05e6,
    "titok-bl-64": 390.02e6,
    "titok-sl-256": 330.26e6,
    "titok-512-l-64-stage1": 644.3e6,
    "titok-512-l-64-stage2": 644.3e6,
}
"""Parameters, to 0.1 %."""
EXACT = {
    "llamagen-vq-16": 71_883_403,
    "llamagen-vq-8": 70_109_835,
    "var-vqvae": 108_948_355,
    "maskgit-vqgan": 23_775_104 + 30_478_339 + 1024 * 256,
}
TRAINED = {"titok-s-128-stage2": 57.74e6, "titok-b-64-stage2": 118.81e6, "titok-l-32-stage2": 337.56e6}
"""Of them trained, in stage 2."""


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_a_recipe_has_the_published_number_of_parameters(name: str, parameters: float) -> None:
    assert count(name) == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize(("name", "parameters"), EXACT.items())
def test_a_convolutional_recipe_has_the_published_parameters_to_the_last(name: str, parameters: int) -> None:
    assert count(name) == parameters


@pytest.mark.parametrize(("name", "parameters"), TRAINED.items())
def test_stage_2_trains_the_decoder_and_the_pixel_decoder(name: str, parameters: float) -> None:
    assert count(name, trained=True) == pytest.approx(parameters, rel=1e-3)


# ImageFolder's tokenizers differ from MSVR10P2-4096 by these parameters (specs/imagefolder.md, 1.1: widths 768 and 32).
CONVOLUTIONS = 2 * 4 * (9 * 32 * 32 + 32)
"""Of the residual scales: four of each of two branches."""


def codes(number: int, width: int, branches: int) -> int:
    """Parameters of codebooks and of the two projections around them."""
    return branches * number * width + (768 * width + width) + (branches * width * 768 + 768)


QUERIES = {11: 121 * 768, 16: 256 * 768}
"""Latent queries of a branch, by the side of its grid."""
LEVEL = 768
"""Level embedding of a branch in the encoder."""


def beside_vits(branches: int, grid: int, of_codes: int, convolutions: int) -> int:
    return branches * (QUERIES[grid] + LEVEL) + of_codes + convolutions


BASE = beside_vits(2, 11, codes(4096, 32, 2), CONVOLUTIONS)
BY_ARITHMETIC = {
    "imagefolder-msvr10p2-8192": beside_vits(2, 11, codes(8192, 32, 2), CONVOLUTIONS),
    "imagefolder-msvr10p2-16384": beside_vits(2, 11, codes(16384, 32, 2), CONVOLUTIONS),
    "imagefolder-vp2-4096": beside_vits(2, 16, codes(4096, 32, 2), 0),
    "imagefolder-vp2-16384": beside_vits(2, 16, codes(16384, 32, 2), 0),
    "imagefolder-vq-4096": beside_vits(1, 16, codes(4096, 64, 1), 0),
    "imagefolder-vq-8192": beside_vits(1, 16, codes(8192, 32, 1), 0),
    "imagefolder-msbr10p2-4096": beside_vits(2, 11, codes(0, 12, 2), 2 * 4 * (9 * 12 * 12 + 12)),
    "imagefolder-msbr10p2-16384": beside_vits(2, 11, codes(0, 14, 2), 2 * 4 * (9 * 14 * 14 + 14)),
    "row-3": beside_vits(1, 11, codes(4096, 32, 1), CONVOLUTIONS // 2),
    "row-1": beside_vits(1, 16, codes(4096, 32, 1), CONVOLUTIONS // 2),
}
"""Parameters beside the two ViTs, which all of them share with the reference model."""


@pytest.mark.parametrize(("name", "parameters"), BY_ARITHMETIC.items())
def test_a_recipe_of_imagefolder_differs_from_the_reference_by_codes_queries_and_convolutions(
    name: str, parameters: int
) -> None:
    assert count(name) - count("imagefolder-msvr10p2-4096") == parameters - BASE


@pytest.mark.parametrize("latents", [("titok-bl-128", "titok-bl-64", 64), ("titok-512-b-128-stage1", "", 0)])
def test_more_latents_are_as_many_more_rows_of_tokens_and_positions(latents: tuple[str, str, int]) -> None:
    name, other, more = latents
    if other:
        assert count(name) - count(other) == more * (2 * 768 + 1024)
    else:  # 128 latents, 256 patches of 32 px in, 1024 of 16 px out, in place of 64, 256 of 16 px and 256
        of_16 = count("titok-b-64-stage1")
        assert count(name) - of_16 == 64 * 3 * 768 + 3 * (32**2 - 16**2) * 768 + (1024 - 256) * 768


TWO_STAGES = {"s-128": 128, "b-64": 64, "l-32": 32, "512-l-64": 64, "512-b-128": 128}
TOKENS = {
    **{f"imagefolder-msvr10p2-{size}": (286, (size, size)) for size in (4096, 8192, 16384)},
    **{f"imagefolder-msbr10p2-{size}": (286, (size, size)) for size in (4096, 16384)},
    **{f"imagefolder-vp2-{size}": (256, (size, size)) for size in (4096, 16384)},
    **{f"imagefolder-vq-{size}": (256, (size,)) for size in (4096, 8192)},
    **{f"titok-{name}-stage{number}": (latents, (4096,)) for name, latents in TWO_STAGES.items() for number in (1, 2)},
    **{name: (int(name.rpartition("-")[2]), (8192,)) for name in ("titok-bl-64", "titok-bl-128", "titok-sl-256")},
    "imagefolder-robusttok": (256, (4096,)),
    "llamagen-vq-16": (256, (16384,)),
    "llamagen-vq-8": (1024, (16384,)),
    "var-vqvae": (680, (4096,)),
    "maskgit-vqgan": (256, (1024,)),
}
"""Positions, and codes of each fold."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_tokens(name: str) -> None:
    layout = stage(name).model.layout
    assert (layout.positions, layout.vocabularies) == TOKENS[name]


IMAGEFOLDER = [name for name in RECIPES if name.startswith("imagefolder")]


@pytest.mark.parametrize("name", [*IMAGEFOLDER, *ROWS])
def test_imagefolders_rate_moves_once_an_epoch_as_published(name: str) -> None:
    """Epoch 0 at 1e-5, then 5e-5 + (2.4e-4 - 5e-5) (1 + cos(pi e / 200)) / 2: 2.12e-4, 1.45e-4 and 7.8e-5."""
    trainer = stage(name).trainer
    assert trainer.steps == 200 * EPOCH
    assert learning_rate(trainer, 0) == pytest.approx(1e-5, rel=1e-5)
    for epoch, printed in ((50, 2.12e-4), (100, 1.45e-4), (150, 7.8e-5)):
        expected = 5e-5 + 0.5 * 1.9e-4 * (1 + math.cos(math.pi * epoch / 200))
        first, last = (learning_rate(trainer, step) for step in (epoch * EPOCH, epoch * EPOCH + EPOCH - 1))
        assert first == last == pytest.approx(expected, rel=1e-6)
        assert first == pytest.approx(printed, rel=5e-3)


@pytest.mark.parametrize(("name", "start"), [("imagefolder-msvr10p2-4096", 56), ("imagefolder-msbr10p2-4096", 64)])
def test_imagefolders_discriminator_has_its_own_schedule_from_its_start(name: str, start: int) -> None:
    """1e-5 in its first epoch, 2.1e-4, 4.05e-4, 6.0e-4 and 8.0e-4 in the next four, then a cosine to 5e-5."""
    adversarial, trainer = stage(name).loss.adversarial, critic(name)
    assert adversarial is not None
    assert adversarial.start == start * EPOCH
    rates = [learning_rate(trainer, epoch * EPOCH) for epoch in range(200 - start)]
    assert rates[:5] == pytest.approx([1e-5, 2.1e-4, 4.05e-4, 6.0e-4, 8.0e-4], rel=1.5e-2)
    cosine = [5e-5 + 0.5 * 7.5e-4 * (1 + math.cos(math.pi * epoch / (200 - start))) for epoch in range(5, 200 - start)]
    assert rates[5:] == pytest.approx(cosine, rel=1e-6)


def published(step: int, steps: int, warmup: int) -> float:
    """TiTok's rate: a line to 1e-4, then a cosine to 1e-5."""
    if step < warmup:
        return 1e-4 * step / warmup
    return 1e-5 + 9e-5 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


TITOK = {
    **{name: (1_000_000, 10_000) for name in RECIPES if name.startswith("titok") and name.endswith("stage1")},
    **{name: (500_000, 5_000) for name in RECIPES if name.startswith("titok") and name.endswith("stage2")},
    **dict.fromkeys(("titok-bl-64", "titok-bl-128", "titok-sl-256"), (1_000_000, 10_000)),
}


@pytest.mark.parametrize("name", TITOK)
def test_titoks_rate_warms_up_and_ends_at_a_tenth_as_published(name: str) -> None:
    (steps, warmup), trainer = TITOK[name], stage(name).trainer
    assert (trainer.steps, trainer.global_batch) == (steps, 256)
    for step in (warmup // 2, warmup, steps // 4, steps // 2, steps - 1):
        # Ours begins with a first step that is not zero, and is at its end at the last step and not behind it.
        assert learning_rate(trainer, step) == pytest.approx(published(step, steps, warmup), rel=2e-4)
    assert trainer.betas == (0.9, 0.99 if name.endswith("stage1") else 0.999)
    assert (trainer.weight_decay, trainer.gradient_clipping, trainer.ema_decay) == (1e-4, 1.0, 0.999)
    assert trainer.ema_warmup


@pytest.mark.parametrize(
    ("name", "start", "weight"), [("titok-s-128-stage2", 20_000, 0.01), ("titok-bl-64", 200_000, 0.1)]
)
def test_titoks_discriminator_begins_its_own_warm_up_late(name: str, start: int, weight: float) -> None:
    (steps, warmup), adversarial, trainer = TITOK[name], stage(name).loss.adversarial, critic(name)
    assert adversarial is not None
    assert (adversarial.start, adversarial.weight, adversarial.adaptive) == (start, weight, False)
    for step in (warmup // 2, (steps - start) // 2, steps - start - 1):
        assert learning_rate(trainer, step) == pytest.approx(published(step, steps - start, warmup), rel=2e-4)
    assert (trainer.betas, trainer.weight_decay, trainer.gradient_clipping) == ((0.9, 0.999), 1e-4, 1.0)


@pytest.mark.parametrize("name", ["llamagen-vq-16", "llamagen-vq-8", "var-vqvae", "maskgit-vqgan"])
def test_convolutional_tokenizers_and_their_discriminators_have_a_constant_rate(name: str) -> None:
    for trainer in (stage(name).trainer, critic(name)):
        assert [learning_rate(trainer, step) for step in (0, 1000, trainer.steps - 1)] == [1e-4] * 3


@pytest.mark.parametrize(
    ("begin", "crop"),
    [
        ("imagefolder", ADM_RANDOM),
        ("llamagen", ADM_RANDOM),
        ("var", VAR_RANDOM),
        ("titok", ResizeRandomCrop(short=1.0, filter="bicubic")),
    ],
)
def test_a_recipe_has_the_published_crop_and_mirrors_half(begin: str, crop: AnyCrop) -> None:
    for name in RECIPES:
        if name.startswith(begin):
            assert recipe(name).data.reading.crop == crop
            assert stage(name).horizontal_flip


def test_the_reference_models_generator_sees_random_crops_as_vars() -> None:
    views = recipe("imagefolder-msvr10p2-4096").tokens.views
    assert views == tuple(f"random_var_{number}" for number in range(10))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llamagen-vq-16", 2_765_633), ("titok-s-128-stage2", 1_909_889), ("titok-bl-64", 1_909_889)],
)
def test_a_recipes_discriminator_has_the_published_parameters(name: str, parameters: int) -> None:
    section = stage(name)
    assert section.loss.adversarial is not None
    with torch.device("meta"):
        network = build_discriminator(section.loss.adversarial.discriminator, section.model.image_size)
    assert sum(weight.numel() for weight in cast("nn.Module", network).parameters()) == parameters


def differing(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two sections, by dotted path."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(one.keys() | other.keys()):
            found |= differing(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        return found
    return {} if one == other else {path: (one, other)}


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        (2, {"model.quantizer_dropout"}),
        (3, {"model.scales"}),
        (4, {"model.branches"}),
        (5, {"loss.semantic"}),
        (6, {"loss.semantic.branches"}),
        (7, {"loss.adversarial.augment", *(f"loss.adversarial.discriminator.{key}" for key in ("kind",))}),
        (8, {f"loss.adversarial.{key}" for key in ("lecam", "start", "warmup_steps", "warmup_rate", "weight_decay")}),
    ],
)
def test_each_row_of_the_ablation_adds_one_thing(row: int, changed: set[str]) -> None:
    before, after = (stage(f"row-{number}").model_dump(mode="json") for number in (row - 1, row))
    found = set(differing(before, after))
    assert changed <= found
    beside = {path for path in found - changed if not path.startswith("loss.adversarial.discriminator.")}
    assert not beside


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        (2, ("model.quantizer_dropout",)),
        (
            3,
            (
                "model.scales",
                *(f"model.{half}.{key}" for half in ("encoder", "decoder") for key in ("widths", "blocks")),
            ),
        ),
        (4, ("model.branches",)),
        (5, ("loss.semantic",)),
        (6, ("loss.semantic.branches",)),
        (7, ("loss.adversarial",)),
        (8, ("loss.adversarial.augment", "loss.adversarial.discriminator")),
        (9, ("loss.adversarial.lecam",)),
    ],
)
def test_each_row_of_the_small_ablation_adds_one_thing_and_their_generators_are_alike(
    row: int, changed: tuple[str, ...]
) -> None:
    before, after = (load_config(FOLDER / "ablation-small" / f"row-{number}.yaml") for number in (row - 1, row))
    found = differing(*(config.model_dump(mode="json") for config in (before, after)))
    changes = [path.removeprefix("tokenizer.") for path in found if path != "run"]
    assert [name for name in changed if not any(f"{path}.".startswith(f"{name}.") for path in changes)] == []
    assert [path for path in changes if not path.startswith(changed)] == []


def test_the_last_row_is_the_reference_model() -> None:
    assert stage("row-8") == stage("imagefolder-msvr10p2-4096")


def test_a_row_without_a_semantic_loss_has_no_teacher() -> None:
    for number, name in enumerate(ROWS, 1):
        assert (recipe(name).teacher is not None) == (number >= 5)


PAGE = (FOLDER.parent / "docs" / "tokenizers.md").read_text()


def row(name: str) -> str:
    layout = stage(name).model.layout
    tokens = f"{layout.positions}" if layout.folds == 1 else f"{layout.positions} × {layout.folds}"
    bits = layout.positions * sum(math.log2(codes) for codes in layout.vocabularies)
    millions = (f"{count(name, trained=trained) / 1e6:.2f}" for trained in (False, True))
    return f"| `{name}` | {' | '.join(millions)} | {tokens} | {layout.vocabularies[0]:,} | {bits:,.0f} |"


def test_the_table_of_recipes_is_true_and_whole() -> None:
    found = [line for line in PAGE.splitlines() if re.match(r"\| `[\w-]+` \| [\d.]+ \|", line)]
    assert found == [row(name) for name in RECIPES]


EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split(":")[0].split(",")[0].strip("# "))
def test_an_example_of_the_page_loads_and_can_be_built(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    section = load_config(tmp_path / "mine.yaml").tokenizer
    assert section is not None
    with torch.device("meta"):
        build_tokenizer(section.model)


def test_the_page_has_an_example_of_each_kind_but_the_proxy() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("var-vqvae", {"tokenizer": 108_948_355, "discriminator": 2_765_633}),
        ("titok-s-128-stage2", {"tokenizer": 83_674_639, "discriminator": 1_909_889}),
    ],
)
def test_a_recipe_is_planned_with_all_of_its_networks_and_without_their_files(
    name: str, parameters: dict[str, int]
) -> None:
    with one_rank(), fake_device("cuda", torch.bfloat16) as fake:
        built = blank_stage("train-tokenizer", stage_configs(recipe(name), "train-tokenizer"), fake).stage
        found = {key: sum(p.numel() for p in each.module.parameters()) for key, each in built.trainables.items()}
    assert found == parameters
