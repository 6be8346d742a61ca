"""Published generators and ours with the same weights on this machine: training steps, their memory, and sampling.

    git clone https://github.com/FoundationVision/LlamaGen /somewhere/LlamaGen
    python benchmarks/generator.py --family llamagen=/somewhere/LlamaGen --family var=/somewhere/VAR [--json FILE]
        [--size var=d16] [--batch 2] [--rounds 3] [--only training|sampling|memory|predicted]

A family is a file beside this one, generator_NAME.py, with `build(Options) -> Pair` (generator_sides.py). Both get the
same weights, batch, optimizer and number of warm-up rounds, and take turns in each round. A training step is
forward, loss, backward and AdamW with products in bf16; sampling is with guidance, up to the tokens. Memory is what the
first two steps add to the resident memory of a fresh process at its highest (Linux), each block of more than 64 KiB
mapped by itself, so that no fragments of a heap count.

Beside what is measured stands the same predicted for a GPU, by tracing both sides at the published size
(generator_predicted.py): float32 as TF32, of --predicted-batch samples.

Seconds are of the processor (`time.process_time`), which a busy machine hardly changes, with one thread unless
--threads says otherwise: threads that wait for one another count as busy. Nothing of a checkout is copied.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401
import torch
from generator_sides import Options, Pair, Side
from report import write_report

from trainer.planning.devices import find_device
from trainer.planning.roofline import Assumptions

LARGEST_DIFFERENCE = 1e-3
PARTS = ("training", "memory", "sampling", "predicted")
SIDES = ("theirs", "ours")


def build(family: str, options: Options) -> Pair:
    """The two sides of a family.

    Raises:
        SystemExit: if there is no such family, or its checkout is none.
    """
    known = sorted(path.stem.partition("_")[2] for path in Path(__file__).parent.glob("generator_*.py"))
    known = [name for name in known if name not in {"sides", "predicted"}]
    if family not in known:
        raise SystemExit(f"--family {family}: there are {', '.join(known)}")
    torch.manual_seed(0)
    pair: Pair = importlib.import_module(f"generator_{family}").build(options)
    return pair


def training_step(side: Side) -> Callable[[], object]:
    """A function that trains a step."""
    optimizer = torch.optim.AdamW(side.network.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step() -> float:
        side.network.train()
        loss = side.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def in_turns(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns; the first round is the warm-up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name in work if number % 2 else reversed(list(work)):
            began = time.process_time()
            work[name]()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def added_memory(side: Side) -> int:
    """Bytes that this process's first two steps add to its resident memory at the highest; the second has moments."""
    step = training_step(side)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = _status("VmRSS")
    step()
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def kept_bytes(side: Side) -> int:
    """Bytes of the distinct tensors that autograd keeps for backward, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in side.network.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = side.network.train() and side.loss()
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


def measure_memory(family: str, options: Options) -> dict[str, dict[str, int]]:
    """In processes of their own, so that neither side inherits what the other's allocator kept."""
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--family", f"{family}={options.checkout}", "--batch", str(options.batch)]
        command += ["--size", f"{family}={options.size}", "--memory-of", side]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**10)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(family: str, options: Options, rounds: int, parts: tuple[str, ...]) -> dict[str, Any]:
    """All figures of a family.

    Raises:
        SystemExit: if the two are not the same network.
    """
    pair = build(family, options)
    apart = pair.difference()
    if not apart <= LARGEST_DIFFERENCE:
        raise SystemExit(f"{family}: the two differ by {apart:.1e} of their largest output: this compares nothing")
    figures: dict[str, Any] = {"sizes": pair.sizes, "largest_difference": apart}
    sides = {"theirs": pair.theirs, "ours": pair.ours}
    if "memory" in parts:
        figures["memory_bytes"] = measure_memory(family, options)
    if "training" in parts:
        figures["training_seconds"] = in_turns({name: training_step(side) for name, side in sides.items()}, rounds)
    if "sampling" in parts:
        for side in sides.values():
            side.network.eval()
        draws = {f"{name} {kind}": draw for name, side in sides.items() for kind, draw in side.draws.items()}
        draws |= {f"naive {kind}": draw for kind, draw in pair.naive.items()}
        figures["sampling_seconds"] = in_turns(draws, rounds)
    return figures


