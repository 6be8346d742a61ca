"""Images are functions of weights, seed and number; mixing networks is refused."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.halves import halves_of
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.config.generators import GeneratorConfig
from model.config.sampling import GuidanceSchedule, OrderOptions
from model.families import AnyGeneratorConfig, build_generator
from model.generators.next_scale import FoldedGenerator
from model.layers import linear
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer.stand_in_graphs import stand_in_graphs
from trainer.config import SamplingConfig
from trainer.evaluation.samples.sampler import Sampler

VIT = ViTConfig(width=16, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=8,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
    dropout_min_scales=1,
)
GENERATOR = NextScaleConfig(num_classes=3, depth=1, width=16, heads=2)


GENERATOR_TOKENS = {"layout": TOKENIZER.layout.to_json(), "forcing_width": TOKENIZER.forcing_width}


@pytest.fixture
def networks(tmp_path: Path) -> tuple[str, str]:
    """URIs of a generator and its tokenizer, with random weights."""
    torch.manual_seed(0)
    tokenizer = ImageFolderTokenizer(TOKENIZER)
    uri = str(tmp_path / "tokenizer")
    config = TOKENIZER.model_dump(mode="json")
    state, halves = {"model": tokenizer.state_dict()}, halves_of(tokenizer)
    card = weights.write_weights(uri, "tokenizer", config, state, {}, halves=halves)
    generator = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
    torch.nn.init.normal_(generator.head.weight)
    both = {"generator": GENERATOR.model_dump(mode="json"), **GENERATOR_TOKENS}
    lineage = {"tokenizer": card.encoder()}
    weights.write_weights(str(tmp_path / "generator"), "generator", both, {"model": generator.state_dict()}, lineage)
    return str(tmp_path / "generator"), uri


def sampler(networks: tuple[str, str], seed: int = 0, **sampling: object) -> Sampler:
    config = SamplingConfig.model_validate({"guidance": 1.0} | sampling)
    return Sampler.load(*networks, config, seed, torch.device("cpu"))


LABELS = torch.arange(37) % 3


def drawn(sampler: Sampler, *parts: tuple[int, int]) -> Tensor:
    """The images of these ranges of the 37."""
    return torch.cat([image for first, stop in parts for image in sampler.draw(LABELS[first:stop], first)])


@pytest.mark.parametrize("parts", [[(0, 16), (16, 37)], [(0, 1), (1, 30), (30, 37)], [(n, n + 1) for n in range(37)]])
def test_an_image_has_the_same_bits_in_whatever_parts_it_is_asked_for(
    networks: tuple[str, str], parts: list[tuple[int, int]]
) -> None:
    found = sampler(networks, top_k=9, top_p=0.9)
    assert torch.equal(drawn(found, (0, 37)), drawn(found, *parts))


def test_on_a_cpu_the_networks_always_see_as_many_rows(
    networks: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, rows = sampler(networks, cpu_batch=8, batch=3), []
    sample, decode = found.generator.sample, found.tokenizer.detokenize
    monkeypatch.setattr(
        found.generator, "sample", lambda *given: rows.append(len(given[0].condition_B)) or sample(*given)
    )
    monkeypatch.setattr(found.tokenizer, "detokenize", lambda tokens: rows.append(len(tokens)) or decode(tokens))
    assert len(drawn(found, (3, 5))) == 2
    assert len(drawn(found, (6, 20))) == 14
    assert set(rows) == {8}
    assert len(rows) == 2 * (1 + 3)


def test_what_is_drawn_takes_part_in_gradients_and_the_callers_mode_stays_its_own(networks: tuple[str, str]) -> None:
    for image in sampler(networks, cpu_batch=2).draw(LABELS[:4]):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not image.is_inference()
        weight = torch.ones(1, requires_grad=True)
        (image * weight).sum().backward()
        assert float(weight.grad or 0) == pytest.approx(float(image.sum()), rel=1e-4)


def test_a_plan_holds_all_that_is_set(networks: tuple[str, str]) -> None:
    schedule = {"kind": "cosine", "power": 2.5}
    given = {"guidance": 1.5, "guidance_schedule": schedule, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    plan = sampler(networks, seed=3, **given).plan(np.arange(4, 9), torch.zeros(5, dtype=torch.int64))
    assert plan.schedule == GuidanceSchedule(kind="cosine", power=2.5)
    assert (plan.guidance, plan.temperature, plan.top_k, plan.top_p) == (1.5, 0.7, 5, 0.9)
    assert plan.order is None
    assert plan.seed_B is not None
    whole = sampler(networks, seed=3).plan(np.arange(9), torch.zeros(9, dtype=torch.int64))
    assert whole.seed_B is not None
    assert torch.equal(whole.seed_B[4:], plan.seed_B)
    assert torch.equal(whole.uniform_BLF[4:], plan.uniform_BLF)
    assert len(whole.seed_B.unique()) == 9
    assert plan.uniform_BLF.shape == (5, 5, 2)


def test_a_low_temperature_draws_the_likeliest_tokens(networks: tuple[str, str]) -> None:
    cold, greedy = (
        torch.cat(list(sampler(networks, seed=seed, **how).draw_tokens(LABELS[:6])))
        for seed, how in ((1, {"temperature": 1e-4}), (2, {"top_k": 1}))
    )
    assert torch.equal(cold, greedy)


def test_guidance_that_always_acts_differs_from_one_that_grows(networks: tuple[str, str]) -> None:
    grown, own, always = (
        torch.cat(list(sampler(networks, guidance=4, guidance_schedule=how).draw_tokens(LABELS[:9])))
        for how in ({"kind": "linear"}, None, {"kind": "constant"})
    )
    assert torch.equal(grown, own)
    assert not torch.equal(grown, always)


def test_tokens_that_are_kept_are_those_of_every_image(networks: tuple[str, str]) -> None:
    kept = torch.full((1, 5, 2), -1)
    kept[:, :, 1] = torch.arange(5)
    tokens = torch.cat(list(sampler(networks).draw_tokens(LABELS[:20], 0, kept)))
    assert (tokens[..., 1] == torch.arange(5)).all()
    assert len(tokens[..., 0].unique(dim=0)) > 1


def test_products_in_bf16_give_images_near_those_of_fp32(networks: tuple[str, str]) -> None:
    fine, coarse = (next(iter(sampler(networks, precision=each).draw(LABELS[:4]))) for each in ("fp32", "bf16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(fine, coarse)


class Casts(TorchDispatchMode):
    """Counts how often each storage is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_products_in_bf16_cast_each_weight_once_for_a_batch_of_tokens(networks: tuple[str, str]) -> None:
    found = sampler(networks, precision="bf16")
    generator = cast("torch.nn.Module", found.generator)
    with Casts() as casts:
        list(found.draw_tokens(LABELS[:4]))
    weights = {name: weight for name, weight in generator.named_parameters() if weight.ndim > 1}
    of_weights = {name: casts.counts[weight.data_ptr()] for name, weight in weights.items()}
    assert of_weights["blocks.0.attention.qkv.weight"] == 1  # of two scales
    assert max(of_weights.values()) == 1
    assert not any(weight.requires_grad for weight in generator.parameters())


