"""What a batch launches follows from its settings and shapes alone: recorded once, it draws any other batch.

A GPU records kernels; here a stand-in records torch's operations (`stand_in_graphs.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.config.sampling import GuidanceSchedule
from model.families import AnyGeneratorConfig, build_generator
from model.layout import TokenLayout
from model.protocols import SamplingPlan
from model.quantizers.multi_scale import FoldedQuantizer
from tests.trainer.stand_in_graphs import StandIn, stand_in_graphs
from trainer.evaluation.samples import recorded
from trainer.evaluation.samples.recorded import Draw, RecordedDrawing

B, CLASSES = 3, 4
VIT = ViTConfig(width=16, depth=1, heads=2)
GRIDS = ImageFolderConfig(
    image_size=8,
    patch_size=4,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
)
ROW = TokenLayout((4,), (11, 7))
SIZES = {"depth": 1, "width": 32, "heads": 2}
DEPTH_HEAD = {"head": {"kind": "depth", "width": 16, "depth": 1, "heads": 2}}
ORDERS = {
    "next-scale": SIZES,
    "next-scale, depth head": SIZES | DEPTH_HEAD,
    "next-token": SIZES,
    "next-token, rotary, depth head": SIZES | DEPTH_HEAD | {"rotary": "line"},
    "random": SIZES,
    "masked": {"backbone": SIZES},
    "masked, uvit": {"backbone": SIZES | {"kind": "uvit", "depth": 2}},
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return stand_in_graphs(monkeypatch)


def network_of(order: str) -> tuple[nn.Module, TokenLayout]:
    """With random weights, and the layout of its tokens."""
    kind = order.partition(",")[0]
    config = TypeAdapter(AnyGeneratorConfig).validate_python({"kind": kind, "num_classes": CLASSES, **ORDERS[order]})
    layout = GRIDS.layout if kind == "next-scale" else ROW
    torch.manual_seed(0)
    network = build_generator(config, layout, GRIDS.forcing_width if config.needs_forcing else None)
    assert isinstance(network, nn.Module)
    return with_other_weights(network.eval()), layout


@torch.no_grad()
def with_other_weights(network: nn.Module) -> nn.Module:
    """In place."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def drawing(order: str) -> tuple[Draw, TokenLayout]:
    """What draws, and the layout of its tokens."""
    (network, layout), quantizer = network_of(order), FoldedQuantizer(GRIDS).eval()
    return (lambda plan: network.sample(plan, quantizer)), layout  # type: ignore[operator]


def plan(layout: TokenLayout, seed: int, keeps: bool = False, batch: int = B) -> SamplingPlan:
    """Other classes, numbers and kept tokens for each seed."""
    random = torch.Generator().manual_seed(seed)
    shape = batch, layout.positions, layout.folds
    uniform, kept = torch.rand(shape, generator=random), torch.randint(7, shape, generator=random)
    return SamplingPlan(
        torch.randint(CLASSES, (batch,), generator=random),
        uniform,
        kept_BLF=torch.where(torch.rand(shape, generator=random) < 0.3, kept, -1) if keeps else None,
        seed_B=torch.randint(2**60, (batch,), generator=random),
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guided": {"guidance": 2.0, "top_k": 5},
    "constant guidance, top-p": {"guidance": 1.0, "top_p": 0.8, "schedule": GuidanceSchedule(kind="constant")},
}


@pytest.mark.parametrize(
    ("settings", "keeps"), [("plain", False), ("guided", False), ("constant guidance, top-p", True)]
)
@pytest.mark.parametrize("order", list(ORDERS))
def test_one_recording_draws_every_batch_of_its_kind(order: str, settings: str, keeps: bool, graphs: StandIn) -> None:
    draw, layout = drawing(order)
    drawn = RecordedDrawing()
    plans = [replace(plan(layout, seed, keeps), **SETTINGS[settings]) for seed in range(4)]
    found = [drawn.draw(draw, each) for each in plans]
    assert [graph.replays for graph in graphs.graphs] == [len(plans) - 1]
    for tokens, each in zip(found, plans, strict=True):
        assert torch.equal(tokens, draw(each))
    assert len(torch.stack(found).flatten(1).unique(dim=0)) == len(plans)


CHANGES: dict[str, Callable[[SamplingPlan], SamplingPlan]] = {
    "guidance": lambda plan: replace(plan, guidance=3.0),
    "temperature": lambda plan: replace(plan, temperature=0.3),
    "batch": lambda plan: replace(
        plan, condition_B=plan.condition_B[:2], uniform_BLF=plan.uniform_BLF[:2], seed_B=torch.arange(2)
    ),
    "kept": lambda plan: replace(plan, kept_BLF=torch.full_like(plan.uniform_BLF, 3, dtype=torch.int64)),
}


