"""What TiTok's masked generators computed at home: logits from some tokens and masks, with the class and without."""

from __future__ import annotations

import torch
from torch import Tensor

from model.generators.masked import MaskedGenerator
from tests.model.published.closeness import close


def check(generator: MaskedGenerator, io: dict[str, Tensor]) -> None:
    ids_BLF = io["ids"][..., None]
    close(generator.logits(ids_BLF, io["label"])[0], io["logits"])
    null_B = torch.full_like(io["label"], generator.null_class)
    close(generator.logits(ids_BLF, null_B)[0], io["logits_unconditional"])