def predict(family: str, checkout: Path, batch: int, device: str) -> dict[str, Any]:
    """What `generator_predicted.py` finds.

    Raises:
        SystemExit: if the table has no such device.
    """
    import generator_predicted

    found = find_device(device)
    if found is None:
        raise SystemExit(f"--device {device}: it is not in trainer/planning/devices.py")
    return generator_predicted.predicted(family, checkout, batch, found, Assumptions(tf32=True))


def predicted_rows(family: str, found: dict[str, Any]) -> list[list[str]]:
    """Milliseconds by what is done, and kernels; a reason where published code could not be traced."""
    rows = []
    for what in ("training", "sampling fp32", "sampling bf16"):
        sides, title = found[what], f"{what} of {found['batch']} on {found['device']}, predicted, ms"
        if "theirs" in sides:
            for key, how in (("seconds", ""), ("fused_seconds", ", chains fused")):
                rows.append(_row(family, title + how, *(sides[side][key] * 1e3 for side in SIDES)))
        else:
            reason = found["not_traced"][what]
            rows.append([family, title, reason, f"{sides['ours']['seconds'] * 1e3:.3g}", "", ""])
    return rows


def rows_of(family: str, figures: dict[str, Any]) -> list[list[str]]:
    """What the table shows of a family: theirs, ours, how many times as fast ours is, and the naive draw."""
    rows = []
    if "training_seconds" in figures:
        step = {side: statistics.median(seconds) for side, seconds in figures["training_seconds"].items()}
        rows.append(_row(family, "bf16 training step, s", step["theirs"], step["ours"]))
    for key, name in (("kept", "kept for backward, MB"), ("added", "memory of two steps, MB")):
        if "memory_bytes" in figures:
            theirs, ours = (figures["memory_bytes"][side][key] / 1e6 for side in SIDES)
            rows.append([family, name, f"{theirs:.4g}", f"{ours:.4g}", f"{ours / theirs:.2f} of it", ""])
    draws = {name: statistics.median(seconds) for name, seconds in figures.get("sampling_seconds", {}).items()}
    for kind in ("fp32", "bf16"):
        if f"ours {kind}" in draws:
            naive = draws.get(f"naive {kind}")
            rows.append(_row(family, f"sampling in {kind}, s", draws[f"theirs {kind}"], draws[f"ours {kind}"], naive))
    return rows + (predicted_rows(family, figures["predicted"]) if "predicted" in figures else [])


def _row(family: str, name: str, theirs: float, ours: float, naive: float | None = None) -> list[str]:
    beside = "" if naive is None else f"{naive:.3g} ({naive / ours:.2f})"
    return [family, name, f"{theirs:.3g}", f"{ours:.3g}", f"{theirs / ours:.2f}", beside]


def named(values: list[str], what: str) -> dict[str, str]:
    """NAME=VALUE, several times.

    Raises:
        SystemExit: if one has another form.
    """
    if any("=" not in value for value in values):
        raise SystemExit(f"{what}: give NAME=VALUE")
    return {name: rest for name, _, rest in (value.partition("=") for value in values)}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", required=True, help="NAME=CHECKOUT of the published code")
    parser.add_argument("--size", action="append", default=[], help="NAME=SIZE; each family has its default")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--predicted-batch", type=int, default=64)
    parser.add_argument("--device", default="H100 SXM", help="of the predictions")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sizes, checkouts = named(asked.size, "--size"), named(asked.family, "--family")
    options = {
        family: Options(Path(place).resolve(), sizes.get(family, ""), asked.batch)
        for family, place in checkouts.items()
    }
    if asked.memory_of:
        (family,) = options
        pair = build(family, options[family])
        side: Side = getattr(pair, asked.memory_of)
        added = added_memory(side)
        print(json.dumps({"kept": kept_bytes(side), "added": added}))
        return
    parts = tuple(asked.only or PARTS)
    measured = tuple(part for part in parts if part != "predicted")
    found = {
        family: measure(family, each, asked.rounds, measured) if measured else {} for family, each in options.items()
    }
    if "predicted" in parts:
        for family, each in options.items():
            found[family]["predicted"] = predict(family, each.checkout, asked.predicted_batch, asked.device)
    how = {"batch": asked.batch, "rounds": asked.rounds, "threads": asked.threads, "torch": torch.__version__}
    table = [row for family, figures in found.items() for row in rows_of(family, figures)]
    columns = ["family", "", "published", "ours", "times as fast", "naive (times ours)"]
    write_report(f"generator: batch {asked.batch}, median of {asked.rounds}", columns, table, how | found, asked.json)


if __name__ == "__main__":
    main()
