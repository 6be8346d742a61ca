"""The papers' claims of speed, at full size with random weights: images per second with decoding; predicted.

    python benchmarks/speed_claims.py [--only NAME ...] [--device A100 --device "H100 SXM"] [--batch 128]
        [--precision fp32|bf16] [--no-tf32] [--json FILE]

Each row is a config of this repository, sampled as it says: its steps, its guidance, its decoder. The real networks run
on fake tensors (trainer/planning/forward_trace.py), and each operation is held against the device's peaks, eagerly, as
`benchmarks/step_cost.py CONFIG --stage sample` does. Published figures are of one A100, float32 as TF32 and batches of
128, decoding included. What launches kernels, and noise on the device, are in them and not in a prediction.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import root_on_path
from report import write_report

from cluster.config.loading import load_config
from cluster.stages.planning import ASSUMED_CLASSES, stage_configs
from model.config.masked import MaskedOptions
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.devices import DEVICES, Device, find_device
from trainer.planning.forward_trace import ForwardTrace, trace_sampling
from trainer.planning.roofline import Assumptions
from trainer.planning.step_cost import cost_of

CONFIGS = Path(root_on_path.__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Claim:
    """A system, and what its paper or the papers that compare with it say of its speed."""

    name: str
    config: str
    """In configs/."""
    against: str
    """The row that it is compared with; its own name where others are compared with it."""
    published: float | None = None
    """Images per second; None where no figure is known."""
    overrides: tuple[str, ...] = ()


VQGAN_512 = ("tokenizer.model.image_size=512", "tokenizer.model.scales=[32]")
CLAIMS = (
    Claim("VAR d16", "generator/var-d16.yaml", "VAR d16"),
    Claim("ImageFolder d16", "imagefolder/generator-d16.yaml", "VAR d16"),
    Claim("ImageFolder d17", "imagefolder/generator-d17.yaml", "VAR d16"),
    Claim("VAR d30", "generator/var-d30.yaml", "VAR d30", 17.3),
    Claim("ImageFolder d30", "imagefolder/generator-d30.yaml", "VAR d30"),
    Claim("MaskGIT", "generator/maskgit-vqgan-256.yaml", "MaskGIT", 50.5),
    Claim("TiTok L-32", "generator/maskgit-titok-l-32.yaml", "MaskGIT", 101.6),
    Claim("TiTok B-64", "generator/maskgit-titok-b-64.yaml", "MaskGIT", 89.8),
    Claim("TiTok S-128, 8 steps", "generator/maskgit-titok-s-128-8-steps.yaml", "MaskGIT", 53.3),
    Claim("TiTok S-128", "generator/maskgit-titok-s-128.yaml", "MaskGIT", 7.8),
    Claim("RAR-B", "generator/rar-b.yaml", "MaskGIT", 17.0),
    Claim("MaskGIT, 512 px", "generator/maskgit-vqgan-256.yaml", "MaskGIT, 512 px", 3.9, VQGAN_512),
    Claim("TiTok L-64, 512 px", "generator/maskgit-titok-512-l-64.yaml", "MaskGIT, 512 px", 41.0),
    Claim(
        "TiTok B-128, 512 px, 8 steps",
        "generator/maskgit-titok-512-b-128.yaml",
        "MaskGIT, 512 px",
        33.3,
        ("sampling.order.steps=8",),
    ),
    Claim("TiTok B-128, 512 px", "generator/maskgit-titok-512-b-128.yaml", "MaskGIT, 512 px", 7.4),
)


def main() -> None:
    """Trace what is asked for, and table it."""
    options = arguments()
    devices = [chosen_device(name) for name in options.device or ("A100", "H100 SXM")]
    assumed = Assumptions(tf32=not options.no_tf32)
    claims = [claim for claim in CLAIMS if not options.only or claim.name in options.only]
    if missing := set(options.only or ()) - {claim.name for claim in claims}:
        raise SystemExit(f"--only {', '.join(sorted(missing))}: there are {', '.join(claim.name for claim in CLAIMS)}")
    found = {claim.name: predicted(claim, options.batch, options.precision, devices, assumed) for claim in claims}
    for device in devices:
        print(assumed.describe(device))
    how = {"predicted": True, "batch": options.batch, "precision": options.precision, "assumptions": asdict(assumed)}
    columns = [
        "",
        "positions x folds",
        "steps",
        *(f"{d.name}: images/s" for d in devices),
        "times as fast",
        "published",
    ]
    title = f"images/s with decoding, batches of {options.batch}, {options.precision}, predicted"
    write_report(title, [*columns, "times as fast"], rows_of(claims, found), how | {"claims": found}, options.json)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="rows, by name")
    parser.add_argument("--device", action="append", help="of the table in trainer/planning/devices.py")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--no-tf32", action="store_true", help="float32 products in float32")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def chosen_device(name: str) -> Device:
    """An entry of the table, or the end of the program."""
    found = find_device(name)
    if found is None:
        raise SystemExit(f"--device {name}: there are {', '.join(device.name for device in DEVICES)}")
    return found


def predicted(
    claim: Claim, batch: int, precision: str, devices: Sequence[Device], assumed: Assumptions
) -> dict[str, Any]:
    """Of a row: what is drawn, in how many steps, and images per second by device."""
    given = load_config(CONFIGS / claim.config, [*claim.overrides, f"sampling.precision={precision}"])
    config = given.with_classes(ASSUMED_CLASSES)
    configs = stage_configs(config, "sample")
    trace = trace_sampling(configs, config.sampling, batch, "cuda")
    layout = configs.tokenizer_model.layout
    figures = {
        "config": claim.config,
        "overrides": list(claim.overrides),
        "positions": layout.positions,
        "folds": layout.folds,
        "steps": steps_of(configs, config.sampling.order.get("steps")),
        "kernels": len(trace.operations),
        "flops": sum(operation.flops for operation in trace.operations),
        "images_per_second": {device.name: rate(trace, device, assumed) for device in devices},
        "published": claim.published,
        "against": claim.against,
    }
    print(f"{claim.name}: {figures['images_per_second']}", flush=True)
    return figures


def steps_of(configs: StageConfigs, asked: int | None) -> int:
    """Passes through the network: of a masked order as many as asked, else a group or a position each."""
    section, layout = configs.generator, configs.tokenizer_model.layout
    assert section is not None
    if section.model.order_options is MaskedOptions:
        return asked or MaskedOptions().steps
    return layout.positions if section.model.draws_one_by_one else len(layout.groups)


def rate(trace: ForwardTrace, device: Device, assumed: Assumptions) -> float:
    """Images per second."""
    parts = cost_of(Counter(operation.kernel for operation in trace.operations), device, assumed)
    return trace.samples / sum(part.seconds for part in parts)


def rows_of(claims: Sequence[Claim], found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """What the table shows; ratios are to the row that a system is compared with, on the first device."""
    published = {claim.name: claim.published for claim in claims}
    rows = []
    for claim in claims:
        own, base = found[claim.name], found.get(claim.against)
        rates = own["images_per_second"]
        first = next(iter(rates))
        times = "" if base is None else f"{rates[first] / base['images_per_second'][first]:.2f}"
        theirs, its = claim.published, published.get(claim.against)
        said = "" if theirs is None or its is None else f"{theirs / its:.2f}"
        rows.append(
            [
                claim.name,
                f"{own['positions']} x {own['folds']}",
                str(own["steps"]),
                *(f"{each:.1f}" for each in rates.values()),
                times,
                "" if theirs is None else f"{theirs:g}",
                said,
            ]
        )
    return rows


if __name__ == "__main__":
    main()
