"""TiTok's masked generators (arXiv 2406.07550, bytedance/1d-tokenizer) and ours.

Sizes: B-64 (BERT, the default), L-32, S-128 (U-ViT), or small-bert and small-uvit. BERT is the one of `transformers`;
where that is not installed, the one of bert_encoder.py. Sampling is 8 steps with the release's guidance and noise.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from bert_encoder import in_place_of_transformers
from generator_sides import Draw, Options, Pair, Side, our_draws, our_loss
from torch import Tensor

from model.config import GuidanceSchedule, TokenizerConfig
from model.config.masked import MaskedOptions
from model.config.titok import TiTokConfig
from model.generators.masked import MaskedGenerator
from model.protocols import SamplingPlan
from model.published.maskgit import load_bert, load_uvit

CLASSES, STEPS = 1000, 8


class Size(NamedTuple):
    """Of a network, and the release's guidance scale and noise."""

    kind: str
    depth: int
    width: int
    heads: int
    tokens: int
    codes: int
    guidance: float
    noise: float


SIZES = {
    "L-32": Size("bert", 24, 768, 16, 32, 4096, 4.5, 9.5),
    "B-64": Size("bert", 24, 768, 16, 64, 4096, 3.0, 11.0),
    "S-128": Size("uvit", 20, 1024, 16, 128, 4096, 6.9, 2.8),
    "small-bert": Size("bert", 6, 384, 8, 64, 4096, 3.0, 11.0),
    "small-uvit": Size("uvit", 6, 512, 8, 128, 4096, 6.9, 2.8),
}


def build(options: Options) -> Pair:
    """Their network, and ours with its weights.

    Raises:
        SystemExit: if the checkout or the size is none.
    """
    if not (options.checkout / "modeling/maskgit.py").is_file():
        raise SystemExit(f"{options.checkout}: there is no modeling/maskgit.py; clone bytedance/1d-tokenizer")
    if (options.size or "B-64") not in SIZES:
        raise SystemExit(f"size {options.size}: there are {', '.join(SIZES)}")
    size = SIZES[options.size or "B-64"]
    sys.path.append(str(options.checkout))
    installed = importlib.util.find_spec("transformers") is not None
    theirs = their_network(size)
    load = load_bert if size.kind == "bert" else load_uvit
    given = {"model": {"generator": {"num_attention_heads": size.heads}}}
    ours = load(given, theirs.state_dict(), _tokenizer(size))
    label_B = torch.randint(CLASSES, (options.batch,))
    tokens_BL = torch.randint(size.codes, (options.batch, size.tokens))
    described: dict[str, object] = size._asdict() | {"parameters": sum(p.numel() for p in ours.parameters())}
    described |= {"bert": "transformers" if installed else "bert_encoder.py"} if size.kind == "bert" else {}
    return Pair(
        Side(theirs, their_loss(theirs, label_B, tokens_BL, half), _their_draws(theirs, label_B, size)),
        Side(ours, our_loss(ours, label_B, tokens_BL), our_draws(ours, _our_plan(label_B, size))),
        lambda: _difference(theirs, ours, label_B, tokens_BL),
        described,
        _naive_draws(ours, label_B, size),
    )


def their_network(size: Size) -> Any:
    """Theirs, on BERT's encoder of `transformers` or the one beside this file. The checkout is on the path."""
    if "transformers" not in sys.modules and importlib.util.find_spec("transformers") is None:
        sys.modules["transformers"] = in_place_of_transformers()
    from modeling import maskgit

    generator = {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "dropout": 0.1,
        "attn_drop": 0.1,
        "image_seq_len": size.tokens,
        "condition_num_classes": CLASSES,
    }
    made = maskgit.ImageBert if size.kind == "bert" else maskgit.UViTBert
    return made({"model": {"vq_model": {"codebook_size": size.codes}, "generator": generator}})


def _tokenizer(size: Size) -> TokenizerConfig:
    quantizer = {"kind": "vq", "codebook_size": size.codes, "code_dim": 12}
    return TiTokConfig.model_validate({"latents": size.tokens, "quantizer": quantizer})


