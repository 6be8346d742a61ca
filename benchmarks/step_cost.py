"""What a step costs on a device that need not be there: kernels, bytes, FLOPs, time, by phase and operator; predicted.

    python benchmarks/step_cost.py configs/imagefolder/generator-d16.yaml [key=value ...]
        [--stage train-generator | train-tokenizer | train-teacher | train-judge | tokenize | sample]
        [--batch 96] [--device h100] [--compiled] [--tf32] [--json FILE]
        [--half 0.65] [--single 0.75] [--bandwidth 0.8] [--link 0.7] [--kernel 2]

The real networks run on fake tensors, forward and backward, on the branches that a GPU takes, and every operation is
held against the device's peaks (trainer/planning/roofline.py). `--batch` is that of one device: with it there are as
many ranks as make up the global batch, in nodes of 8; without it the config's `cluster.workers` share it.
With `--compiled` all chains of elementwise operations are fused; without, as `trainer.compile` says.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401 - the packages are found through it, where they are not installed
from report import write_report

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.stages.planning import ASSUMED_CLASSES, stage_configs
from trainer.planning.devices import DEVICES, Device, find_device
from trainer.planning.forward_trace import trace_sampling, trace_tokenizing
from trainer.planning.roofline import Assumptions, fuse
from trainer.planning.step_cost import Part, StepCost, cost_of, step_cost, total
from trainer.planning.step_trace import trace_micro_batch

TOP = 20
FORWARD_ONLY = ("tokenize", "sample")


def main() -> None:
    """Trace, hold against the roofline, print."""
    options = arguments()
    device, assumed = chosen_device(options.device), assumptions(options)
    config = load_config(options.config, options.overrides).with_classes(ASSUMED_CLASSES)
    if options.stage in FORWARD_ONLY:
        samples, cost = forward_cost(config, options, device, assumed)
        title = f"{options.stage}, {samples} images on one {device.name}, predicted"
        traced = cost.seconds
    else:
        samples, world, cost = training_cost(config, options, device, assumed)
        title = f"{options.stage}, {samples} samples on each of {world} {device.name}, predicted"
        traced = sum(part.seconds for part in cost.parts if part.phase in {"forward", "backward"})
    rows = [row(part, part.phase) for part in [*cost.phases(), total(cost.parts)]]
    rows += [row(part, f"  {part.phase} {part.name} {part.dtype}") for part in sorted(cost.parts, key=slowest)[:TOP]]
    print(assumed.describe(device) + (", elementwise chains fused" if cost.fused else ", nothing fused"))
    print(f"host syncs: {sum(sync.count for sync in cost.syncs)}")
    for sync in cost.syncs:
        print(f"  {sync.count} x {sync.phase}: {sync.operator} in {sync.place}")
    print(f"forward and backward {traced * 1e3:.1f} ms; whole step {cost.seconds * 1e3:.1f} ms", end="")
    print(f", {samples / cost.seconds:,.0f} samples/s and device")
    columns = ["what", "kernels", "TFLOP", "GB", "ms"]
    write_report(title, columns, rows, figures(options, samples, cost, assumed), options.json)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, as foldtrain takes them")
    parser.add_argument("--stage", default="train-generator")
    parser.add_argument("--batch", type=int, default=None, help="samples of one device")
    parser.add_argument("--device", default="H100 SXM")
    parser.add_argument("--compiled", action="store_true", default=None)
    parser.add_argument("--json", type=Path, default=None)
    standard = Assumptions()
    parser.add_argument("--half", type=float, default=standard.half_share, help="share of the peak in 16 bits")
    parser.add_argument("--single", type=float, default=standard.single_share, help="share of the peak in float32")
    parser.add_argument("--tf32", action="store_true", help="float32 products as TF32")
    parser.add_argument("--bandwidth", type=float, default=standard.bandwidth_share, help="share of the memory's")
    parser.add_argument("--link", type=float, default=standard.link_share, help="share of that between devices")
    parser.add_argument("--kernel", type=float, default=standard.shortest_kernel * 1e6, help="us of a kernel at least")
    return parser.parse_intermixed_args()


def chosen_device(name: str) -> Device:
    """An entry of the table, or the end of the program."""
    found = find_device(name)
    if found is None:
        raise SystemExit(f"{name} is not in the table: {', '.join(device.name for device in DEVICES)}")
    return found


def assumptions(options: argparse.Namespace) -> Assumptions:
    """As the command line has them."""
    return Assumptions(
        half_share=options.half,
        single_share=options.single,
        bandwidth_share=options.bandwidth,
        link_share=options.link,
        shortest_kernel=options.kernel * 1e-6,
        tf32=options.tf32,
    )


def training_cost(
    config: RunConfig, options: argparse.Namespace, device: Device, assumed: Assumptions
) -> tuple[int, int, StepCost]:
    """Samples of a device and step, ranks, and the cost of a step."""
    configs = stage_configs(config, options.stage)
    trainer = configs.section(options.stage).trainer
    world = config.cluster.most_workers
    if options.batch is not None:
        trainer, world = trainer.model_copy(update={"micro_batch": None}), -(-trainer.global_batch // options.batch)
        trainer = trainer.model_copy(update={"global_batch": options.batch * world})
    micro, accumulation = trainer.split_over(world)
    trace = trace_micro_batch(options.stage, configs, micro, "cuda", accumulates=accumulation > 1, warm=True)
    nodes = -(-world // 8)
    cost = step_cost(trace, trainer, device, assumed, world=world, nodes=nodes, fused=options.compiled)
    return micro * accumulation, world, cost


def forward_cost(
    config: RunConfig, options: argparse.Namespace, device: Device, assumed: Assumptions
) -> tuple[int, StepCost]:
    """Images of a batch, and its cost."""
    configs, fused = stage_configs(config, options.stage), bool(options.compiled)
    if options.stage == "tokenize":
        trace = trace_tokenizing(configs, options.batch or config.tokens.batch, "cuda")
    else:
        trace = trace_sampling(configs, config.sampling, options.batch or config.sampling.batch, "cuda")
    operations = fuse(trace.operations) if fused else trace.operations
    parts = cost_of(Counter(operation.kernel for operation in operations), device, assumed)
    return trace.samples, StepCost(device, assumed, fused, tuple(parts), trace.syncs)


def slowest(part: Part) -> float:
    """Key that sorts the longest first."""
    return -part.seconds


def row(part: Part, name: str) -> list[str]:
    """Of the table."""
    return [
        name,
        f"{part.kernels:,.0f}",
        f"{part.flops / 1e12:.3f}",
        f"{part.bytes / 1e9:.2f}",
        f"{part.seconds * 1e3:.2f}",
    ]


def figures(options: argparse.Namespace, samples: int, cost: StepCost, assumed: Assumptions) -> dict[str, Any]:
    """What `--json` writes."""
    phases = {part.phase: asdict(replace(part, phase="", name="")) for part in [*cost.phases(), total(cost.parts)]}
    return {
        "predicted": True,
        "config": str(options.config),
        "overrides": options.overrides,
        "stage": options.stage,
        "device": cost.device.name,
        "assumptions": asdict(assumed) | {"fused": cost.fused},
        "samples": samples,
        "phases": phases,
        "parts": [asdict(part) for part in cost.parts],
        "host_syncs": [asdict(sync) for sync in cost.syncs],
    }


if __name__ == "__main__":
    main()
