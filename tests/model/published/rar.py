"""What RAR computed at home: logits of every slot behind the first, for orders of each sample's own."""

from __future__ import annotations

import torch
from torch import Tensor

from model.generators.random_order import RandomOrderGenerator
from tests.model.published.closeness import close


def check(generator: RandomOrderGenerator, io: dict[str, Tensor]) -> None:
    ordered_BL = io["ids"].gather(1, io["orders"])
    assert torch.equal(ordered_BL, io["targets"])
    read_BLC = generator.read(io["label"], ordered_BL[..., None], io["orders"])
    (logits_NV,) = generator.head.logits(read_BLC.flatten(0, 1))
    close(logits_NV.view(io["logits"].shape), io["logits"])
    # What a loss reads: the same, without the slot of the last token.
    (shorter_NV,) = generator.head.logits(
        generator.read(io["label"], ordered_BL[:, :-1, None], io["orders"]).flatten(0, 1)
    )
    close(shorter_NV.view(len(ordered_BL), ordered_BL.shape[1], -1), io["logits"][:, :-1])
