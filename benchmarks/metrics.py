"""Time and memory of the numbers that are computed of features: sums, Fréchet distance, precision and recall.

    python benchmarks/metrics.py [--images 10000] [--channels 2048] [--json OUT]

Features are drawn: rectified, of variances from 1 to 1e-5. Memory is what each step takes at most, beside the
features and the statistics. Linux only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import write_report
from torch_fidelity.metric_fid import fid_statistics_to_metric

from trainer.metrics.frechet import FeatureStatistics, FeatureSums, frechet_distance
from trainer.metrics.manifold import precision_recall

BATCH = 250


def features(images: int, channels: int, seed: int, scale: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(channels, channels)))
    mixing = (turned * np.logspace(0, -2.5, channels) * scale).astype(np.float32)
    found = np.empty((images, channels), np.float32)
    for first in range(0, images, BATCH):
        drawn = rng.standard_normal((min(BATCH, images - first), channels), np.float32)
        found[first : first + BATCH] = np.maximum(drawn @ mixing + 0.1, 0)
    return found


def measured(step: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a step gives, its seconds of processor time, and the MiB that it takes at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = status("VmRSS"), time.process_time()
    found = step()
    return found, time.process_time() - start, status("VmHWM") - before


def status(name: str) -> float:
    """MiB, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def statistics(features_ND: np.ndarray) -> FeatureStatistics:
    sums = FeatureSums()
    for first in range(0, len(features_ND), BATCH):
        sums.update(features_ND[first : first + BATCH])
    return sums.statistics()


def peer_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    named = ({"mu": each.mean_D, "sigma": each.covariance_DD} for each in (first, second))
    return fid_statistics_to_metric(*named, False)["frechet_inception_distance"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    real, made = (features(arguments.images, arguments.channels, seed, scale) for seed, scale in ((1, 1.0), (2, 1.1)))
    first, *cost_of_sums = measured(lambda: statistics(real))
    second = statistics(made)
    distance, *cost_of_distance = measured(lambda: frechet_distance(first, second))
    peer, *cost_of_peer = measured(lambda: peer_distance(first, second))
    shares, *cost_of_shares = measured(lambda: precision_recall(real, made))
    found = [
        ("mean and covariance", "", *cost_of_sums),
        ("Fréchet distance", f"{distance:.9g}", *cost_of_distance),
        ("torch-fidelity's distance", f"{peer:.9g}", *cost_of_peer),
        ("precision, recall", f"{shares.precision:.4f}, {shares.recall:.4f}", *cost_of_shares),
    ]
    rows = [[name, value, f"{seconds:.1f}", f"{mib:.0f}"] for name, value, seconds, mib in found]
    columns = ["", "value", "processor seconds", "MiB"]
    steps = {name: {"value": value, "seconds": seconds, "mib": mib} for name, value, seconds, mib in found}
    figures = {"images": arguments.images, "channels": arguments.channels, "steps": steps}
    write_report("numbers of features", columns, rows, figures, arguments.json)


if __name__ == "__main__":
    main()
