"""Draws tokens position by position from a network of language models, with classifier-free guidance.

With guidance the second half of the rows is the first without its class; both go through the blocks together, with the
same tokens. Keys and values are written into one buffer, and nothing waits for the device between two tokens.

Shape suffixes: B images, R rows (B, or 2 B with guidance), L positions, F folds, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import NextTokenConfig
from model.generators.choosing import check_plan, chooser
from model.generators.next_token import NextTokenGenerator
from model.layers.precision import compute_dtype
from model.layers.self_attention import KeyValueCache
from model.protocols import SamplingPlan


@torch.no_grad()
def generate(network: NextTokenGenerator, plan: SamplingPlan) -> Tensor:
    """Sample the tokens of one image per condition.

    Args:
        network: in eval mode.
        plan: what to draw. Kept tokens are known to the positions that come after them.

    Returns:
        `tokens_BLF`, int64.

    Raises:
        ValueError: if shapes do not fit, or the network is in training mode.
    """
    check_plan(network, network.layout, plan)
    slots = Slots(network, plan.condition_B, guided=plan.guidance != 0)
    length, kept = network.layout.positions, plan.kept_BLF
    schedule = plan.schedule or NextTokenConfig.guidance_schedule
    drawn: list[Tensor] = []
    for position in range(length):
        read_RC = slots.read(drawn[-1] if drawn else None)
        with_class, without = read_RC.chunk(2) if slots.guided else (read_RC, None)
        choose = chooser(plan, plan.uniform_BLF[:, position], None if kept is None else kept[:, position])
        guidance = plan.guidance * schedule.share(position / max(length - 1, 1))
        drawn.append(network.head.draw(with_class, without, guidance, choose).tokens_NF)
    return torch.stack(drawn, dim=1)


class Slots:
    """Slots that are filled one after the other, with the keys and values of those before.

    Args:
        network: in eval mode; call without gradients.
        label_B: classes.
        guided: whether there is a second half of rows, without a class.
    """

    def __init__(self, network: NextTokenGenerator, label_B: Tensor, *, guided: bool) -> None:
        self.guided, self._network, self._filled = guided, network, 0
        null_B = torch.full_like(label_B, network.null_class)
        self._label_R = torch.cat((label_B, null_B)) if guided else label_B
        self._rotation = network.rotation(network.layout.positions, label_B.device)
        config = network.config
        self._cache = KeyValueCache(
            config.depth,
            len(self._label_R),
            network.layout.positions,
            config.heads,
            config.width // config.heads,
            compute_dtype(network.head.weight),
            label_B.device,
        )

    def read(self, tokens_BF: Tensor | None) -> Tensor:
        """What the head reads for the next position, [R, C].

        Args:
            tokens_BF: of the position before; None at the first.
        """
        network, span = self._network, slice(self._filled, self._filled + 1)
        if tokens_BF is None:
            x_R1C: Tensor = network.class_embed(self._label_R)[:, None]
        else:
            x_R1C = network.embedded(tokens_BF[:, None], self._filled - 1)
            x_R1C = torch.cat((x_R1C, x_R1C)) if self.guided else x_R1C
        rotation = None if self._rotation is None else self._rotation[span]
        for number, block in enumerate(network.blocks):
            x_R1C = block(x_R1C, None, rotation, self._cache.layer(number, span))
        self._filled += 1
        return network.before_head(x_R1C)[:, 0]