def _difference(theirs: Any, ours: MaskedGenerator, label_B: Tensor, tokens_BL: Tensor) -> float:
    theirs.eval(), ours.eval()
    with torch.no_grad():
        ids_BL = tokens_BL.masked_fill(torch.rand(tokens_BL.shape) < 0.5, ours.mask_ids[0])
        wanted = theirs(ids_BL, label_B.clone(), cond_drop_prob=0.0)
        found = ours.logits(ids_BL[..., None], label_B)[0]
    return float((found - wanted).abs().max() / wanted.abs().max())


def their_loss(
    network: Any, label_B: Tensor, tokens_BL: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], Tensor]:
    """As scripts/train_maskgit.py: masks, forward and the published loss under autocast."""
    from modeling.modules.losses import MLMLoss
    from omegaconf import OmegaConf

    settings = {"losses": {"label_smoothing": 0.1, "loss_weight_unmasked_token": 0.1}}
    criterion = MLMLoss(OmegaConf.create(settings))

    def loss() -> Tensor:
        with autocast():
            ids_BL, masked_BL = network.masking_input_tokens(tokens_BL)
            found: Tensor = criterion(network(ids_BL, label_B.clone(), cond_drop_prob=0.1), tokens_BL, masked_BL)[0]
        return found

    return loss


def half() -> AbstractContextManager[Any]:
    """Products in bf16, on the CPU."""
    return torch.autocast("cpu", torch.bfloat16)


def their_draw(network: Any, label_B: Tensor, size: Size) -> Draw:
    """The release's sampler."""
    decay = "linear" if size.kind == "bert" else "power-cosine"
    how = {"randomize_temperature": size.noise, "softmax_temperature_annealing": True, "num_sample_steps": STEPS}

    return lambda: network.generate(label_B, guidance_scale=size.guidance, guidance_decay=decay, **how)


def _their_draws(network: Any, label_B: Tensor, size: Size) -> dict[str, Draw]:
    """It has float32 alone; under autocast it is ours to compare with."""
    draw = their_draw(network, label_B, size)

    def in_half() -> object:
        with half():
            return draw()

    return {"fp32": draw, "bf16": in_half}


def _our_plan(label_B: Tensor, size: Size) -> SamplingPlan:
    linear = size.kind == "bert"
    return SamplingPlan(
        label_B,
        torch.rand(len(label_B), size.tokens, 1),
        guidance=size.guidance if linear else size.guidance - 1,
        schedule=GuidanceSchedule(kind="linear") if linear else GuidanceSchedule(kind="cosine", power=3),
        seed_B=torch.arange(len(label_B)),
        order=MaskedOptions(steps=STEPS, choice_temperature=size.noise),
    )


def _naive_draws(network: MaskedGenerator, label_B: Tensor, size: Size) -> dict[str, Draw]:
    """Two passes, logits of all positions, and Gumbel noise for every code."""
    plan, mask = _our_plan(label_B, size), network.mask_ids[0]

    def noise(like: Tensor) -> Tensor:
        return -torch.log(-torch.log(torch.rand_like(like).clamp(min=1e-20)).clamp(min=1e-20))

    @torch.no_grad()
    def run() -> object:
        network.eval()
        ids_BL, options = torch.full((len(label_B), size.tokens), mask), plan.order
        assert isinstance(options, MaskedOptions)
        assert plan.schedule is not None
        for step, left in enumerate(options.counts(size.tokens)[1:]):
            ahead = 1 - (step + 1) / STEPS
            c = network.logits(ids_BL[..., None], label_B)[0]
            u = network.logits(ids_BL[..., None], torch.full_like(label_B, CLASSES))[0]
            logits = (c + plan.guidance * plan.schedule.share(step / STEPS) * (c - u)) / (0.5 + 0.8 * ahead)
            tokens = (logits + size.noise * ahead * noise(logits)).argmax(-1)
            is_masked = ids_BL == mask
            sure = logits.gather(-1, tokens[..., None])[..., 0].masked_fill(~is_masked, torch.inf)
            again = (sure + size.noise * ahead * noise(sure)).argsort(-1)[:, :left]
            ids_BL = torch.where(is_masked, tokens, ids_BL).scatter(1, again, mask)
        return ids_BL

    return {"fp32": run}
