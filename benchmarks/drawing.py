"""How fast a generator draws, for benchmarks: images per second of processor time, and passes of its network."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from trainer.evaluation.samples.sampler import Sampler


def draw(sampler: Sampler, count: int) -> tuple[Tensor, float]:
    """So many images [N, 3, H, W] of all classes in turn, and how many per second of processor time, with decoding."""
    label_N = torch.arange(count) % len(sampler.class_names)
    with torch.inference_mode():
        list(sampler.draw(label_N[:1]))  # what is done once is not counted
        began = time.process_time()
        image_NCHW = torch.cat(list(sampler.draw(label_N)))
    return image_NCHW, count / (time.process_time() - began)


def passes(sampler: Sampler) -> int:
    """How often the network is run for an image."""
    counter = _Passes(sampler.generator)
    with torch.inference_mode():
        list(sampler.draw(torch.zeros(1, dtype=torch.int64)))
    return counter.count


class _Passes:
    """Counts how often the first block of a network is run."""

    def __init__(self, network: Any) -> None:
        self.count = 0
        first = next(module for name, module in network.named_modules() if name.rsplit(".", 2)[-1] == "0")
        first.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1
