"""What only a GPU can show, in one process and without Ray: attention, training, encoding, sampling, checkpoints.

    python benchmarks/gpu.py [--depths 16 20 24 30] [--batch 32] [--rounds 10] [--json FILE]
    python benchmarks/gpu.py --toy            # toy sizes; runs on a CPU, too, and its figures say nothing about a GPU

A variant that this device cannot run is shown with the reason, and what runs out of memory with that. MFU counts the
model's products, and attention over the pairs of positions that see each other; it is left out where the peak of the
device is not known.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import root_on_path  # noqa: F401
import torch
from report import write_report
from torch import Tensor, nn

from model.config import ImageFolderConfig, NextScaleConfig, NextTokenConfig, VectorConfig, ViTConfig
from model.families import build_generator
from model.generators.next_scale import FoldedGenerator
from model.layers import attention
from model.layers.attention import BACKENDS, attend
from model.layers.flash_attention import flash_refusal
from model.layers.flex_attention import flex_refusal
from model.layers.precision import cast_once
from model.layers.visibility import GroupCausal
from model.protocols import SamplingPlan
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.engine.blocks import compile_blocks
from trainer.engine.device import given_device
from trainer.evaluation.samples.recorded import RecordedDrawing
from trainer.planning.devices import mfu, peak_flops

SMALL = ViTConfig(width=64, depth=2, heads=2)
BASE = ViTConfig(width=768, depth=12, heads=12)
TOY = ImageFolderConfig(
    image_size=32,
    patch_size=8,
    encoder=SMALL,
    decoder=SMALL,
    scales=(1, 2, 4),
    quantizer=VectorConfig(codebook_size=256, code_dim=8),
)
FULL = ImageFolderConfig(encoder=BASE, decoder=BASE)
VARIANTS = (("sdpa", False), ("flash_attn", False), ("flex", False), ("sdpa", True), ("flex", True))
"""Attention backend, and whether blocks are compiled."""


@dataclass(frozen=True)
class Found:
    """One row: what was measured, its value with a unit, or why it was not."""

    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """The device and the sizes of a run."""

    device: torch.device
    tokenizer: ImageFolderConfig
    generators: tuple[NextScaleConfig, ...]
    next_token: NextTokenConfig
    batch: int
    rounds: int

    def seconds(self, work: Callable[[], object]) -> float:
        """Median of the rounds, after two that do not count; the device has finished before each clock is read."""
        times = []
        for number in range(self.rounds + 2):
            self.finish()
            began = time.perf_counter()
            work()
            self.finish()
            if number >= 2:
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def generator(self, config: NextScaleConfig) -> FoldedGenerator:
        return FoldedGenerator(config, self.tokenizer.layout, self.tokenizer.forcing_width).to(self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device=self.device)


def attempt(what: str, work: Callable[[], Found]) -> Found:
    """What was found, or why not: one variant that fails must not cost the others their figures."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return Found(what, note="out of memory")
    except Exception as error:
        return Found(what, note=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:80])
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def refusal(bench: Bench, backend: str, head_dim: int) -> str | None:
    """Why a backend does not run on this device."""
    if backend == "flex":
        return flex_refusal(bench.device, head_dim)
    return flash_refusal(bench.device, torch.bfloat16, head_dim) if backend == "flash_attn" else None


@contextlib.contextmanager
def backend_of(name: str) -> Iterator[None]:
    """Every call takes this backend inside."""
    chosen = attention._chosen
    attention._chosen = lambda *_: name  # type: ignore[assignment]
    try:
        yield
    finally:
        attention._chosen = chosen


