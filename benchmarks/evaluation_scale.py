"""Many images through `foldtrain evaluate images`: the same digits whoever measured them, and the memory that it takes.

    python benchmarks/evaluation_scale.py [--images 50000] [--references 10000] [--size 64]
        [--no-precision-recall] [--json FILE]

Writes two npz of images and a small classifier of 2,048 features (random weights), and runs the command on 1, 2 and 3
workers; and once more, killed (SIGKILL) three times and started again with another number of workers. Every run has
to give the same digits. Memory is the largest of the command's own process and of each worker, as the kernel counts
it (VmHWM, or the proportional set size of workers), less that of a process that has only loaded torch and the network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from report import write_report

FEATURES = 2048
KILLS = ((1, 0.25), (3, 0.5), (2, 0.75), (3, 1.1))
"""Workers of each start of the run that is killed, and the share of parts at which it is."""
_BATCH = 1000


def write_images(path: Path, count: int, size: int, seed: int, slope: float) -> None:
    """Blocks of colour with noise, in an npz, a part at a time."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, _BATCH):
            many = min(_BATCH, count - start)
            blocks = rng.integers(0, 200, (many, 4, 4, 3), dtype=np.uint8).repeat(size // 4, 1).repeat(size // 4, 2)
            noise = rng.integers(0, int(56 * slope), blocks.shape, dtype=np.uint8)
            file.write(np.ascontiguousarray(blocks + noise).data)


def write_classifier(folder: Path) -> None:
    """Random weights, with 2,048 features."""
    import torch

    from data_pipeline.shards.weights import write_weights
    from model.classifier import Classifier
    from model.config import ClassifierConfig

    torch.manual_seed(0)
    config = ClassifierConfig(image_size=64, num_classes=10, widths=(8, 16, 32, FEATURES))
    files = {"model": Classifier(config).state_dict()}
    names = tuple(map(str, range(10)))
    write_weights(str(folder), "judge", config.model_dump(mode="json"), files, {}, classes=names)


class Watch:
    """The most memory that the processes of a command have had."""

    def __init__(self, pid: int) -> None:
        self.driver = self.worker = 0.0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The command has ended."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            try:
                self.driver = max(self.driver, _high_water(self._process.pid))
                for child in self._process.children(recursive=True):
                    if child.name().startswith("ray::ShardWorker"):
                        self.worker = max(self.worker, child.memory_full_info().pss / 2**20)
            except (psutil.Error, OSError):
                continue


def _high_water(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1]) / 1024
    return 0.0


def idle_megabytes(place: Path) -> float:
    """Of a process that has loaded what the command loads, and the network."""
    code = (
        "import sys, torch\n"
        "from trainer.config.feature_networks import ClassifierNetwork\n"
        "from trainer.evaluation.networks.feature_networks import open_network\n"
        "network = open_network(ClassifierNetwork(kind='classifier', uri=sys.argv[1]), torch.device('cpu'))\n"
        "network(torch.zeros(64, 3, 64, 64, dtype=torch.uint8))\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])\n"
    )
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code, str(place / "judge")], check=True, capture_output=True, text=True, cwd=root
    )
    return float(str(found.stdout)) / 1024


def run(place: Path, output: Path, workers: int, neighbours: bool, kill_at: float = 2.0) -> dict[str, Any]:
    """One start of the command, killed once a share of the parts is there."""
    arguments = ["evaluate", "images", place / "samples.npz", "--reference", place / "real.npz", "--out", output]
    arguments += ["--network", f"classifier:{place}/judge", "--workers", workers]
    arguments += [] if neighbours else ["--no-precision-recall"]
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("foldtrain")), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid)
        while process.poll() is None:
            if _share(output) >= kill_at:
                _kill(process.pid)
            time.sleep(0.1)
        watch.stop()
        error = process.stderr.read() if process.stderr else ""
    if process.returncode not in {0, -signal.SIGKILL}:
        raise SystemExit(f"the command failed:\n{error}")
    found = {"workers": workers, "seconds": time.monotonic() - began, "killed": process.returncode != 0}
    return found | {"driver_mib": watch.driver, "worker_mib": watch.worker}


def _share(output: Path) -> float:
    parts, whole = list(output.glob("images-*/parts/*.safetensors")), list(output.glob("images-*/plan.json"))
    if not whole:
        return 0.0
    count: int = json.loads(whole[0].read_text())["count"]
    return len(parts) / max(1, count / 512)


def _kill(pid: int) -> None:
    """The command and all that it has started."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for each in processes:
        if each.is_running():
            os.kill(each.pid, signal.SIGKILL)


def numbers_of(output: Path) -> dict[str, float]:
    """By metric."""
    found = json.loads((output / "evaluation.json").read_text())["numbers"]
    return {each["metric"]: each["value"] for each in found}


def main() -> None:
    """Run all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--no-precision-recall", action="store_true", help="they take images times images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    neighbours = not options.no_precision_recall
    place = Path(tempfile.mkdtemp(prefix="foldtrain-evaluation-"))
    try:
        write_images(place / "samples.npz", options.images, options.size, 1, 1.0)
        write_images(place / "real.npz", options.references, options.size, 2, 0.8)
        write_classifier(place / "judge")
        idle = idle_megabytes(place)
        rows = [run(place, place / f"out{workers}", workers, neighbours) for workers in (1, 2, 3)]
        found = {f"{row['workers']} workers": numbers_of(place / f"out{row['workers']}") for row in rows}
        killed = [run(place, place / "killed", workers, neighbours, share) for workers, share in KILLS]
        found["killed three times"] = numbers_of(place / "killed")
    finally:
        shutil.rmtree(place)
    same = len({json.dumps(each, sort_keys=True) for each in found.values()}) == 1
    driver, worker = (max(row[name] for row in [*rows, *killed]) for name in ("driver_mib", "worker_mib"))
    write_report(
        f"{options.images:,} images of {options.size} px against {options.references:,}, {FEATURES:,} features",
        ["run", "seconds", *next(iter(found.values()))],
        _table(rows, killed, found),
        {"images": options.images, "references": options.references, "size": options.size, "numbers": found}
        | {"same_digits": same, "idle_mib": idle, "driver_above_idle_mib": driver - idle}
        | {"worker_mib": worker, "runs": rows + killed},
        options.json,
    )
    print(f"the same digits: {same}; MiB: command {driver:.0f}, of which idle {idle:.0f}; largest worker {worker:.0f}")
    if not same:
        raise SystemExit(1)


def _table(rows: list[dict[str, Any]], killed: list[dict[str, Any]], found: dict[str, Any]) -> list[list[str]]:
    seconds = [row["seconds"] for row in rows] + [sum(row["seconds"] for row in killed)]
    return [
        [name, f"{each:.0f}", *map(repr, numbers.values())]
        for (name, numbers), each in zip(found.items(), seconds, strict=True)
    ]


if __name__ == "__main__":
    main()
