"""What VAR generators computed at home: logits from true tokens."""

from __future__ import annotations

from torch import Tensor

from model.generators.next_scale import FoldedGenerator
from tests.model.published.closeness import close


def check(generator: FoldedGenerator, io: dict[str, Tensor]) -> None:
    logits_BLFV = generator(io["label"], io["generator_input"])
    close(logits_BLFV.flatten(2), io["logits"])
