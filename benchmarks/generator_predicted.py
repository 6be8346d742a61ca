"""What `generator.py` measures, predicted for a GPU: the published code and ours, traced on fake tensors.

Nothing is computed, and no GPU is needed. The published networks are built by path and run their own forward, loss and
sampling on fake CUDA tensors; ours are the stage and the sampler of the recipes that have the same sizes. Every
operation of both is held against the device's peaks, eagerly (trainer/planning/roofline.py); `fused_seconds` are
those where a compiler makes one kernel of each chain of elementwise operations.

Left out on both sides: the optimizer, the decoder, and what the host takes to launch kernels, whose number is noted.
Published code is traced as it runs without flash-attn and xformers, by torch's own attention.

Of code that draws position by position a few positions are traced, and the others follow (long_sampling.py).
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import generator_llamagen
import generator_maskgit
import generator_rar
import root_on_path
import torch
import torch.nn.functional as F
from against_var import CODE_DIM, CODES, GUIDANCE, SCALES, TOP_K, TOP_P
from torch import Tensor, nn

from cluster.config.loading import load_config
from cluster.stages.planning import ASSUMED_CLASSES, stage_configs
from model.families import build_generator, build_tokenizer, forcing_of
from model.layout import TokenLayout
from model.protocols import SamplingPlan
from trainer.config import GeneratorStageConfig, SamplingConfig
from trainer.planning.backward import run_backward
from trainer.planning.blank_stages import StageConfigs, blank_stage, one_rank
from trainer.planning.devices import Device
from trainer.planning.fake_device import FakeDevice, fake_device
from trainer.planning.long_sampling import FEW, continued
from trainer.planning.operation import Operation
from trainer.planning.roofline import Assumptions, fuse
from trainer.planning.step_cost import cost_of
from trainer.planning.trace import Trace
from trainer.stages.generator import TokenSamples

CONFIGS = Path(root_on_path.__file__).resolve().parents[1] / "configs" / "generator"
CLASSES = 1000
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Peer:
    """Published code on a fake device."""

    network: nn.Module
    loss: Callable[[], Tensor]
    draw: Callable[[int], object]
    """Draw so many positions of each image; all, whatever is asked, where they do not come one by one."""


@dataclass(frozen=True)
class Family:
    """What the two sides are."""

    config: str
    """Of ours, in configs/generator."""
    peer: Callable[[FakeDevice, int, bool], Peer]
    """Builds theirs, of a batch, inside of a fake device; whether sampling's weights are to be of its dtype."""
    one_by_one: bool


def var_peer(fake: FakeDevice, batch: int, _sampling: bool) -> Peer:
    """VAR d16. Their sampling computes with float32 weights under autocast."""
    from models import build_vae_var

    kept = {kind: kind.reset_parameters for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d)}
    with contextlib.redirect_stdout(io.StringIO()), _built_on(fake), mock.patch("dist.get_device", return_value="cpu"):
        tokenizer, var = build_vae_var("cuda", SCALES, CODES, CODE_DIM, ch=32, num_classes=CLASSES, depth=16)
    for kind, reset in kept.items():  # their builder empties these methods for the whole process
        kind.reset_parameters = reset  # type: ignore[method-assign]
    var.rng = None
    label_B, tokens_BL = _batch(fake, batch, sum(side**2 for side in SCALES))
    var.vae_proxy[0].fhat_to_img = lambda latent: latent.clone()

    def loss() -> Tensor:
        with torch.no_grad():
            given = tokenizer.quantize.idxBl_to_var_input(tokens_BL.split([side**2 for side in SCALES], dim=1))
        with fake.autocast():
            return F.cross_entropy(var(label_B, given).view(-1, CODES), tokens_BL.view(-1))

    def draw(_: int) -> object:
        return var.autoregressive_infer_cfg(batch, label_B, None, GUIDANCE, TOP_K, TOP_P)

    return Peer(var, loss, draw)


