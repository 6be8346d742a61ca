"""Published VAR and ours with the same weights on this machine: training steps, their memory, and sampling.

    git clone https://github.com/FoundationVision/VAR /somewhere/VAR
    python benchmarks/against_var.py --var /somewhere/VAR [--depth 16] [--batch 2] [--rounds 5] [--json FILE]

Both sides get the same sizes, batch, optimizer and number of warm-up rounds, and take turns in each round. A training
step is the teacher-forcing input, forward, loss, backward and AdamW in bf16 autocast; sampling is with guidance, top-k
and top-p, up to the tokens' latent (no decoder). Their default of sampling is float32. Memory is what the first two
steps add to the resident memory of a fresh process at its highest (Linux), gradients and moments included: once with
each block of more than 64 KiB mapped by itself, so that no fragments of a heap count, once in the C library's heap.

Seconds are of the processor (`time.process_time`), which a busy machine hardly changes, with one thread unless
--threads says otherwise: threads that wait for one another count as busy.

Nothing of the checkout is copied; it must be of the published revision's shape (models/, dist.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401
import torch
from report import write_report
from torch import Tensor, nn

from model.config import ImageFolderConfig, VectorConfig
from model.generators.next_scale import FoldedGenerator
from model.layers.linear import PackedWeights
from model.protocols import SamplingPlan
from model.published.var import load_generator
from model.quantizers.multi_scale import FoldedQuantizer

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
CODES, CODE_DIM, CLASSES = 4096, 32, 1000
GUIDANCE, TOP_K, TOP_P = 1.5, 900, 0.96
SIDES = ("var", "ours")


@dataclass(frozen=True)
class Both:
    """The two generators, the two quantizers, and a batch."""

    var: Any
    their_quantizer: Any
    ours: FoldedGenerator
    our_quantizer: FoldedQuantizer
    label_B: Tensor
    tokens_BL: Tensor


def build(checkout: Path, depth: int, batch: int) -> Both:
    """Their model with their initialization, and ours with its weights."""
    if not (checkout / "models" / "var.py").is_file():
        raise SystemExit(f"--var {checkout}: there is no models/var.py in it; clone FoundationVision/VAR")
    sys.path.append(str(checkout))
    from models import build_vae_var

    torch.manual_seed(0)
    kept = {kind: kind.reset_parameters for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d)}
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer, var = build_vae_var("cpu", SCALES, CODES, CODE_DIM, ch=32, num_classes=CLASSES, depth=depth)
    for kind, reset in kept.items():  # their builder empties these methods for the whole process
        kind.reset_parameters = reset  # type: ignore[method-assign]
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.02)
    var.cond_drop_rate = 0.0
    config = ImageFolderConfig(
        branches=1, scales=SCALES, quantizer=VectorConfig(codebook_size=CODES, code_dim=CODE_DIM)
    )
    ours = load_generator({"patch_nums": SCALES, "num_heads": depth}, var.state_dict(), config)
    for block, theirs in zip(ours.blocks, var.blocks, strict=True):
        block.drop_path = getattr(theirs.drop_path, "drop_prob", 0.0)
    quantizer = FoldedQuantizer(config)
    quantizer.load_state_dict(_quantizer_state(tokenizer.quantize), strict=True)
    label_B, tokens_BL = torch.randint(CLASSES, (batch,)), torch.randint(CODES, (batch, sum(k * k for k in SCALES)))
    return Both(var, tokenizer.quantize, ours, quantizer.requires_grad_(False), label_B, tokens_BL)


def _quantizer_state(theirs: Any) -> dict[str, Tensor]:
    state = {"branches.0.quantizer.codebook": theirs.embedding.weight.detach().clone()}
    for index, conv in enumerate(theirs.quant_resi.qresi_ls):
        state[f"branches.0.residual_convs.{index}.weight"] = conv.weight.detach().clone()
        state[f"branches.0.residual_convs.{index}.bias"] = conv.bias.detach().clone()
    return state


def their_input(both: Both) -> Tensor:
    parts = both.tokens_BL.split([k * k for k in SCALES], dim=1)
    with torch.no_grad():
        made: Tensor = both.their_quantizer.idxBl_to_var_input(parts)
    return made


def our_input(both: Both) -> Tensor:
    with torch.no_grad():
        return both.our_quantizer.generator_input(both.tokens_BL[..., None])


def difference(both: Both) -> float:
    """Largest difference of logits in float32, as a share of their largest."""
    both.var.eval(), both.ours.eval()
    with torch.no_grad():
        theirs = both.var(both.label_B, their_input(both))
        ours = both.ours(both.label_B, our_input(both)).squeeze(2)
    return float((theirs - ours).abs().max() / theirs.abs().max())


def training_step(both: Both, side: str) -> Callable[[], float]:
    """A function that trains a step in bf16 and gives the loss."""
    network = (both.var if side == "var" else both.ours).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    seed_B = torch.arange(len(both.label_B))

    def theirs() -> Tensor:
        input_BMC = their_input(both)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLV = both.var(both.label_B, input_BMC)
            return nn.functional.cross_entropy(logits_BLV.view(-1, CODES), both.tokens_BL.view(-1))

    def own() -> Tensor:
        input_BMC = our_input(both)
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = both.ours(both.label_B, input_BMC, seed_B, both.tokens_BL[..., None])[0]
            return loss

    def step() -> float:
        loss = theirs() if side == "var" else own()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def sampling(both: Both, side: str, bf16: bool) -> Callable[[], float]:
    """A function that samples a batch of tokens with guidance."""
    both.var.eval(), both.ours.eval()
    both.var.vae_proxy[0].fhat_to_img = lambda latent: latent.clone()  # the decoder is another matter
    uniform_BLF = torch.rand(len(both.label_B), both.ours.layout.positions, 1)
    packed = PackedWeights()  # as `Sampler` has them

    def draw() -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if side == "var":
                both.var.autoregressive_infer_cfg(len(both.label_B), both.label_B, 0, GUIDANCE, TOP_K, TOP_P)
            else:
                plan = SamplingPlan(both.label_B, uniform_BLF, GUIDANCE, TOP_K, TOP_P)
                with packed.used():
                    both.ours.sample(plan, both.our_quantizer)
        return 0.0

    return draw


def in_turns(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns; the first round is the warm-up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name in work if number % 2 else reversed(work):
            began = time.process_time()
            work[name]()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def added_memory(both: Both, side: str) -> int:
    """Bytes that this process's first two steps add to its resident memory at the highest; the second has moments."""
    step = training_step(both, side)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = _status("VmRSS")
    step()
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def kept_bytes(both: Both, side: str) -> int:
    """Bytes of the distinct tensors that autograd keeps for backward, without parameters."""
    network = (both.var if side == "var" else both.ours).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        if side == "var":
            logits = both.var(both.label_B, their_input(both))
            loss = nn.functional.cross_entropy(logits.view(-1, CODES), both.tokens_BL.view(-1))
        else:
            seed_B = torch.arange(len(both.label_B))
            loss = both.ours(both.label_B, our_input(both), seed_B, both.tokens_BL[..., None])[0]
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


