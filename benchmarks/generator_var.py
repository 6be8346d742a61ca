"""VAR (arXiv 2404.02905): its published network and ours. Sizes: d16 (default), or another depth."""

from __future__ import annotations

from collections.abc import Callable

import against_var
import torch
from generator_sides import Draw, Options, Pair, Side, our_loss
from torch import Tensor, nn


def build(options: Options) -> Pair:
    """Both sides of `against_var.py`.

    Raises:
        SystemExit: if the checkout or the size is none.
    """
    depth = (options.size or "d16").removeprefix("d")
    if not depth.isdecimal() or not int(depth):
        raise SystemExit(f"size {options.size}: give d and the depth, as d16")
    both = against_var.build(options.checkout, int(depth), options.batch)
    sizes: dict[str, object] = {"depth": int(depth), "parameters": sum(p.numel() for p in both.ours.parameters())}
    return Pair(
        Side(both.var, _their_loss(both), _draws(both, "var")),
        Side(
            both.ours,
            our_loss(both.ours, both.label_B, both.tokens_BL, both.our_quantizer),
            _draws(both, "ours"),
        ),
        lambda: against_var.difference(both),
        sizes,
    )


def _their_loss(both: against_var.Both) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        input_BMC = against_var.their_input(both)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLV = both.var(both.label_B, input_BMC)
            return nn.functional.cross_entropy(logits_BLV.view(-1, against_var.CODES), both.tokens_BL.view(-1))

    return loss


def _draws(both: against_var.Both, side: str) -> dict[str, Draw]:
    return {name: against_var.sampling(both, side, name == "bf16") for name in ("fp32", "bf16")}