@pytest.mark.parametrize("changed", list(CHANGES))
def test_what_launches_other_kernels_is_recorded_anew(changed: str, graphs: StandIn) -> None:
    draw, layout = drawing("next-token")
    drawn = RecordedDrawing()
    for seed in range(3):
        drawn.draw(draw, plan(layout, seed))
    for seed, recordings in ((3, 1), (4, 2), (5, 2)):
        other = CHANGES[changed](plan(layout, seed))
        assert torch.equal(drawn.draw(draw, other), draw(other))
        assert len(graphs.graphs) == recordings


def test_another_setting_beside_the_plan_is_recorded_anew(graphs: StandIn) -> None:
    draw, layout = drawing("next-token")
    other, _ = drawing("next-token, rotary, depth head")
    drawn = RecordedDrawing()
    for seed in range(3):
        drawn.draw(draw, plan(layout, seed), "one")
    asked = plan(layout, 3)
    assert torch.equal(drawn.draw(other, asked, "other"), other(asked))


def test_what_was_drawn_stays_when_the_next_batch_is(graphs: StandIn) -> None:
    draw, layout = drawing("random")
    drawn = RecordedDrawing()
    found = [drawn.draw(draw, plan(layout, seed)) for seed in range(3)]
    before = found[1].clone()
    drawn.draw(draw, plan(layout, 9))
    assert torch.equal(found[1], before)


def test_threads_take_turns(graphs: StandIn) -> None:
    draw, layout = drawing("next-token")
    drawn = RecordedDrawing()
    plans = [plan(layout, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda each: drawn.draw(draw, each), plans))
    for tokens, each in zip(found, plans, strict=True):
        assert torch.equal(tokens, draw(each))


def test_a_recording_of_inference_mode_serves_outside_of_it(graphs: StandIn) -> None:
    draw, layout = drawing("masked")
    drawn = RecordedDrawing()
    with torch.inference_mode():
        for seed in range(2):
            drawn.draw(draw, plan(layout, seed))
    asked = plan(layout, 2)
    assert torch.equal(drawn.draw(draw, asked), draw(asked))


def test_weights_that_change_in_place_are_those_that_draw(graphs: StandIn) -> None:
    """As those do that are trained between two pictures."""
    network, layout = network_of("next-token")
    drawn = RecordedDrawing()

    def draw(plan: SamplingPlan) -> Tensor:
        tokens: Tensor = network.sample(plan, None)  # type: ignore[operator]
        return tokens

    for seed in range(2):
        drawn.draw(draw, plan(layout, seed))
    with_other_weights(network)
    asked = plan(layout, 2)
    assert torch.equal(drawn.draw(draw, asked), draw(asked))


def test_casts_that_autocast_kept_from_before_are_no_part_of_a_recording(graphs: StandIn) -> None:
    """They end with the autocast around them, and a later replay would read what then lies there; nor the reverse."""
    weight, given = nn.Parameter(torch.ones(4, 4)), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        F.linear(given, weight)
        again = recorded.cuda_graph(lambda x: F.linear(x, weight), (given,))
        weight.fill_(3)
        assert (F.linear(given, weight) == 12).all(), "by a cast of the recording's own"
        assert (again() == 12).all()


def test_what_hands_the_host_a_value_is_refused(graphs: StandIn) -> None:
    drawn = RecordedDrawing()

    def draw(plan: SamplingPlan) -> Tensor:
        return plan.condition_B + int(plan.condition_B.sum())

    drawn.draw(draw, plan(ROW, 0))
    said = r"^sampling\.cuda_graphs: drawing cannot be recorded \(operation .* waits for a value\): set it to false$"
    with pytest.raises(UsageError, match=said):
        drawn.draw(draw, plan(ROW, 1))


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert recorded.recorder_of(torch.device("cpu")) is None
    draw, layout = drawing("next-token")
    drawn = RecordedDrawing()
    for seed in range(3):
        asked = plan(layout, seed)
        assert torch.equal(drawn.draw(draw, asked), draw(asked))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_draws_what_it_draws_without_a_recording(bf16: bool) -> None:
    cuda = torch.device("cuda")
    for order in ORDERS:
        network, layout = network_of(order)
        network.to(cuda)
        quantizer = FoldedQuantizer(GRIDS).to(cuda).eval()
        drawn = RecordedDrawing()

        def draw(plan: SamplingPlan, network: Any = network, quantizer: FoldedQuantizer = quantizer) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                tokens: Tensor = network.sample(plan, quantizer)
            return tokens

        for seed in range(4):
            asked = replace(plan(layout, seed), guidance=2.0, top_p=0.9)
            names = ("condition_B", "uniform_BLF", "seed_B")
            there = replace(asked, **{name: getattr(asked, name).to(cuda) for name in names})
            assert torch.equal(drawn.draw(draw, there), draw(there)), order
