"""What runs without gradients, traced: images to tokens, and classes to images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from model.families import build_generator, build_tokenizer, forcing_of
from model.layout import TokenLayout
from model.protocols import SamplingPlan, Tokenizer
from trainer.config import GeneratorStageConfig, SamplingConfig
from trainer.engine.deepspeed_engine import NUMBER_FORMATS
from trainer.planning.blank_stages import StageConfigs, one_rank
from trainer.planning.fake_device import FakeDevice, Kind, fake_device
from trainer.planning.long_sampling import FEW, continued
from trainer.planning.operation import HostSync, Operation
from trainer.planning.trace import Trace


@dataclass(frozen=True)
class ForwardTrace:
    """Of one batch."""

    samples: int
    operations: tuple[Operation, ...]
    syncs: tuple[HostSync, ...]


def trace_tokenizing(configs: StageConfigs, samples: int, kind: Kind) -> ForwardTrace:
    """A batch of images to tokens, in the precision of `tokens`."""
    with _device(kind, configs.tokens.precision) as fake:
        tokenizer = _tokenizer(configs, fake)
        size = configs.tokenizer_model.image_size
        images = torch.zeros(samples, 3, size, size, device=fake.device)
        return _run(fake, samples, lambda: tokenizer.tokenize(images))


def trace_sampling(configs: StageConfigs, sampling: SamplingConfig, samples: int, kind: Kind) -> ForwardTrace:
    """A batch of classes to images: precision, guidance, truncation and the order's options as `sampling` has them.

    Of a generator that draws a position a step, a few steps are traced and the others follow (long_sampling.py).
    """
    section = configs.section("train-generator")
    assert isinstance(section, GeneratorStageConfig)
    layout = configs.tokenizer_model.layout
    with _device(kind, sampling.precision) as fake:
        tokenizer = _tokenizer(configs, fake)
        forcing = forcing_of(tokenizer)

        def drawn_of(layout: TokenLayout) -> Callable[[], torch.Tensor]:
            with torch.device("meta"):
                generator = build_generator(section.network, layout, None if forcing is None else forcing.width)
            fake.fill(generator)
            cast("nn.Module", generator).eval()
            plan = SamplingPlan(
                torch.zeros(samples, dtype=torch.int64, device=fake.device),
                torch.zeros(samples, layout.positions, layout.folds, device=fake.device),
                *(sampling.guidance, sampling.top_k, sampling.top_p),
                schedule=sampling.guidance_schedule,
                temperature=sampling.temperature,
                seed_B=torch.zeros(samples, dtype=torch.int64, device=fake.device),
                order=sampling.order_of(section.model),
            )
            return lambda: generator.sample(plan, forcing)

        if not section.model.draws_one_by_one or layout.positions <= FEW[1]:
            draw = drawn_of(layout)
            return _run(fake, samples, lambda: tokenizer.detokenize(draw()))
        few = [_run(fake, samples, drawn_of(TokenLayout((count,), layout.vocabularies))) for count in FEW]
        tokens_BLF = torch.zeros(samples, layout.positions, layout.folds, dtype=torch.int64, device=fake.device)
        decoded = _run(fake, samples, lambda: tokenizer.detokenize(tokens_BLF))
        operations = continued(few[0].operations, few[1].operations, layout.positions)
        return ForwardTrace(samples, (*operations, *decoded.operations), (*few[1].syncs, *decoded.syncs))


@contextmanager
def _device(kind: Kind, precision: str) -> Iterator[FakeDevice]:
    with one_rank(), fake_device(kind, NUMBER_FORMATS[precision]) as fake, torch.no_grad():
        yield fake


def _tokenizer(configs: StageConfigs, fake: FakeDevice) -> Tokenizer:
    with torch.device("meta"):
        network = build_tokenizer(configs.tokenizer_model.without_pretraining())
    fake.fill(network)
    cast("nn.Module", network).eval()
    return network


def _run(fake: FakeDevice, samples: int, work: Callable[[], object]) -> ForwardTrace:
    """The second time, when masks and other constants are there."""
    with fake.autocast():
        work()
    trace = Trace(fake.device)
    with trace, fake.autocast():
        work()
    syncs = tuple(HostSync(*key, count) for key, count in trace.syncs.items())
    return ForwardTrace(samples, tuple(trace.operations), syncs)