def measure_memory(options: argparse.Namespace, side: str) -> dict[str, int]:
    """In processes of their own, so that neither side inherits what the other's allocator kept."""
    command = [sys.executable, __file__, "--var", str(options.var), "--depth", str(options.depth)]
    command += ["--batch", str(options.batch), "--memory-of", side]
    mapped = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**10)}
    in_heap, alone = (
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
        for environment in (dict(os.environ), mapped)
    )
    return {"kept": in_heap["kept"], "added": alone["added"], "added_in_heap": in_heap["added"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", type=Path, required=True, help="a checkout of FoundationVision/VAR")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    both = build(options.var.resolve(), options.depth, options.batch)
    if options.memory_of:
        added = added_memory(both, options.memory_of)
        print(json.dumps({"kept": kept_bytes(both, options.memory_of), "added": added}))
        return
    apart = difference(both)
    if apart > 1e-3:
        raise SystemExit(f"the two models differ by {apart:.1e} of their largest logit: this compares nothing")
    memory = {side: measure_memory(options, side) for side in SIDES}
    training = in_turns({side: training_step(both, side) for side in SIDES}, options.rounds)
    draws = {f"{side} {name}": sampling(both, side, name == "bf16") for side in SIDES for name in ("fp32", "bf16")}
    report(options, apart, memory, training, in_turns(draws, options.rounds))


def report(
    options: argparse.Namespace,
    apart: float,
    memory: dict[str, dict[str, int]],
    training: dict[str, list[float]],
    draws: dict[str, list[float]],
) -> None:
    step = {side: statistics.median(seconds) for side, seconds in training.items()}
    draw = {name: statistics.median(seconds) for name, seconds in draws.items()}
    best = min(draw["ours fp32"], draw["ours bf16"])
    rows = [
        ["bf16 training step, s", step["var"], step["ours"], step["var"] / step["ours"]],
        ["kept for backward, MB", memory["var"]["kept"] / 1e6, memory["ours"]["kept"] / 1e6],
        ["memory of two steps, MB", memory["var"]["added"] / 1e6, memory["ours"]["added"] / 1e6],
        ["the same in the C library's heap, MB", *(memory[side]["added_in_heap"] / 1e6 for side in SIDES)],
        ["sampling in fp32, s", draw["var fp32"], draw["ours fp32"], draw["var fp32"] / draw["ours fp32"]],
        ["sampling in bf16, s", draw["var bf16"], draw["ours bf16"], draw["var bf16"] / draw["ours bf16"]],
        ["our best against their default, s", draw["var fp32"], best, draw["var fp32"] / best],
    ]
    figures = {
        "depth": options.depth,
        "batch": options.batch,
        "rounds": options.rounds,
        "threads": options.threads,
        "torch": torch.__version__,
        "largest_difference": apart,
        "training_seconds": training,
        "memory_bytes": memory,
        "sampling_seconds": draws,
    }
    table = [
        [
            row[0],
            *(f"{value:.3g}" for value in row[1:3]),
            f"{row[3]:.2f}" if len(row) > 3 else f"{row[2] / row[1]:.2f} of it",
        ]
        for row in rows
    ]  # type: ignore[str-bytes-safe]
    name = f"against_var: depth {options.depth}, batch {options.batch}, median of {options.rounds}"
    write_report(name, ["", "published VAR", "ours", "times as fast"], table, figures, options.json)


if __name__ == "__main__":
    main()
