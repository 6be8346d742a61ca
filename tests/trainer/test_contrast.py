"""The semantic loss compares all images of the global batch, however that is cut up."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.config import ReadingConfig
from model.losses.contrastive import carry_gradients, contrastive_gradients, contrastive_loss
from tests.trainer.gloo import run_gloo
from tests.trainer.test_random_numbers import BATCH, FAKES, SIZE, TOKENIZER, Changes, section
from trainer.config import TokenizerLossConfig, TokenizerStageConfig
from trainer.engine.deepspeed_engine import prepare_deepspeed
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.stages import build_stage, tokenizer

pytestmark = pytest.mark.slow

STEPS = 3
INPUTS = {"images": "", "teacher": ""}
LOSS = TokenizerLossConfig.model_validate(
    {"perceptual": [{"kind": "teacher", "weight": 0.2}], "semantic": {"weight": 0.5}}
)
DAMPED = 1e-2
"""Adam's epsilon: what it adds to the gradients' size before it divides by it. With next to nothing, gradients that are
zero but for rounding would move weights as far as others."""


class FixedTeacher:
    """A frozen layer, as wide as the tokenizer's encoder."""

    def __init__(self, *_: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        self._weight_DX = torch.randn(TOKENIZER.encoder.width, 3 * SIZE**2, generator=generator) / SIZE

    def features(self, image_BCHW: Tensor) -> Tensor:
        return torch.tanh(image_BCHW.flatten(1) @ self._weight_DX.T)


class Course(NamedTuple):
    """What a few steps came to."""

    losses: list[float]
    """Averaged over ranks."""
    semantic: list[float]
    """Of rank 0 alone."""
    weights: npt.NDArray[np.float32]
    moved: float
    """Largest change of a weight from its start."""
    hits: int
    """Codes chosen, over all ranks."""
    passes: list[list[str]]
    """Modules in the order of their forward, for each forward of the last step."""


def watch(module: nn.Module, passes: list[list[str]]) -> None:
    """Add a list for each forward of the module, with the names of those inside as their turn comes."""
    module.register_forward_pre_hook(lambda *_: passes.append([]))
    for name, child in module.named_modules():
        child.register_forward_pre_hook(lambda *_, name=name: passes[-1].append(name))


def followed(job: TrainJob) -> Course:
    torch.manual_seed(job.seed)
    loop = build_loop(job, build_stage(job, torch.device("cpu")), torch.device("cpu"))
    engine = loop.engines["tokenizer"]
    for group in engine._engine.optimizer.param_groups:
        group["eps"] = DAMPED
    passes: list[list[str]] = []
    watch(engine._engine.module, passes)
    names = [name for name, _ in engine.module.named_parameters()]
    losses, semantic, begin = [], [], torch.cat([engine.whole(name).flatten() for name in names])
    for step in range(STEPS):
        passes.clear()
        terms = loop._train_step(loop.stage.batch(step)).terms
        loss = terms["loss"].clone()
        dist.all_reduce(loss)
        losses.append(float(loss) / dist.get_world_size())
        semantic.append(float(terms["semantic"]))
    end = torch.cat([engine.whole(name).flatten() for name in names])
    hits = sum(int(hits.sum()) for hits in loop.stage.state().values())
    return Course(losses, semantic, end.numpy(), float((end - begin).abs().max()), hits, passes)


def courses(folder: str, cases: list[Changes]) -> list[Course]:
    """Of the tokenizer with each change of its trainer."""
    prepare_deepspeed(torch.device("cpu"))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name, fake in FAKES:
            patch.setattr(module, name, fake)
        patch.setattr(tokenizer, "load_teacher", FixedTeacher)
        for changes in cases:
            extra = SHARDED if ("zero_stage", 3) in changes else {}
            plain = section("tokenizer", learning_rate=1e-2, extra=extra, **dict(changes))
            assert isinstance(plain, TokenizerStageConfig)
            settings = plain.model_copy(update={"loss": LOSS, "dead_code_steps": 100})
            job = TrainJob("tokenizer", folder, settings, 3, "squash", ReadingConfig(), INPUTS, {}, {})
            found.append(followed(job))
    return found


WHOLE: Changes = (("micro_batch", None),)
SHARDED: dict[str, Any] = {"zero_optimization": {"stage3_param_persistence_threshold": 60}}
"""With ZeRO 3, matrices are sharded: weights as small as these stay whole otherwise."""
BF16: Changes = (("precision", "bf16"),)
HALVES: Changes = (("micro_batch", 4),)
WORLDS: dict[int, list[Changes]] = {
    1: [WHOLE, HALVES, (("micro_batch", 2),), BF16],
    2: [
        WHOLE,
        (("micro_batch", 2),),
        (("micro_batch", 1),),
        (("micro_batch", 2), ("zero_stage", 3), ("activation_checkpointing", True)),
        (("micro_batch", 2), *BF16),
    ],
}
SPLITS = [(world, case) for world, cases in WORLDS.items() for case in cases if (world, case) != (1, WHOLE)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, Changes], list[Course]]:
    """Of each rank, by number of workers and case."""
    folder = tmp_path_factory.mktemp("courses")
    by_case: dict[tuple[int, Changes], list[Course]] = {}
    for world, cases in WORLDS.items():
        ranks = run_gloo(world, folder, courses, str(folder), cases)
        by_case |= {(world, case): list(each) for case, each in zip(cases, zip(*ranks, strict=True), strict=True)}
    return by_case


