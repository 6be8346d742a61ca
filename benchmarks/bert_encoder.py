"""BERT's encoder by its published names, for benchmarks where the package `transformers` is not installed.

It is what `transformers` computes: post-norm layers, dropout, and torch's scaled_dot_product_attention.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Output(nn.Module):
    def __init__(self, read: int, config: SimpleNamespace) -> None:
        super().__init__()
        self.dense = nn.Linear(read, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + x)
        return out


class _Attention(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.hidden_size
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = _Output(width, config)
        self.heads, self.rate = config.num_attention_heads, config.attention_probs_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.self[n](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate if self.training else 0.0)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2), x)
        return out


class _Layer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = _Output(config.intermediate_size, config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        out: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return out


class _Embeddings(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings(torch.arange(ids.shape[1], device=ids.device)) + self.token_type_embeddings(
            torch.zeros_like(ids)
        )
        out: Tensor = self.dropout(self.LayerNorm(self.word_embeddings(ids) + places))
        return out


class _BertModel(nn.Module):
    def __init__(self, config: SimpleNamespace, add_pooling_layer: bool = True) -> None:
        super().__init__()
        assert not add_pooling_layer
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def post_init(self) -> None:
        """Weights as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        x = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x)
        return (x,)


def in_place_of_transformers() -> ModuleType:
    """A module that has the names which the published code imports."""
    module = ModuleType("transformers")
    module.BertConfig = SimpleNamespace  # type: ignore[attr-defined]
    module.BertModel = _BertModel  # type: ignore[attr-defined]
    return module