def llamagen_peer(fake: FakeDevice, batch: int, sampling: bool) -> Peer:
    """LlamaGen B, whose sampler casts its weights. Its cache has the full length, however few positions are drawn."""
    from autoregressive.models import gpt
    from autoregressive.models.generate import generate

    depth, width, heads = generator_llamagen.SIZES["B"]
    length = generator_llamagen.SIDE**2
    sizes = {"n_layer": depth, "n_head": heads, "dim": width, "vocab_size": generator_llamagen.CODES}
    with _built_on(fake):
        network = gpt.Transformer(gpt.ModelArgs(**sizes, block_size=length, num_classes=CLASSES))
    if sampling:
        _cast(fake, network)
    set_up = network.setup_caches
    network.setup_caches = lambda **given: set_up(**given | {"max_seq_length": length + 1})
    label_B, tokens_BL = _batch(fake, batch, length)

    def loss() -> Tensor:
        with fake.autocast():
            return cast("Tensor", network(tokens_BL[:, :-1], label_B, targets=tokens_BL)[1])

    def draw(count: int) -> object:
        return generate(
            network, label_B, count, cfg_scale=generator_llamagen.SCALE, temperature=1.0, top_k=0, top_p=1.0
        )

    return Peer(network, loss, draw)


def maskgit_peer(fake: FakeDevice, batch: int, _sampling: bool) -> Peer:
    """TiTok's MaskGIT over 64 tokens (BERT)."""
    size = generator_maskgit.SIZES["B-64"]
    with _built_on(fake):
        network = generator_maskgit.their_network(size)
    label_B, tokens_BL = _batch(fake, batch, size.tokens)
    loss = generator_maskgit.their_loss(network, label_B, tokens_BL, fake.autocast)
    whole = generator_maskgit.their_draw(network, label_B, size)

    def draw(_: int) -> object:
        # They slice by how many positions are still masked, which on fake tensors nobody knows: all, is said here.
        masked_B1 = torch.full((batch, 1), size.tokens, device=fake.device)
        with mock.patch("torch.sum", return_value=masked_B1):
            return whole()

    return Peer(network, loss, draw)


def rar_peer(fake: FakeDevice, batch: int, _sampling: bool) -> Peer:
    """RAR-B."""
    with _built_on(fake):
        network = generator_rar.their_network("B")
    label_B, tokens_BL = _batch(fake, batch, generator_rar.SIDE**2)
    loss = generator_rar.their_loss(network, label_B, tokens_BL, fake.autocast)

    def draw(count: int) -> object:
        length, network.image_seq_len = network.image_seq_len, count
        try:
            return network.generate(label_B, generator_rar.SCALE, 1.0, generator_rar.POWER)
        finally:
            network.image_seq_len = length

    return Peer(network, loss, draw)


FAMILIES = {
    "var": Family("var-d16.yaml", var_peer, one_by_one=False),
    "llamagen": Family("llamagen-b.yaml", llamagen_peer, one_by_one=True),
    "maskgit": Family("maskgit-titok-b-64.yaml", maskgit_peer, one_by_one=False),
    "rar": Family("rar-b.yaml", rar_peer, one_by_one=True),
}


def predicted(family: str, checkout: Path, batch: int, device: Device, assumed: Assumptions) -> dict[str, Any]:
    """Seconds and kernels of each side, by what is done; where published code cannot be traced, why not.

    Args:
        family: a key of FAMILIES.
        checkout: of the published code.
        batch: samples of a step, and images of a draw.
        device: on which.
        assumed: what is reached of its peaks.
    """
    chosen = FAMILIES[family]
    sys.path.append(str(checkout))
    if family == "rar":
        generator_rar.their_code(checkout)
    config = load_config(CONFIGS / chosen.config, []).with_classes(ASSUMED_CLASSES)
    configs = stage_configs(config, "train-generator")
    found: dict[str, Any] = {"config": chosen.config, "batch": batch, "device": device.name}

    def note(what: str, side: str, work: Callable[[], list[Operation]]) -> None:
        try:
            operations = work()
        except Exception as error:  # whatever their code does that fake tensors do not
            if side == "ours":
                raise
            found.setdefault("not_traced", {})[what] = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            return
        eager, fused = (
            sum(part.seconds for part in cost_of(Counter(each.kernel for each in kernels), device, assumed))
            for kernels in (operations, fuse(operations))
        )
        figures = {"seconds": eager, "fused_seconds": fused, "kernels": len(operations)}
        found.setdefault(what, {})[side] = figures

    note("training", "theirs", lambda: _their_step(chosen, batch))
    note("training", "ours", lambda: _our_step(configs, batch))
    for name, dtype in PRECISIONS.items():
        note(f"sampling {name}", "theirs", lambda dtype=dtype: _their_draw(chosen, batch, dtype, configs))  # type: ignore[misc]
        sampling = config.sampling.model_copy(update={"precision": name})
        note(f"sampling {name}", "ours", lambda sampling=sampling: _our_draw(configs, sampling, batch))  # type: ignore[misc]
    return found


