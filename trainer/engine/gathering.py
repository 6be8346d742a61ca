"""Whole tensors from what each rank owns of them, one at a time, on every rank: for a look at a network in between.

Bits travel, not numbers: each element has one owner, and the others add zeros to it as integers. So what arrives is
what the owner has, whatever the number of ranks.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.engine.deepspeed_engine import DeepSpeedEngine
from trainer.engine.fragments import FROZEN, Fragment, OwnedState


class NetworkCopy:
    """A second network, in evaluation mode and float32, that has weights only where it is entered.

    So nothing that is done with it touches the network in training: no weight, no buffer, no hook, no compiled graph.
    It costs 4 bytes for each parameter on each rank, as long as it is entered: between two steps, when the activations
    and gradients of a step, which take more, are gone.

    Args:
        network: what is trained, before DeepSpeed has it.
    """

    def __init__(self, network: nn.Module) -> None:
        blank = {id(each): nn.Parameter(torch.empty_like(each, device="meta"), False) for each in network.parameters()}
        self._network = copy.deepcopy(network, dict(blank)).eval()
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        names = {id(parameter): name for name, parameter in self._network.named_parameters()}
        for module in self._network.modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None:  # several names may share one
                    self._places.setdefault(names[id(parameter)], []).append((module, attribute))
        self._blank = dict(self._network.named_parameters())

    @contextmanager
    def averaged(self, engine: DeepSpeedEngine) -> Iterator[nn.Module]:
        """With the moving average of an engine's weights; with the weights, if none is kept (a collective)."""
        role = "ema" if engine.owned.keeps_ema else "master"
        shapes = {name: parameter.shape for name, parameter in self._blank.items()}
        try:
            for name, whole in gathered(engine.owned, role, shapes, engine.device):
                self._put(name, nn.Parameter(whole, requires_grad=False))
            self._copy_buffers(engine.module)
            yield self._network
        finally:
            for name, parameter in self._blank.items():
                self._put(name, parameter)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        for module, attribute in self._places[name]:
            setattr(module, attribute, parameter)

    def _copy_buffers(self, module: nn.Module) -> None:
        """Those of the first rank, which checkpoints and exports have, too."""
        for name, buffer in self._network.named_buffers():
            buffer.copy_(module.get_buffer(name))
            if dist.get_world_size() > 1:
                dist.broadcast(buffer, 0)


def gathered(
    owned: OwnedState, role: str, shapes: Mapping[str, torch.Size], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter whole, float32 on the device, on every rank (a collective).

    Args:
        owned: what this rank has.
        role: master or ema; weights that are not trained are what they are.
        shapes: of all parameters, by name, in an order that is the same on all ranks.
        device: of this rank.
    """
    parts: dict[str, list[tuple[Fragment, Tensor]]] = defaultdict(list)
    for fragment in owned.owned():
        if role in fragment.roles:
            parts[fragment.name].append((fragment, fragment.roles[role]))
    for fragment in owned.frozen():
        is_whole = fragment.stop - fragment.start == shapes[fragment.name].numel()
        if dist.get_rank() == 0 or not is_whole:  # each element once
            parts[fragment.name].append((fragment, fragment.roles[FROZEN]))
    for name, shape in shapes.items():
        flat = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
        for fragment, data in parts[name]:
            flat[fragment.start : fragment.stop] = data
        if dist.get_world_size() > 1:
            dist.all_reduce(flat.view(torch.int32))
        yield name, flat.view(shape)
