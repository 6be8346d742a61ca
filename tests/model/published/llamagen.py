"""What LlamaGen's generators computed at home: logits of each position from the class and the ids before it."""

from __future__ import annotations

import torch
from torch import Tensor

from model.generators.next_token import NextTokenGenerator
from tests.model.published.closeness import close


def check(generator: NextTokenGenerator, io: dict[str, Tensor]) -> None:
    read_BLC = generator.read(io["label"], io["ids"][:, :-1, None])
    logits = torch.nn.functional.linear(read_BLC, generator.head.weight)
    close(logits, io["logits"])
