"""LlamaGen (arXiv 2406.06525): its published class-conditional GPT and ours. Sizes: B (default), L, XL, or tiny."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from generator_sides import Draw, Options, Pair, Side, in_precision, our_draws, our_loss
from torch import Tensor, nn

from model.config import TokenizerConfig, VectorConfig, VqganConfig
from model.generators.next_token import NextTokenGenerator
from model.protocols import SamplingPlan
from model.published.llamagen import load_generator

CODES, CLASSES, SIDE = 16384, 1000, 16
SCALE = 2.0
SIZES = {"tiny": (2, 128, 2), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (36, 1280, 20)}


def build(options: Options) -> Pair:
    """Their network with a head of its own numbers, and ours with its weights.

    Raises:
        SystemExit: if the checkout or the size is none.
    """
    if not (options.checkout / "autoregressive/models/gpt.py").is_file():
        raise SystemExit(
            f"{options.checkout}: there is no autoregressive/models/gpt.py; clone FoundationVision/LlamaGen"
        )
    if (options.size or "B") not in SIZES:
        raise SystemExit(f"size {options.size}: there are {', '.join(SIZES)}")
    sys.path.append(str(options.checkout))
    from autoregressive.models import gpt

    depth, width, heads = SIZES[options.size or "B"]
    length = SIDE**2
    sizes = {"n_layer": depth, "n_head": heads, "dim": width, "vocab_size": CODES, "block_size": length}
    theirs = gpt.Transformer(gpt.ModelArgs(**sizes, num_classes=CLASSES))
    nn.init.normal_(theirs.output.weight, std=0.02)
    ours = load_generator({"n_head": heads}, theirs.state_dict(), tokenizer())
    label_B = torch.randint(CLASSES, (options.batch,))
    tokens_BL = torch.randint(CODES, (options.batch, length))
    described: dict[str, object] = sizes | {"parameters": sum(p.numel() for p in ours.parameters())}
    return Pair(
        Side(theirs, _their_loss(theirs, label_B, tokens_BL), _their_draws(theirs, label_B, length)),
        Side(ours, our_loss(ours, label_B, tokens_BL), our_draws(ours, _our_plan(label_B, length))),
        lambda: _difference(theirs, ours, label_B, tokens_BL),
        described,
        _naive_draws(ours, label_B),
    )


def tokenizer() -> TokenizerConfig:
    """VQ-16."""
    return VqganConfig(
        image_size=16 * SIDE,
        scales=(SIDE,),
        quantizer=VectorConfig(codebook_size=CODES, code_dim=8, unit_codes=True),
    )


def _difference(theirs: Any, ours: NextTokenGenerator, label_B: Tensor, tokens_BL: Tensor) -> float:
    theirs.eval(), ours.eval()
    with torch.no_grad():
        wanted = theirs(tokens_BL[:, :-1], label_B, input_pos=torch.arange(tokens_BL.shape[1]))[0]
        found = ours.head.logits(ours.read(label_B, tokens_BL[:, :-1, None]).flatten(0, 1))[0].view_as(wanted)
    return float((found - wanted).abs().max() / wanted.abs().max())


def _their_loss(network: Any, label_B: Tensor, tokens_BL: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = network(tokens_BL[:, :-1], label_B, targets=tokens_BL)[1]
        return found

    return loss


def _their_draws(network: Any, label_B: Tensor, length: int) -> dict[str, Draw]:
    """As their samplers: weights in the precision that is asked for."""
    from autoregressive.models.generate import generate

    def draw(made: Any) -> object:
        found = generate(made, label_B, length, cfg_scale=SCALE, temperature=1.0, top_k=0, top_p=1.0)
        for block in made.layers:
            block.attention.kv_cache = None
        return found

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {name: in_precision(network, dtype, draw) for name, dtype in kinds.items()}


def _our_plan(label_B: Tensor, length: int) -> SamplingPlan:
    return SamplingPlan(label_B, torch.rand(len(label_B), length, 1), guidance=SCALE - 1)


def _naive_draws(network: NextTokenGenerator, label_B: Tensor) -> dict[str, Draw]:
    """With and without the class one after the other; keys are concatenated, and a mask is made each time."""

    def half(label_B: Tensor) -> Callable[[Tensor | None, int], Tensor]:
        keys: list[Tensor | None] = [None] * network.config.depth
        values: list[Tensor | None] = [None] * network.config.depth
        turns = network.rotation(network.layout.positions, label_B.device)
        assert turns is not None

        def turned(x: Tensor, turn: Tensor) -> Tensor:
            pairs = x.float().unflatten(-1, (-1, 2))
            first = pairs[..., 0] * turn[:, None, :, 0] - pairs[..., 1] * turn[:, None, :, 1]
            second = pairs[..., 0] * turn[:, None, :, 1] + pairs[..., 1] * turn[:, None, :, 0]
            return torch.stack((first, second), dim=-1).flatten(-2)

        def step(token_B: Tensor | None, slot: int) -> Tensor:
            x = network.class_embed(label_B)[:, None] if token_B is None else network.token_embed(token_B[:, None])
            for i, block in enumerate(network.blocks):
                attention: Any = block.attention
                normed = nn.functional.rms_norm(x, x.shape[-1:], block.norm1.weight, 1e-5)  # type: ignore[union-attr]
                q, k, v = attention.qkv(normed).unflatten(-1, (3, attention.heads, -1)).unbind(2)
                q, k = turned(q, turns[slot : slot + 1]), turned(k, turns[slot : slot + 1])
                keys[i] = k if keys[i] is None else torch.cat((keys[i], k), dim=1)  # type: ignore[arg-type]
                values[i] = v if values[i] is None else torch.cat((values[i], v), dim=1)  # type: ignore[arg-type]
                mask = torch.ones(slot + 1, slot + 1).tril()[-1:].log()
                logits = torch.einsum("blhd,bmhd->bhlm", q, keys[i]) / attention.head_dim**0.5 + mask
                mixed = torch.einsum("bhlm,bmhd->blhd", logits.softmax(-1), values[i])
                x = x + attention.proj(mixed.flatten(2))
                normed = nn.functional.rms_norm(x, x.shape[-1:], block.norm2.weight, 1e-5)  # type: ignore[union-attr]
                gate, value = block.fc1(normed).chunk(2, -1)  # type: ignore[operator]
                x = x + block.fc2(nn.functional.silu(gate) * value)  # type: ignore[operator]
            normed = nn.functional.rms_norm(x, x.shape[-1:], network.norm.weight, 1e-5)
            return nn.functional.linear(normed[:, 0], network.head.weight)

        return step

    @torch.no_grad()
    def run() -> object:
        conditional, unconditional = half(label_B), half(torch.full_like(label_B, CLASSES))
        token_B: Tensor | None = None
        drawn = []
        for slot in range(network.layout.positions):
            c, u = conditional(token_B, slot), unconditional(token_B, slot)
            token_B = torch.multinomial((u + SCALE * (c - u)).softmax(-1), 1)
            drawn.append(token_B)
        return torch.cat(drawn, dim=1)

    return {"fp32": run}
