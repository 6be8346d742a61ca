"""Draws tokens position by position from a network that has learned orders, with classifier-free guidance.

With guidance the second half of the batch is the first without its class; both go through the blocks together. Where
positions stand and where the next one belongs is one table here, and nothing waits for the device between two tokens.

Shape suffixes: B images, R rows (B, or 2 B with guidance), L positions, F folds, C channels, K new slots.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from model.config.random_order import RandomOrderConfig, RandomOrderOptions
from model.generators.choosing import check_plan, chooser
from model.generators.random_order import PREFIX, RandomOrderGenerator
from model.generators.scans import random_orders
from model.layers.precision import compute_dtype
from model.layers.self_attention import KeyValueCache
from model.layers.visibility import GroupCausal
from model.protocols import SamplingPlan


@torch.no_grad()
def generate(network: RandomOrderGenerator, plan: SamplingPlan) -> Tensor:
    """Sample the tokens of one image per condition.

    Args:
        network: in eval mode.
        plan: what to draw. Kept tokens are known to the positions that come after them in the order.

    Returns:
        `tokens_BLF`, int64.

    Raises:
        ValueError: if shapes do not fit, seeds are missing, or the network is in training mode.
    """
    check_plan(network, network.layout, plan)
    order_BL = _orders(network, plan)
    places_BLF = order_BL[..., None].expand_as(plan.uniform_BLF)
    uniform_BLF = plan.uniform_BLF.gather(1, places_BLF)
    kept_BLF = None if plan.kept_BLF is None else plan.kept_BLF.gather(1, places_BLF)
    slots = Slots(network, plan.condition_B, order_BL, guided=plan.guidance != 0)
    length = network.layout.positions
    schedule = plan.schedule or RandomOrderConfig.guidance_schedule
    drawn: list[Tensor] = []
    for number in range(length):
        read_RC = slots.read(drawn[-1] if drawn else None)
        with_class, without = read_RC.chunk(2) if slots.guided else (read_RC, None)
        choose = chooser(plan, uniform_BLF[:, number], None if kept_BLF is None else kept_BLF[:, number])
        guidance = plan.guidance * schedule.share(number / length)
        drawn.append(network.head.draw(with_class, without, guidance, choose).tokens_NF)
    ordered_BLF = torch.stack(drawn, dim=1)
    return torch.empty_like(ordered_BLF).scatter_(1, places_BLF, ordered_BLF)


class Slots:
    """Slots that are filled one after the other, with the keys and values of those before.

    Args:
        network: in eval mode; call without gradients.
        label_B: classes.
        order_BL: of the positions.
        guided: whether there is a second half of rows, without a class.
    """

    def __init__(self, network: RandomOrderGenerator, label_B: Tensor, order_BL: Tensor, *, guided: bool) -> None:
        self.guided, self._network, self._filled = guided, network, 0
        config = network.config
        batch, length = order_BL.shape
        # All images without a class have the same modulation: it is computed once.
        null = torch.full_like(label_B[:1], network.null_class)
        self._label = torch.cat((label_B, null)) if guided else label_B
        self._images = batch
        self._start_RC = network.class_embed(self._rows(self._label)).float()
        self._places_BSC = network.places(order_BL, length - 1)
        rows, head_dim = (2 * batch if guided else batch), config.width // config.heads
        self._cache = KeyValueCache(
            len(network.blocks),
            rows,
            length + PREFIX - 1,
            config.heads,
            head_dim,
            compute_dtype(network.final_adaln.weight),
            label_B.device,
        )

    def read(self, tokens_BF: Tensor | None) -> Tensor:
        """What the head reads for the next position, [R, C].

        Args:
            tokens_BF: of the position before; None at the first.
        """
        network = self._network
        x_RKC = self._embedded(tokens_BF)
        span = slice(self._filled, self._filled + x_RKC.shape[1])
        condition = network.condition(self._label, span)
        groups = GroupCausal.next_token(PREFIX) if tokens_BF is None else None
        for number, block in enumerate(network.blocks):
            modulation = tuple(map(self._rows, block.modulation(condition)))  # type: ignore[operator]
            x_RKC = block(x_RKC, modulation, groups, self._cache.layer(number, span))
        self._filled = span.stop
        scale, shift = network.final_modulation(condition[:, -1:])
        return network.before_head(x_RKC[:, -1:], (self._rows(scale), self._rows(shift)))[:, 0]

    def _embedded(self, tokens_BF: Tensor | None) -> Tensor:
        """The new slots, [R, K, C]."""
        network = self._network
        if tokens_BF is None:
            start_R1C = network.start.float().expand(len(self._start_RC), 1, -1)
            x_RKC = torch.cat((start_R1C, self._start_RC[:, None]), dim=1)
        else:
            x_RKC = self._doubled(network.token_embed(tokens_BF[:, None]).float())
        return x_RKC + self._doubled(self._places_BSC[:, self._filled : self._filled + x_RKC.shape[1]])

    def _doubled(self, x_B: Tensor) -> Tensor:
        return torch.cat((x_B, x_B)) if self.guided else x_B

    def _rows(self, x: Tensor) -> Tensor:
        """Of the images, and once of no class -> of all rows."""
        if not self.guided:
            return x
        return torch.cat((x[:-1], x[-1:].expand(self._images, *x.shape[1:])))


def _orders(network: RandomOrderGenerator, plan: SamplingPlan) -> Tensor:
    """The order in which each image is drawn, [B, L]."""
    batch, length = plan.uniform_BLF.shape[:2]
    options = cast("RandomOrderOptions", plan.order or RandomOrderOptions())
    if options.positions == "scan":
        return network.scan_L.expand(batch, -1)
    if plan.seed_B is None:
        raise ValueError("random orders need a seed for each image (SamplingPlan.seed_B)")
    return random_orders(plan.seed_B, length)
