"""Heads: from what a network says of a position to the tokens of its folds.

    independent   read ── linear ── logits of every fold
    depth         read ──┬─ + place 0 ─────────────┐
                         ├─ + place 1 + token 0 ───┼─ causal blocks over the folds ── linear of each fold ── logits
                         └─ + place 2 + token 1 ───┘

Shape suffixes: N positions of a batch, F folds, V codes of a fold, K codes of all folds, C channels of what is read,
W channels within the depth head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config.heads import DepthHeadConfig, HeadConfig, head_families
from model.config.registered import named
from model.generators.embedding import FoldEmbedding
from model.layers.linear import Linear, linear
from model.layers.precision import compute_dtype
from model.layers.self_attention import KeyValueCache, LayerCache, SelfAttention
from model.layers.visibility import GroupCausal
from model.layout import TokenLayout
from model.losses.tokens import TokenLosses, linear_cross_entropy

Choose = Callable[[Tensor, int], Tensor]
"""Logits [N, V] of a fold, float32, and which fold it is -> tokens [N], int64."""


class Drawn(NamedTuple):
    """Tokens of some positions."""

    tokens_NF: Tensor
    """int64."""
    chosen_NF: Tensor
    """The logit of each token drawn: guided and divided by the temperature, float32."""


class FoldHead(nn.Module):
    """What all heads are. Logits come from one matrix, the folds one after the other: `weight`, and `bias` if asked.

    What it reads has the dtype of the products; logits and losses are float32.

    Args:
        width: channels that the matrix reads.
        layout: of the tokens.
        bias: whether there is one.
    """

    def __init__(self, width: int, layout: TokenLayout, bias: bool) -> None:
        super().__init__()
        self.vocabularies = list(layout.vocabularies)
        self.weight = nn.Parameter(torch.empty(sum(layout.vocabularies), width))
        self.bias = nn.Parameter(torch.zeros(len(self.weight))) if bias else None
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, read_NC: Tensor, tokens_NF: Tensor, weight_N: Tensor | None = None, smoothing: float = 0.0
    ) -> TokenLosses:
        """Cross entropy of true tokens; never more than LOGITS_AT_ONCE logits at a time.

        Args:
            read_NC: what the network says of each position.
            tokens_NF: ids.
            weight_N: of each position in the mean; None for all the same.
            smoothing: of labels.
        """
        raise NotImplementedError

    def logits(self, read_NC: Tensor, tokens_NF: Tensor | None = None) -> list[Tensor]:
        """Logits [N, V] of each fold, given the true tokens of the folds before it, float32.

        Raises:
            ValueError: if this head needs tokens, and there are none.
        """
        raise NotImplementedError

    def draw(
        self,
        read_NC: Tensor,
        without_NC: Tensor | None,
        guidance: float,
        choose: Choose,
        temperature: float = 1.0,
    ) -> Drawn:
        """Draw the tokens of each position. Call without gradients.

        Args:
            read_NC: what the network says of each position.
            without_NC: the same without the class; None for no guidance.
            guidance: logits are c + guidance * (c - u).
            choose: from logits to tokens.
            temperature: what logits are divided by before that.
        """
        raise NotImplementedError

    def _parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each fold."""
        weights = torch.split(self.weight, self.vocabularies)
        if self.bias is None:
            return [(weight, None) for weight in weights]
        return list(zip(weights, torch.split(self.bias, self.vocabularies), strict=True))


class IndependentHead(FoldHead):
    """One linear layer: the folds of a position are independent given what is read."""

    def __init__(self, config: HeadConfig, width: int, layout: TokenLayout, bias: bool) -> None:  # noqa: ARG002
        super().__init__(width, layout, bias)

    def forward(
        self, read_NC: Tensor, tokens_NF: Tensor, weight_N: Tensor | None = None, smoothing: float = 0.0
    ) -> TokenLosses:
        """All folds at once."""
        return linear_cross_entropy(
            read_NC,
            self.weight,
            self.bias,
            tokens_NF,
            vocabularies=self.vocabularies,
            weight_N=weight_N,
            smoothing=smoothing,
        )

    def logits(self, read_NC: Tensor, tokens_NF: Tensor | None = None) -> list[Tensor]:  # noqa: ARG002
        """Tokens are not needed."""
        logits_NK = linear(read_NC, self.weight, self.bias)
        return [logits_NV.float() for logits_NV in torch.split(logits_NK, self.vocabularies, dim=1)]

    def draw(
        self,
        read_NC: Tensor,
        without_NC: Tensor | None,
        guidance: float,
        choose: Choose,
        temperature: float = 1.0,
    ) -> Drawn:
        """As the layer is linear, what it reads is guided in place of what it says."""
        if without_NC is not None:
            read_NC = torch.lerp(without_NC.float(), read_NC.float(), 1 + guidance).to(read_NC.dtype)
        return _drawn(self.logits(read_NC), choose, temperature)