def attention_rows(bench: Bench) -> Iterator[Found]:
    """Time of forward and backward of each backend, and how far it is from the reference."""
    config = bench.generators[0]
    groups, dim = GroupCausal(bench.tokenizer.layout.groups), config.width // config.heads
    torch.manual_seed(0)
    shape = (bench.batch, groups.positions, config.heads, dim)
    tensors = [torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for _ in range(4)]
    exact = _attention_pass(tensors, groups, "plain")()

    def measured(backend: str) -> Found:
        work = _attention_pass(tensors, groups, backend)
        apart = max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(work(), exact, strict=True))
        seconds = bench.seconds(work)
        return Found(
            f"attention {backend}", seconds * 1e3, "ms", f"forward and backward, {apart:.1e} off the reference"
        )

    for backend in BACKENDS:
        why = refusal(bench, backend, dim)
        yield (
            Found(f"attention {backend}", note=why)
            if why
            else attempt(f"attention {backend}", lambda backend=backend: measured(backend))
        )


def _attention_pass(tensors: list[Tensor], groups: GroupCausal, backend: str) -> Callable[[], tuple[Tensor, ...]]:
    def work() -> tuple[Tensor, ...]:
        q, k, v = (tensor.detach().requires_grad_() for tensor in tensors[:3])
        out = attend(q, k, v, groups, backend=backend)
        return (out, *torch.autograd.grad(out, (q, k, v), tensors[3]))

    return work


def training_rows(bench: Bench) -> Iterator[Found]:
    """Images per second of a step (input, forward, backward, AdamW in bf16) for each size and variant."""
    for config in bench.generators:
        for backend, compiles in (
            ("sdpa", False),
            ("flash_attn", False),
            ("flex", False),
            ("sdpa", True),
            ("flex", True),
        ):
            name = f"train d{config.depth} {backend}{' compiled' if compiles else ''}"
            why = refusal(bench, backend, config.width // config.heads)
            if why:
                yield Found(name, note=why)
                continue
            with backend_of(backend):
                yield attempt(name, lambda c=config, n=name, k=compiles: _trained(bench, c, n, k))


def _trained(bench: Bench, config: NextScaleConfig, name: str, compiles: bool) -> Found:
    network, quantizer = bench.generator(config).train(), FoldedQuantizer(bench.tokenizer).to(bench.device)
    if compiles:
        compile_blocks(network)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    tokens, label = (
        bench.zeros(bench.batch, bench.tokenizer.layout.positions, bench.tokenizer.branches),
        bench.zeros(bench.batch),
    )

    def step() -> None:
        with bench.autocast():
            with torch.no_grad():
                inputs = quantizer.generator_input(tokens)
            loss = network(label, inputs, label, tokens)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = bench.seconds(step)
    note = (
        "" if bench.device.type != "cuda" else f"{torch.cuda.max_memory_allocated(bench.device) / 1e9:.1f} GB at most"
    )
    peak = peak_flops(torch.cuda.get_device_name(bench.device), "bf16") if bench.device.type == "cuda" else None
    if peak:
        share = mfu(bench.batch * flops_of_sample(network), seconds, peak, 1)
        note = f"MFU {share:.1%}, {note}"
    return Found(name, bench.batch / seconds, "images/s", note)


def flops_of_sample(network: FoldedGenerator) -> int:
    """Operations of forward and backward: products of each position (AdaLN: of each sample), attention among pairs."""
    layout, config = network.layout, network.config
    per_forward = 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            rows = 1 if "adaln" in name else layout.positions
            per_forward += 2 * rows * layer.weight.numel()
    pairs = sum(size * end for size, end in zip(layout.groups, layout.offsets[1:], strict=True))
    return 3 * (per_forward + config.depth * 4 * pairs * config.width)


def encoding_rows(bench: Bench) -> Iterator[Found]:
    """Images per second of the tokenizer's encoder and quantizer."""
    side = bench.tokenizer.image_size

    def measured(bf16: bool) -> Found:
        network = ImageFolderTokenizer(bench.tokenizer).to(bench.device).eval()
        image = torch.zeros(bench.batch, 3, side, side, device=bench.device)

        def work() -> Tensor:
            with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16):
                return network.tokenize(image)

        return Found(f"encode {'bf16' if bf16 else 'fp32'}", bench.batch / bench.seconds(work), "images/s")

    for bf16 in (False, True):
        yield attempt("encode", lambda bf16=bf16: measured(bf16))