ORDERS = {
    "next-scale": {"depth": 1, "width": 16, "heads": 2},
    "next-token": {"depth": 1, "width": 16, "heads": 2, "rotary": "line"},
    "next-token unfolded": {"depth": 1, "width": 16, "heads": 2, "rotary": "line", "unfold": True},
    "random": {"depth": 1, "width": 16, "heads": 2},
    "masked": {"backbone": {"width": 16, "depth": 1, "heads": 2}},
}


def of_order(networks: tuple[str, str], order: str) -> Sampler:
    """With a generator of that order in place of the saved one."""
    values = {"kind": order.partition(" ")[0], "num_classes": 3, **ORDERS[order]}
    config: GeneratorConfig = TypeAdapter(AnyGeneratorConfig).validate_python(values)
    torch.manual_seed(1)
    network = build_generator(config, TOKENIZER.layout, TOKENIZER.forcing_width if config.needs_forcing else None)
    for parameter in cast("torch.nn.Module", network).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    cast("torch.nn.Module", network).eval()
    return replace(sampler(networks, temperature=0.9, top_k=12, cpu_batch=4), generator=network)


@pytest.mark.parametrize("order", ORDERS)
def test_weights_are_packed_once_for_all_batches_and_draw_the_same_tokens(
    networks: tuple[str, str], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    packed, plain = of_order(networks, order), of_order(networks, order)
    monkeypatch.setattr(plain.prepared.packed, "used", nullcontext)
    first, *others = packed.draw_tokens(LABELS[:12])
    after_one = len(packed.prepared.packed._made)
    assert torch.equal(torch.cat((first, *others)), torch.cat(list(plain.draw_tokens(LABELS[:12]))))
    products = [part for part in cast("torch.nn.Module", packed.generator).modules() if isinstance(part, linear.Linear)]
    assert len(packed.prepared.packed._made) == after_one >= len(products) > 0
    assert not plain.prepared.packed._made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batches_are_drawn_by_one_recording_whatever_the_seed(
    networks: tuple[str, str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = stand_in_graphs(monkeypatch)
    plain = replace(of_order(networks, "next-token"), config=SamplingConfig(cpu_batch=4, precision=precision))
    graphs = replace(plain, config=plain.config.model_copy(update={"cuda_graphs": True}))
    for seed in (0, 1):
        found = list(replace(graphs, seed=seed).draw_tokens(LABELS[:12]))
        assert torch.equal(torch.cat(found), torch.cat(list(replace(plain, seed=seed).draw_tokens(LABELS[:12]))))
    assert [graph.replays for graph in stand_in.graphs] == [5]


def test_another_network_is_not_drawn_from_by_the_recording_of_the_first(
    networks: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_graphs(monkeypatch)
    one = replace(of_order(networks, "next-token"), config=SamplingConfig(cpu_batch=4, cuda_graphs=True))
    list(one.draw_tokens(LABELS[:12]))
    other = of_order(networks, "next-token unfolded").generator
    found = torch.cat(list(replace(one, generator=other).draw_tokens(LABELS[:4])))
    alone = replace(one, generator=other, config=SamplingConfig(cpu_batch=4))
    assert torch.equal(found, torch.cat(list(alone.draw_tokens(LABELS[:4]))))


@pytest.mark.parametrize("order", ORDERS)
def test_in_every_order_an_image_is_its_own_and_keeps_what_is_kept(networks: tuple[str, str], order: str) -> None:
    found = of_order(networks, order)
    kept = torch.full((1, 5, 2), -1)
    kept[:, 1:4, 0] = torch.tensor([3, 0, 15])
    for given in (None, kept):
        whole = torch.cat(list(found.draw_tokens(LABELS[:9], 0, given)))
        parts = [torch.cat(list(found.draw_tokens(LABELS[at : at + 3], at, given))) for at in (0, 3, 6)]
        assert torch.equal(whole, torch.cat(parts))
        assert len(whole.flatten(1).unique(dim=0)) == 9
    assert (whole[:, 1:4, 0] == torch.tensor([3, 0, 15])).all()


class Options(OrderOptions):
    steps: int = Field(8, gt=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 4}, r"sampling\.order\.steps is no option of a next-scale generator: it has no options"),
        ({"stesp": 4}, r"sampling\.order\.stesp is no option of a next-scale generator: did you mean steps\?"),
        ({"steps": 0}, r"sampling\.order\.steps: "),
    ],
)
def test_an_option_that_the_order_has_not_is_refused_by_the_card_alone(
    networks: tuple[str, str], options: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "no options" not in said:
        monkeypatch.setattr(NextScaleConfig, "order_options", Options)
    Path(networks[0], "model.safetensors").unlink()
    with pytest.raises(UsageError, match=said):
        sampler(networks, order=options)


def test_an_option_of_the_order_reaches_the_plan(networks: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NextScaleConfig, "order_options", Options)
    plan = sampler(networks, order={"steps": 4}).plan(np.arange(1), LABELS[:1])
    assert plan.order == Options(steps=4)


def test_another_seed_gives_other_images(networks: tuple[str, str]) -> None:
    labels = torch.tensor([0, 1, 2])
    first, second = (torch.cat(list(sampler(networks, seed=seed).draw(labels))) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_class_that_the_generator_does_not_know_is_refused(networks: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"\[7\] are not among the generator's classes 0 to 2"):
        sampler(networks, classes=(0, 7)).classes()


def test_a_generator_is_refused_with_another_tokenizer(networks: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = ImageFolderTokenizer(TOKENIZER).state_dict()
    weights.write_weights(networks[1], "tokenizer", TOKENIZER.model_dump(mode="json"), {"model": other}, {})
    with pytest.raises(UsageError, match="was trained on tokens of tokenizer"):
        sampler(networks)


@pytest.mark.parametrize(("part", "valid"), [("decoder", True), ("from_latent", True), ("quantizer", False)])
def test_a_generator_goes_on_with_another_decoder_and_with_no_other_change(
    networks: tuple[str, str], part: str, valid: bool
) -> None:
    before = sampler(networks)
    labels = torch.tensor([0, 1, 2])
    images = torch.cat(list(before.draw(labels)))
    other = ImageFolderTokenizer(TOKENIZER)
    other.load_state_dict(before.tokenizer.state_dict())
    with torch.no_grad():
        for parameter in other.get_submodule(part).parameters():
            parameter += torch.randn_like(parameter)
    config, halves = TOKENIZER.model_dump(mode="json"), halves_of(other)
    weights.write_weights(networks[1], "tokenizer", config, {"model": other.state_dict()}, {}, halves=halves)
    if not valid:
        with pytest.raises(UsageError, match="was trained on tokens of tokenizer"):
            sampler(networks)
        return
    drawn = torch.cat(list(sampler(networks).draw(labels)))
    assert drawn.isfinite().all()
    assert not torch.equal(drawn, images)


def test_weights_that_were_changed_after_their_card_are_refused(networks: tuple[str, str]) -> None:
    path = Path(networks[0], "model.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        sampler(networks)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"groups": [1, 2**40], "vocabularies": [16, 16]}, "a layout has at most"),
        ({"groups": [1, 4]}, "a layout has groups and vocabularies"),
        ({"groups": [1, 4], "vocabularies": [16, 16], "scales": [1, 2]}, "a layout has groups and vocabularies"),
    ],
)
def test_a_layout_of_a_card_that_cannot_be_is_named(
    networks: tuple[str, str], layout: dict[str, object], reason: str
) -> None:
    path = Path(networks[0], "card.json")
    card = json.loads(path.read_text())
    card["config"]["layout"] = layout
    path.write_text(json.dumps(card))
    with pytest.raises(UsageError, match=rf"card\.json has a config that cannot be \(layout: {reason}"):
        sampler(networks)