def name_of(split: tuple[int, Changes]) -> str:
    world, changes = split
    return "-".join([f"{world}-workers", *(f"{name}-{value}" for name, value in changes)])


@pytest.mark.parametrize("split", [split for split in SPLITS if not set(BF16) <= set(split[1])], ids=name_of)
def test_how_a_batch_is_split_changes_neither_losses_nor_weights(
    found: dict[tuple[int, Changes], list[Course]], split: tuple[int, Changes]
) -> None:
    [whole], ranks = found[1, WHOLE], found[split]
    assert whole.moved > 5e-3
    for each in ranks:
        assert each.losses == pytest.approx(whole.losses, rel=1e-5)
        assert each.semantic == pytest.approx(whole.semantic, rel=1e-5)
        np.testing.assert_allclose(each.weights, whole.weights, rtol=0, atol=1e-5)
        assert each.hits == whole.hits == STEPS * BATCH * TOKENIZER.layout.positions * TOKENIZER.layout.folds


def test_in_bf16_the_loss_is_over_the_global_batch_too(found: dict[tuple[int, Changes], list[Course]]) -> None:
    [whole], [first, _] = found[1, BF16], found[2, WORLDS[2][-1]]
    assert first.semantic == pytest.approx(whole.semantic, rel=1e-2)
    assert first.losses == pytest.approx(whole.losses, rel=1e-2)


def test_a_preview_is_the_begin_of_an_ordinary_pass_so_that_zero_3_can_fetch_ahead(
    found: dict[tuple[int, Changes], list[Course]],
) -> None:
    preview, other, whole, last = found[1, HALVES][0].passes
    assert preview == other
    assert whole == last
    assert whole[: len(preview)] == preview
    assert not any("decoder" in name for name in preview)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["two projections", "a shared projection"])
def test_carried_gradients_are_those_of_the_loss_itself(normalize: bool, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NC, y_NC = (torch.randn(12, 5, generator=generator, dtype=torch.float32) for _ in range(2))
    student = nn.Linear(5, 3)
    teacher = student if shared else nn.Linear(5, 3)
    weights = list({id(p): p for p in [*student.parameters(), *teacher.parameters()]}.values())
    whole = contrastive_loss(student(x_NC), teacher(y_NC), 2.0, normalize)
    expected = torch.autograd.grad(whole, weights)
    value, *gradients = contrastive_gradients(student(x_NC), teacher(y_NC), 2.0, normalize)
    parts = [torch.split(each_NC, 4) for each_NC in (x_NC, y_NC, *gradients)]
    carried = [carry_gradients(value, (student(x), s), (teacher(y), t)) for x, y, s, t in zip(*parts, strict=True)]
    assert torch.stack(carried).tolist() == [whole.tolist()] * 3
    for one, other in zip(torch.autograd.grad(torch.stack(carried).sum(), weights), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