def _their_step(family: Family, batch: int) -> list[Operation]:
    with _on_gpu(torch.bfloat16) as fake:
        peer = family.peer(fake, batch, False)
        peer.network.train()
        return _step(fake, peer.loss)


def _our_step(configs: StageConfigs, batch: int) -> list[Operation]:
    with _on_gpu(torch.bfloat16) as fake:
        stage = cast("Any", blank_stage("train-generator", configs, fake).stage)
        samples: TokenSamples = stage.blank_batch(batch)
        stage.network.train()

        def loss() -> Tensor:
            with fake.autocast():
                return cast("Tensor", stage.terms(samples)["loss"])

        return _step(fake, loss)


def _step(fake: FakeDevice, loss: Callable[[], Tensor]) -> list[Operation]:
    """Forward and backward, the second time: masks are there."""
    loss()
    trace = Trace(fake.device)
    with trace:
        root = [(found := loss(), torch.ones_like(found))]
        del found
        trace.phase = "backward"
        run_backward(root)
    return trace.operations


def _their_draw(family: Family, batch: int, dtype: torch.dtype, configs: StageConfigs) -> list[Operation]:
    def traced(count: int) -> list[Operation]:
        with _on_gpu(dtype) as fake, torch.no_grad():
            peer = family.peer(fake, batch, True)
            peer.network.eval()
            return _draw(fake, lambda: peer.draw(count))

    positions = configs.tokenizer_model.layout.positions
    if not family.one_by_one:
        return traced(positions)
    return continued(*(traced(count) for count in FEW), positions)


def _our_draw(configs: StageConfigs, sampling: SamplingConfig, batch: int) -> list[Operation]:
    section = configs.generator
    assert isinstance(section, GeneratorStageConfig)

    def traced(layout: TokenLayout) -> list[Operation]:
        with _on_gpu(PRECISIONS[sampling.precision]) as fake, torch.no_grad():
            with torch.device("meta"):
                tokenizer = build_tokenizer(configs.tokenizer_model.without_pretraining())
                forcing = forcing_of(tokenizer)
                network = build_generator(section.model, layout, None if forcing is None else forcing.width)
            for each in (tokenizer, network):
                fake.fill(each)
                cast("nn.Module", each).eval()
            seed_B = torch.zeros(batch, dtype=torch.int64, device=fake.device)
            plan = SamplingPlan(
                seed_B,
                torch.zeros(batch, layout.positions, layout.folds, device=fake.device),
                *(sampling.guidance, sampling.top_k, sampling.top_p),
                schedule=sampling.guidance_schedule,
                seed_B=seed_B,
                order=sampling.order_of(section.model),
            )
            return _draw(fake, lambda: network.sample(plan, forcing))

    layout = configs.tokenizer_model.layout
    if not section.model.draws_one_by_one:
        return traced(layout)
    few = [traced(TokenLayout((count,), layout.vocabularies)) for count in FEW]
    return continued(few[0], few[1], layout.positions)


def _draw(fake: FakeDevice, work: Callable[[], object]) -> list[Operation]:
    with fake.autocast():
        work()
    trace = Trace(fake.device)
    with trace, fake.autocast():
        work()
    return trace.operations


@contextlib.contextmanager
def _on_gpu(dtype: torch.dtype) -> Iterator[FakeDevice]:
    with one_rank(), fake_device("cuda", dtype) as fake:
        yield fake


@contextlib.contextmanager
def _built_on(fake: FakeDevice) -> Iterator[None]:
    """What is made inside is on the device, and stays there. Nothing is drawn again until it lies within bounds."""
    stays = mock.patch.object(nn.Module, "to", lambda module, *_, **__: module)
    with torch.device(fake.device), stays, mock.patch("torch.nn.init.trunc_normal_", lambda tensor, *_, **__: tensor):
        yield


def _cast(fake: FakeDevice, network: nn.Module) -> None:
    """Weights in the device's number format: torch casts no module whose parameters are fake."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(weight, dtype=fake.dtype)))


def _batch(fake: FakeDevice, batch: int, length: int) -> tuple[Tensor, Tensor]:
    label_B = torch.zeros(batch, dtype=torch.int64, device=fake.device)
    return label_B, torch.zeros(batch, length, dtype=torch.int64, device=fake.device)
