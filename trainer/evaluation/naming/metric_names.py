"""What metrics are called, and what a title says beside: of what, by which network, of which part.

FID, sFID and IS mean the published 2015 Inception. The same distances in other features have other names, which carry
the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.text.printable import printable
from trainer.evaluation.naming.numbers import Leaves, Number, leaves

INCEPTION = "inception-2015"
"""Name of the network in whose features a Fréchet distance is called FID."""
_LONGEST = 60
"""Characters of a value."""
PART_KEYS = ("branch", "feature", "scale", "size")
"""Of a protocol: which part of the tokenizer or of the images a number is of. The rest of a protocol is how."""


@dataclass(frozen=True)
class Metric:
    """How a metric is called."""

    title: str
    better: Literal["lower", "higher", ""] = ""
    """Which of two is better; empty if neither is by itself."""
    by_features: bool = False
    """Whether it depends on a network's features, so that its name carries the network."""


METRICS = {
    "fid": Metric("FID", "lower", by_features=True),
    "sfid": Metric("sFID", "lower", by_features=True),
    "inception_score": Metric("IS", "higher", by_features=True),
    "precision": Metric("precision", "higher", by_features=True),
    "recall": Metric("recall", "higher", by_features=True),
    "frechet_distance": Metric("Fréchet distance", "lower", by_features=True),
    "spatial_frechet_distance": Metric("Fréchet distance of spatial features", "lower", by_features=True),
    "class_accuracy": Metric("class accuracy", "higher", by_features=True),
    "class_accuracy_top5": Metric("top-5 class accuracy", "higher", by_features=True),
    "class_accuracy_of_real_images": Metric("class accuracy of real images", "higher", by_features=True),
    "memorized_share": Metric("share of samples near a training image", "lower", by_features=True),
    "mse": Metric("squared error", "lower"),
    "psnr": Metric("PSNR", "higher"),
    "ssim": Metric("SSIM", "higher"),
    "lpips": Metric("LPIPS", "lower"),
    "linear_probe_accuracy": Metric("linear probe", "higher"),
    "text_accuracy": Metric("text accuracy", "higher"),
    "code_use": Metric("code use", "higher"),
    "code_perplexity": Metric("code perplexity", "higher"),
    "dead_codes": Metric("dead codes", "lower"),
}


def metric_of(number: Number) -> Metric:
    """What is known of its metric; of another one its name alone."""
    return METRICS.get(number.metric) or Metric(number.metric.replace("_", " "))


def title(number: Number) -> str:
    """What it is called, without its value: FID, rFID, pFID, Fréchet distance (teacher) of reconstructions.

    What is of one branch or scale of the tokens, or of text of one size, says of which: code use of detail, scale 3.
    """
    part = part_of(number)
    of = next((f" of {shown_value(part[key])}" for key in ("branch", "feature") if key in part), "")
    scale = f", scale {shown_value(part['scale'])}" if "scale" in part else ""
    size = f", {shown_value(part['size'])} px" if "size" in part else ""
    return f"{_title(number)}{of}{scale}{size}"


def part_of(number: Number) -> Leaves:
    """Of its protocol what says which part of the tokenizer or of the images it is of."""
    found = leaves(number.measured_by.get("protocol"))
    return {key: found[key] for key in PART_KEYS if key in found}


def without_part(number: Number) -> dict[str, Any]:
    """Its `measured_by` without that, which the title says."""
    protocol = number.measured_by.get("protocol")
    if not isinstance(protocol, dict):
        return number.measured_by
    return number.measured_by | {"protocol": {key: protocol[key] for key in protocol if key not in PART_KEYS}}


def _title(number: Number) -> str:
    metric, network = metric_of(number), network_name(number)
    if not metric.by_features:
        return metric.title
    is_fid = number.metric in {"fid", "sfid"} and network in {"", INCEPTION}
    if is_fid and number.pictures == "reconstructions":
        return ("p" if leaves(number.measured_of.get("perturbation")) else "r") + metric.title
    name = metric.title
    if network not in {"", INCEPTION}:
        renamed = {"fid": "frechet_distance", "sfid": "spatial_frechet_distance"}
        name = f"{METRICS[renamed[number.metric]].title if number.metric in renamed else name} ({network})"
    return f"{name} of reconstructions" if number.pictures == "reconstructions" else name


def network_name(number: Number) -> str:
    """Name of the network that measured it, without its hash; empty if none is on record."""
    network = number.measured_by.get("network")
    found = (network.get("name") or network.get("kind")) if isinstance(network, dict) else network
    return "" if found is None else shown_value(found)


def shown_value(value: Any) -> str:
    """A value of `measured_by` or `measured_of` in a few characters; of a hash its first 8 digits."""
    if value is None:
        return "not set"
    if isinstance(value, str):
        is_hash = len(value) >= 16 and not set(value) - set("0123456789abcdef")
        text = value[:8] if is_hash else value
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = f"{value:.12g}" if isinstance(value, float) else str(value)
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
