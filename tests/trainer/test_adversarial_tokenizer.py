"""A step of a tokenizer and its discriminator: against plain torch, and however the batch is cut."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.families import build_discriminator
from model.losses.contrastive import contrastive_loss
from tests.trainer.gloo import run_gloo
from tests.trainer.toy_tokenizer import (
    ADVERSARIAL,
    LOSS,
    START,
    STEPS,
    FixedTeacher,
    Result,
    build,
    job,
    one_step,
)
from trainer.engine.batches import normalized
from trainer.stages.adversary import Adversary
from trainer.stages.tokenizer_pass import judged_of

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------- how a batch is cut


def of_samples(update: str) -> dict[str, Any]:
    """LeCam as ImageFolder has it, no adaptive weight, cross entropy."""
    lecam = {"weight": 0.5, "decay": 0.6, "of": "samples", "update": update}
    changes = {"lecam": lecam, "adaptive": False, "loss": "non-saturating", "augment": None}
    return LOSS | {"adversarial": ADVERSARIAL | changes}


LOSSES: dict[str, dict[str, Any]] = {
    "adaptive, LeCam of means": LOSS,
    "LeCam of samples, before": of_samples("before"),
    "LeCam of samples, after": of_samples("after"),
    "adversarial alone": {"adversarial": {key: ADVERSARIAL[key] for key in ("discriminator", "adaptive")}},
}
CUTS = {(1, 1), (1, 3), (2, 1), (2, 3)}
"""Workers, and micro-batches of each."""
STEP = 2


def steps(accumulations: list[int]) -> dict[tuple[str, int], Result]:
    return {(name, parts): one_step(STEP, parts, loss) for name, loss in LOSSES.items() for parts in accumulations}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], Result]:
    folder, found = tmp_path_factory.mktemp("cuts"), {}
    for world in (1, 2):
        of_first = run_gloo(world, folder, steps, [1, 3])[0]
        found |= {(name, world, parts): result for (name, parts), result in of_first.items()}
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("world", "parts"), sorted(CUTS - {(1, 1)}))
def test_terms_and_gradients_are_those_of_the_whole_batch(
    results: dict[tuple[str, int, int], Result], name: str, world: int, parts: int
) -> None:
    (terms, gradients, averages), whole = results[name, world, parts], results[name, 1, 1]
    assert terms == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
    assert averages == pytest.approx(whole[2], rel=1e-5)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, whole[1][key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert sum(float(abs(g).sum()) > 0 for g in gradients.values()) > 0.8 * len(gradients)


# ------------------------------------------------------------------------------------------------- plain torch


def contrasts(output: Any, features: dict[str, Tensor], project: Any) -> dict[str, Tensor]:
    temperature = 1 + 2 * STEP / STEPS
    branches = output.branch_BPC
    semantic = [contrastive_loss(branches[:, p], project(features["class"]), temperature) for p in range(2)]
    detail = contrastive_loss(branches[:, 0], project(features["patch"]), 1.0, True)
    return {"semantic": sum(semantic, torch.zeros(())), "detail": detail}


def plainly() -> tuple[Result, dict[str, Any]]:
    """One step by the stage, and the same by one graph in plain torch, given networks and augmentation."""
    stage = build(job(""))
    found = one_step(STEP, 1, stage=stage)
    again = build(job(""))
    network, critic, teacher = again.network, again.trainables["discriminator"].module, FixedTeacher()
    batch = again.batch(STEP)
    image = normalized(batch.pixels_BCHW)
    output = network(image, batch.drawn_B | batch.drawn, batch.seed_B)
    made, project = output.reconstruction_BCHW, network.project_teacher
    features = {"class": teacher.features(image), "patch": teacher.patch_features(image)}
    terms = {"reconstruction": (made - image).abs().mean()}
    terms["perceptual"] = (teacher.features(made) - features["class"]).square().mean()
    terms |= contrasts(output, features, project) | output.losses | network.losses_of_means(output.means)
    look = partial(again._adversary._logits_of, step=STEP)
    judged = judged_of(batch, made)
    terms["adversarial"] = -look(made, judged, 2).mean()
    similar = 0.8 * terms["reconstruction"] + 0.2 * terms["perceptual"]
    last = dict(network.named_parameters())[network.last_layer]
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (similar, terms["adversarial"])]
    weight = (0.7 * norms[0] / (norms[1] + 1e-4)).detach()
    rest = [terms[name] for name in (*output.losses, *network.losses_of_means(output.means))]
    loss = similar + weight * terms["adversarial"] + 0.5 * terms["semantic"] + 0.3 * terms["detail"] + sum(rest)
    parameters = dict(network.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()], allow_unused=True), strict=True))
    real, fake = look(image, judged, 0), look(made.detach(), judged, 1)
    hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    lecam = F.relu(real.mean()) ** 2 + F.relu(-fake.mean()) ** 2  # the averages begin at 0, and move after their use
    own = dict(critic.named_parameters())
    of_critic = torch.autograd.grad(hinge + 0.5 * lecam, [*own.values()])
    terms |= {"loss": loss, "adversarial_weight": weight, "discriminator": hinge, "lecam": lecam}
    plain = {name: float(value.detach()) for name, value in terms.items()}
    averages = [0.4 * float(real.mean()), 0.4 * float(fake.mean())]
    expected: dict[str, Any] = {"terms": plain, "averages": averages}
    for name, each in {"tokenizer": gradients, "discriminator": dict(zip(own, of_critic, strict=True))}.items():
        expected[name] = {key: None if gradient is None else gradient.numpy() for key, gradient in each.items()}
    return found, expected


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict[str, Any]]:
    return run_gloo(1, tmp_path_factory.mktemp("plain"), plainly)[0]


def test_every_term_is_what_plain_torch_computes(plain: tuple[Result, dict[str, Any]]) -> None:
    (terms, _, averages), expected = plain
    for name, value in expected["terms"].items():
        assert terms[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
        assert abs(value) > 1e-5, name
    assert averages == pytest.approx(expected["averages"], rel=1e-5)


@pytest.mark.parametrize("trainable", ["tokenizer", "discriminator"])
def test_every_gradient_is_that_of_plain_torch(plain: tuple[Result, dict[str, Any]], trainable: str) -> None:
    (_, gradients, _), expected = plain
    for name, gradient in expected[trainable].items():
        found = gradients[f"{trainable}.{name}"]
        np.testing.assert_allclose(found, 0 if gradient is None else gradient, rtol=1e-4, atol=1e-6, err_msg=name)


# --------------------------------------------------------------------------------------------- before its start


def idle(step: int) -> tuple[dict[str, float], list[str], bool]:
    """Terms, and which modules of the discriminator were called; whether it got gradients."""
    stage, called = build(job("")), list[str]()
    critic = stage.trainables["discriminator"].module
    critic.register_forward_pre_hook(lambda *_: called.append("critic"))
    terms, _, _ = one_step(step, 3, stage=stage)
    return terms, called, any(p.grad is not None for p in critic.parameters())


def idle_and_not() -> list[Any]:
    return [idle(START - 1), idle(START)]


def test_before_its_start_the_discriminator_is_never_called(tmp_path: Path) -> None:
    (before, none, gradients), (after, some, more) = run_gloo(1, tmp_path, idle_and_not)[0]
    assert (none, gradients) == ([], False)
    assert some
    assert more
    new = {"adversarial", "adversarial_weight", "discriminator", "lecam", "logits_real", "logits_made"}
    assert set(after) - set(before) == new


def test_its_schedule_begins_where_it_does() -> None:
    section: Any = job("").section
    asked = section.loss.adversarial
    network = build_discriminator(asked.discriminator, section.model.image_size, None)
    adversary = Adversary(asked, network, section.trainer, torch.device("cpu"))
    own = adversary.trainer
    assert own.steps == STEPS - START
    rates = [adversary.rate(step) for step in range(START, STEPS)]
    assert rates[0] == pytest.approx(0.005)  # the one step of warm-up
    assert rates[1] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.005)
    assert (own.betas, own.weight_decay, own.gradient_clipping) == ((0.4, 0.9), 0.02, 0.5)
