"""Heads over the folds of a position: likelihoods, losses and draws."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config.heads import DepthHeadConfig, HeadConfig, IndependentHeadConfig
from model.generators.embedding import FoldEmbedding
from model.generators.heads import DepthHead, FoldHead, build_head
from model.layout import TokenLayout

WIDTH = 6
HEADS: dict[str, HeadConfig] = {
    "independent": IndependentHeadConfig(),
    "depth": DepthHeadConfig(depth=2, width=8, heads=2),
}
VOCABULARIES = {"one": (5,), "alike": (4, 4), "different": (3, 5, 2)}


def make(kind: str, vocabularies: tuple[int, ...], bias: bool = True) -> FoldHead:
    torch.manual_seed(3)
    head = build_head(HEADS[kind], WIDTH, TokenLayout((1,), vocabularies), bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.5)
    return head


def every_token(vocabularies: tuple[int, ...]) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, vocabularies))))


def joint(head: FoldHead, read_C: Tensor, vocabularies: tuple[int, ...]) -> Tensor:
    """The log-likelihood of every combination of tokens of one position."""
    tokens_NF = every_token(vocabularies)
    found = head(read_C.expand(len(tokens_NF), -1), tokens_NF)
    odds_N: Tensor = -found.losses_NF.sum(1)
    return odds_N


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("vocabularies", VOCABULARIES.values(), ids=VOCABULARIES)
def test_the_likelihoods_of_all_tokens_of_a_position_sum_to_one(kind: str, vocabularies: tuple[int, ...]) -> None:
    head = make(kind, vocabularies)
    with torch.no_grad():
        for read_C in torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)):
            assert joint(head, read_C, vocabularies).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_folds_depend_on_the_folds_before_them_under_a_depth_head_alone() -> None:
    read_C = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    apart = {}
    for kind in HEADS:
        with torch.no_grad():
            odds = joint(make(kind, (4, 4)), read_C, (4, 4)).exp().view(4, 4)
        apart[kind] = float((odds - odds.sum(1, keepdim=True) * odds.sum(0, keepdim=True)).abs().max())
    assert apart["independent"] < 1e-6
    assert apart["depth"] > 1e-3


def test_what_is_read_reaches_every_fold_by_itself() -> None:
    """Without blocks, which alone let a fold see another, a fold says what is read, its place and the token before."""
    head = make("depth", (4, 3, 4))
    assert isinstance(head, DepthHead)
    head.blocks = nn.ModuleList()
    read_NC = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    tokens_NF = torch.tensor([[3, 1, 0], [0, 2, 2]])
    with torch.no_grad():
        x_NFW = head.input(read_NC)[:, None] + head.place_embed
        for fold in (1, 2):
            table: Any = head.token_embed[fold - 1]
            x_NFW[:, fold] += table.weight[tokens_NF[:, fold - 1]]
        weights = torch.split(head.weight, [4, 3, 4])
        biases = torch.split(head.bias, [4, 3, 4]) if head.bias is not None else ()
        expected = [head.norm(x_NFW[:, fold]) @ weights[fold].T + biases[fold] for fold in range(3)]
        found = head.logits(read_NC, tokens_NF)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("vocabularies", VOCABULARIES.values(), ids=VOCABULARIES)
def test_losses_are_the_cross_entropy_of_the_logits(kind: str, vocabularies: tuple[int, ...]) -> None:
    head = make(kind, vocabularies)
    tokens_NF = every_token(vocabularies)[:4]
    read_NC = torch.randn(len(tokens_NF), WIDTH, requires_grad=True)
    weight_N = torch.linspace(0, 1, len(tokens_NF))
    found = head(read_NC, tokens_NF, weight_N, 0.2)
    logits = head.logits(read_NC, tokens_NF)
    plain = torch.nn.functional.cross_entropy
    pairs = list(zip(logits, tokens_NF.T, strict=True))
    torch.testing.assert_close(found.losses_NF, torch.stack([plain(x, t, reduction="none") for x, t in pairs], 1))
    smooth_NF = torch.stack([plain(x, t, reduction="none", label_smoothing=0.2) for x, t in pairs], dim=1)
    expected = (smooth_NF * weight_N[:, None]).sum() / (weight_N.sum() * len(vocabularies))
    torch.testing.assert_close(found.mean, expected)
    assert torch.equal(found.hits_NF, torch.stack([x.argmax(1) == t for x, t in pairs], dim=1))
    leaves = [read_NC, *head.parameters()]
    for actual, wanted in zip(
        torch.autograd.grad(found.mean, leaves, allow_unused=True),
        torch.autograd.grad(expected, leaves, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("vocabularies", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize("guidance", [None, 1.5])
def test_drawing_fold_after_fold_sees_the_logits_of_training(
    kind: str, vocabularies: tuple[int, ...], guidance: float | None
) -> None:
    head = make(kind, vocabularies)
    read_NC, without_NC = torch.randn(2, 7, WIDTH).unbind()
    seen: list[Tensor] = []

    def choose(logits_NV: Tensor, fold: int) -> Tensor:
        assert fold == len(seen)
        seen.append(logits_NV)
        return torch.arange(7) % logits_NV.shape[1]

    with torch.no_grad():
        drawn = head.draw(read_NC, None if guidance is None else without_NC, guidance or 0.0, choose, 0.5)
        conditional = head.logits(read_NC, drawn.tokens_NF)
        unconditional = head.logits(without_NC, drawn.tokens_NF)
    assert drawn.tokens_NF.tolist() == [[row % codes for codes in vocabularies] for row in range(7)]
    for fold, (found, c, u) in enumerate(zip(seen, conditional, unconditional, strict=True)):
        expected = 2 * (c if guidance is None else c + guidance * (c - u))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(drawn.chosen_NF[:, fold], found.gather(1, drawn.tokens_NF[:, [fold]])[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", HEADS)
def test_half_precision_gives_float32_losses_and_gradients_to_every_parameter(kind: str, dtype: torch.dtype) -> None:
    head = make(kind, (3, 5)).to(dtype)
    read_NC, tokens_NF = torch.randn(4, WIDTH), torch.tensor([[0, 4], [2, 1], [1, 0], [0, 0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        found = head(read_NC.bfloat16(), tokens_NF)
        with torch.no_grad():
            drawn = head.draw(read_NC.bfloat16(), None, 0.0, lambda logits, _: logits.argmax(-1))
    assert found.mean.dtype == found.losses_NF.dtype == drawn.chosen_NF.dtype == torch.float32
    found.mean.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_an_independent_head_has_one_matrix_and_a_bias_by_choice(bias: bool) -> None:
    head = make("independent", (3, 5), bias)
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes == {"weight": (8, WIDTH)} | ({"bias": (8,)} if bias else {})


def test_a_depth_head_says_that_it_needs_tokens() -> None:
    with pytest.raises(ValueError, match="needs the true tokens"):
        make("depth", (3, 5)).logits(torch.zeros(1, WIDTH))


def test_a_position_is_embedded_as_the_sum_of_its_folds_tables() -> None:
    embedding = FoldEmbedding(TokenLayout((2,), (3, 5)), 4, extra=1)
    assert embedding.weight.shape == (3 + 1 + 5 + 1, 4)
    tokens_BLF = torch.tensor([[[0, 0], [3, 5]]])
    rows: Any = embedding.weight
    torch.testing.assert_close(embedding(tokens_BLF)[0], torch.stack((rows[0] + rows[4], rows[3] + rows[9])))


def test_one_fold_has_the_published_table() -> None:
    embedding = FoldEmbedding(TokenLayout((2,), (6,)), 4)
    tokens_BLF = torch.tensor([[[5], [1]]])
    assert torch.equal(embedding(tokens_BLF)[0], embedding.weight[[5, 1]])
