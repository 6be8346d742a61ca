"""RAR (arXiv 2411.00776): its published network (bytedance/1d-tokenizer) and ours. Sizes: B (default), L, XL, or tiny.

Both are trained with dropout as published, orders all random; the modulations, which begin at zero, have numbers here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from generator_sides import Draw, Options, Pair, Side, our_draws, our_loss
from torch import Tensor, nn

from model.config import MaskgitVqganConfig, TokenizerConfig, VectorConfig
from model.config.sampling import GuidanceSchedule
from model.generators.random_order import RandomOrderGenerator
from model.protocols import SamplingPlan
from model.published.rar import load_generator

CODES, CLASSES, SIDE = 1024, 1000, 16
SCALE, POWER = 16.0, 2.75
SIZES = {"tiny": (2, 128, 512), "B": (24, 768, 3072), "L": (24, 1024, 4096), "XL": (32, 1280, 5120)}
HEADS = {"tiny": 2}


def build(options: Options) -> Pair:
    """Their network with modulations that do something, and ours with its weights.

    Raises:
        SystemExit: if the checkout or the size is none.
    """
    if (options.size or "B") not in SIZES:
        raise SystemExit(f"size {options.size}: there are {', '.join(SIZES)}")
    their_code(options.checkout)
    theirs = their_network(options.size or "B")
    for block in (*theirs.blocks, theirs.adaln_before_head):
        nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.02)
    ours = load_generator({}, theirs.state_dict(), tokenizer())
    label_B = torch.randint(CLASSES, (options.batch,))
    tokens_BL = torch.randint(CODES, (options.batch, SIDE**2))
    described: dict[str, object] = _sizes(options.size or "B") | {
        "parameters": sum(p.numel() for p in ours.parameters())
    }
    return Pair(
        Side(
            theirs,
            their_loss(theirs, label_B, tokens_BL, lambda: torch.autocast("cpu", torch.bfloat16)),
            _their_draws(theirs, label_B),
        ),
        Side(ours, our_loss(ours, label_B, tokens_BL), our_draws(ours, _our_plan(label_B))),
        lambda: _difference(theirs, ours, label_B, tokens_BL),
        described,
        _naive_draws(ours, label_B),
    )


def _sizes(size: str) -> dict[str, int]:
    depth, width, hidden = SIZES[size]
    sizes = {"num_hidden_layers": depth, "hidden_size": width, "intermediate_size": hidden}
    return sizes | {
        "num_attention_heads": HEADS.get(size, 16),
        "image_seq_len": SIDE**2,
        "condition_num_classes": CLASSES,
    }


def their_network(size: str) -> Any:
    """Theirs, as it trains at first: with dropout, and all orders random. `their_code` comes first."""
    network = importlib.import_module("modeling.rar").RAR(_Config(_sizes(size) | {"dropout": 0.1, "attn_drop": 0.1}))
    network.set_random_ratio(1.0)
    return network


def their_code(checkout: Path) -> Any:
    """Their module, without what the package around it imports, of which it uses one base class.

    Raises:
        SystemExit: if it is not there.
    """
    base = checkout / "modeling/modules/base_model.py"
    if not base.is_file() or not (checkout / "modeling/rar.py").is_file():
        raise SystemExit(f"{checkout}: there is no modeling/rar.py; clone bytedance/1d-tokenizer")
    spec = importlib.util.spec_from_file_location("modeling.modules", base)
    assert spec is not None
    assert spec.loader is not None
    package = ModuleType("modeling")
    package.__path__ = [str(checkout / "modeling")]
    modules = importlib.util.module_from_spec(spec)
    sys.modules.update({"modeling": package, "modeling.modules": modules})
    spec.loader.exec_module(modules)
    return importlib.import_module("modeling.rar")


class _Config:
    """Their options, as they read them: by attribute, and some by `get`."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        generator = _Options(**sizes)
        self.model = SimpleNamespace(generator=generator, vq_model=SimpleNamespace(codebook_size=CODES))


class _Options(SimpleNamespace):
    def get(self, name: str, default: object = None) -> object:
        return getattr(self, name, default)


def tokenizer() -> TokenizerConfig:
    """MaskGIT-VQGAN."""
    return MaskgitVqganConfig(
        image_size=16 * SIDE, scales=(SIDE,), quantizer=VectorConfig(codebook_size=CODES, code_dim=256)
    )


def _difference(theirs: Any, ours: RandomOrderGenerator, label_B: Tensor, tokens_BL: Tensor) -> float:
    theirs.eval(), ours.eval()
    order_BL = torch.rand(tokens_BL.shape).argsort(1)
    with torch.no_grad():
        wanted = theirs.forward_fn(tokens_BL, theirs.preprocess_condition(label_B), orders=order_BL)
        read = ours.read(label_B, tokens_BL.gather(1, order_BL)[..., None], order_BL)
        found = ours.head.logits(read.flatten(0, 1))[0].view_as(wanted)
    return float((found - wanted).abs().max() / wanted.abs().max())


def their_loss(
    network: Any, label_B: Tensor, tokens_BL: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], Tensor]:
    """Forward under autocast, and their cross entropy."""
    condition_B = network.preprocess_condition(label_B)

    def loss() -> Tensor:
        with autocast():
            logits, labels = network(tokens_BL, condition_B, return_labels=True)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())

    return loss


def _their_draws(network: Any, label_B: Tensor) -> dict[str, Draw]:
    """In float32, as they sample; in bf16 by autocast, as their training's previews."""

    def draw(dtype: torch.dtype) -> Draw:
        def run() -> object:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                return network.generate(label_B, SCALE, 1.0, POWER)

        return run

    return {"fp32": draw(torch.float32), "bf16": draw(torch.bfloat16)}


def _our_plan(label_B: Tensor) -> SamplingPlan:
    schedule = GuidanceSchedule(kind="cosine", power=POWER)
    return SamplingPlan(label_B, torch.rand(len(label_B), SIDE**2, 1), guidance=SCALE - 1, schedule=schedule)


def _naive_draws(network: RandomOrderGenerator, label_B: Tensor) -> dict[str, Draw]:
    """All of the sequence again for each token, with the class and without, one after the other."""

    @torch.no_grad()
    def run() -> object:
        order_BL = network.scan_L.expand(len(label_B), -1)
        null_B = torch.full_like(label_B, CLASSES)
        drawn = torch.zeros(len(label_B), 0, 1, dtype=torch.int64)
        for _ in range(order_BL.shape[1]):
            read = (network.read(each_B, drawn, order_BL)[:, -1] for each_B in (label_B, null_B))
            c, u = (network.head.logits(each_BC)[0] for each_BC in read)
            token_B1 = torch.multinomial((u + SCALE * (c - u)).softmax(-1), 1)
            drawn = torch.cat((drawn, token_B1[:, None]), dim=1)
        return drawn

    return {"fp32": run} if network.config.depth < 8 else {}