def sampling_rows(bench: Bench) -> Iterator[Found]:
    """Images per second of sampling with guidance, tokens to pixels: launched one by one, and as one CUDA graph."""
    for config in (*bench.generators, bench.next_token):
        name = f"sample d{config.depth}" if config.kind == "next-scale" else f"sample {config.kind} {config.width}"
        for graphs in (False, True):
            what = f"{name}, one graph" if graphs else name
            yield attempt(what, lambda config=config, what=what, graphs=graphs: _sampled(bench, config, what, graphs))


def _sampled(bench: Bench, config: NextScaleConfig | NextTokenConfig, what: str, graphs: bool) -> Found:
    if graphs and bench.device.type != "cuda":
        return Found(what, note="only a GPU records what it is told")
    layout, tokenizer = bench.tokenizer.layout, ImageFolderTokenizer(bench.tokenizer).to(bench.device).eval()
    width = bench.tokenizer.forcing_width if config.needs_forcing else None
    network, drawn = build_generator(config, layout, width), RecordedDrawing()
    module = cast("nn.Module", network).to(bench.device).eval()
    uniform = torch.rand(bench.batch, layout.positions, layout.folds, device=bench.device)
    plan = SamplingPlan(bench.zeros(bench.batch), uniform, 3.25, 750, 0.95)

    def tokens(plan: SamplingPlan) -> Tensor:
        with cast_once(module), bench.autocast():
            return network.sample(plan, tokenizer.quantizer)

    def work() -> Tensor:
        with torch.no_grad():
            tokens_BLF = drawn.draw(tokens, plan) if graphs else tokens(plan)
            with bench.autocast():
                return tokenizer.detokenize(tokens_BLF)

    return Found(what, bench.batch / bench.seconds(work), "images/s", "bf16, guidance, pixels")


def checkpoint_rows(millions: int, device: torch.device) -> Iterator[Found]:
    """How long a checkpoint keeps training waiting, as benchmarks/checkpoint_blocked.py has it, with one worker."""
    from checkpoint_blocked import medians

    def measured() -> Found:
        seconds = medians(millions, 1, 0, device=device.type)
        note = f"of {millions} million parameters; DeepSpeed's own: {seconds['synchronous'] * 1e3:.1f} ms"
        return Found("checkpoint blocks", seconds["blocked"] * 1e3, "ms", note)

    yield attempt("checkpoint blocks", measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 20, 24, 30])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU where there is no GPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu and not options.toy:
        raise SystemExit("benchmarks/gpu.py: torch sees no GPU; --toy runs toy sizes on the CPU")
    device = given_device(1 if gpu else 0)
    depths = (2,) if options.toy else tuple(options.depths)
    sizes = {"num_classes": 1000} if not options.toy else {"num_classes": 10}
    width = 64 if not options.toy else 32
    generators = tuple(NextScaleConfig(depth=d, width=width * d, heads=d, **sizes) for d in depths)
    tokenizer, batch, rounds = (TOY, 4, 2) if options.toy else (FULL, options.batch, options.rounds)
    next_token = NextTokenConfig(
        rotary="line", **sizes, **({"depth": 2, "width": 64, "heads": 2} if options.toy else {})
    )
    bench = Bench(device, tokenizer, generators, next_token, batch, rounds)
    parts = (attention_rows(bench), training_rows(bench), encoding_rows(bench), sampling_rows(bench))
    rows = [row for part in (*parts, checkpoint_rows(1 if options.toy else 300, device)) for row in part]
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    figures: dict[str, Any] = {
        "device": name,
        "toy": options.toy,
        "batch": batch,
        "rows": [asdict(row) for row in rows],
    }
    shown = [[row.what, "" if row.value is None else f"{row.value:.4g} {row.unit}", row.note] for row in rows]
    title = f"gpu: {name}, batch {batch}{', toy sizes: these figures say nothing about a GPU' if options.toy else ''}"
    write_report(title, ["", "measured", ""], shown, figures, options.json)


if __name__ == "__main__":
    main()