class DepthHead(FoldHead):
    """A small transformer over the folds of a position, after RQ-Transformer's (arXiv 2203.01941, section 3.2).

    Every fold sees what is read and the tokens of the folds before it, each by a table of its own. What is read is
    added at every fold, and not at the first alone (docs/decisions.md).
    """

    def __init__(self, config: HeadConfig, width: int, layout: TokenLayout, bias: bool) -> None:
        assert isinstance(config, DepthHeadConfig)
        super().__init__(config.width, layout, bias)
        self.config = config
        self.input = Linear(width, config.width)
        self.place_embed = nn.Parameter(torch.empty(layout.folds, config.width))
        self.token_embed = nn.ModuleList(
            FoldEmbedding(TokenLayout((1,), (codes,)), config.width) for codes in layout.vocabularies[:-1]
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.place_embed, std=0.02)

    def forward(
        self, read_NC: Tensor, tokens_NF: Tensor, weight_N: Tensor | None = None, smoothing: float = 0.0
    ) -> TokenLosses:
        """The mean over the folds of the cross entropy of each, given those before it."""
        said_NFW = self._said(read_NC, tokens_NF)
        folds = [
            linear_cross_entropy(said_NW, weight, bias, tokens_N1, weight_N=weight_N, smoothing=smoothing)
            for said_NW, (weight, bias), tokens_N1 in zip(
                said_NFW.unbind(1), self._parts(), torch.split(tokens_NF, 1, dim=1), strict=True
            )
        ]
        means, losses, hits = zip(*folds, strict=True)
        return TokenLosses(torch.stack(means).mean(), torch.cat(losses, dim=1), torch.cat(hits, dim=1))

    def logits(self, read_NC: Tensor, tokens_NF: Tensor | None = None) -> list[Tensor]:
        """Of each fold given the true tokens before it."""
        if tokens_NF is None:
            raise ValueError("a depth head needs the true tokens: each fold is predicted from those before it")
        said = self._said(read_NC, tokens_NF).unbind(1)
        return [linear(said_NW, *part).float() for said_NW, part in zip(said, self._parts(), strict=True)]

    def draw(
        self,
        read_NC: Tensor,
        without_NC: Tensor | None,
        guidance: float,
        choose: Choose,
        temperature: float = 1.0,
    ) -> Drawn:
        """Fold after fold; with guidance both halves go through the blocks together, with the same tokens."""
        read_NW = self.input(read_NC if without_NC is None else torch.cat((read_NC, without_NC)))
        config, folds = self.config, len(self.vocabularies)
        cache = KeyValueCache(
            config.depth,
            len(read_NW),
            folds,
            config.heads,
            config.width // config.heads,
            compute_dtype(self.weight),
            read_NW.device,
        )
        drawn: list[Drawn] = []
        for fold, part in enumerate(self._parts()):
            x_N1W = read_NW[:, None] + self.place_embed[fold]
            if drawn:
                before_N1 = drawn[-1].tokens_NF.repeat(len(read_NW) // len(read_NC), 1)
                x_N1W = x_N1W + self.token_embed[fold - 1](before_N1[..., None])
            for index, block in enumerate(self.blocks):
                x_N1W = block(x_N1W, None, cache.layer(index, slice(fold, fold + 1)))
            logits_NV = linear(self._normed(x_N1W)[:, 0], *part).float()
            if without_NC is not None:
                conditional, unconditional = logits_NV.chunk(2)
                logits_NV = torch.lerp(unconditional, conditional, 1 + guidance)
            drawn.append(_drawn([logits_NV], lambda logits, _, fold=fold: choose(logits, fold), temperature))  # type: ignore[misc]
        return Drawn(*(torch.cat(parts, dim=1) for parts in zip(*drawn, strict=True)))

    def _said(self, read_NC: Tensor, tokens_NF: Tensor) -> Tensor:
        """What the last layer reads, [N, F, W], in the dtype of the products."""
        x_NFW = self.input(read_NC)[:, None] + self.place_embed
        if x_NFW.shape[1] > 1:
            pairs = zip(self.token_embed, tokens_NF.long().unbind(1), strict=False)
            before = [table(tokens_N[:, None, None]) for table, tokens_N in pairs]
            x_NFW = x_NFW + F.pad(torch.cat(before, dim=1), (0, 0, 1, 0))
        groups = GroupCausal.next_token(x_NFW.shape[1])
        for block in self.blocks:
            x_NFW = block(x_NFW, groups)
        return self._normed(x_NFW)

    def _normed(self, x_NFW: Tensor) -> Tensor:
        return cast("Tensor", self.norm(x_NFW)).to(compute_dtype(self.weight))


class _Block(nn.Module):
    """Attention over the folds and an MLP, each behind a norm."""

    def __init__(self, config: DepthHeadConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.fc1 = Linear(config.width, 4 * config.width)
        self.fc2 = Linear(4 * config.width, config.width)

    def forward(self, x_NFW: Tensor, groups: GroupCausal | None, cache: LayerCache | None = None) -> Tensor:
        dtype = compute_dtype(self.fc1.weight)
        x_NFW = x_NFW + self.attention(self.norm1(x_NFW).to(dtype), groups, cache=cache)
        hidden = F.gelu(self.fc1(self.norm2(x_NFW).to(dtype)), approximate="tanh")
        return x_NFW + cast("Tensor", self.fc2(hidden))


def build_head(config: HeadConfig, width: int, layout: TokenLayout, bias: bool = True) -> FoldHead:
    """A head of the config's kind, with new weights.

    Args:
        config: of it.
        width: channels of what it reads.
        layout: of the tokens, whose folds may have different vocabularies.
        bias: whether logits have one.
    """
    return cast("FoldHead", named(head_families()[config.kind].network)(config, width, layout, bias))


def _drawn(logits: list[Tensor], choose: Choose, temperature: float) -> Drawn:
    """Tokens and their logits, of logits that are guided."""
    if temperature != 1:
        logits = [logits_NV / temperature for logits_NV in logits]
    tokens_NF = torch.stack([choose(logits_NV, fold) for fold, logits_NV in enumerate(logits)], dim=1)
    chosen = [logits_NV.gather(1, tokens_NF[:, fold, None]) for fold, logits_NV in enumerate(logits)]
    return Drawn(tokens_NF, torch.cat(chosen, dim=1))
