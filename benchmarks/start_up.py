"""What a start costs: one training stage alone, and the stages of one command, from Enter to exit.

    python benchmarks/start_up.py [--json FILE] [--rounds 3] [--steps 50] [--against CHECKOUT] [--only stage]

    stage        `foldtrain train-generator` of a small generator on two workers, and what passes in it
    quickstart   `foldtrain quickstart` with as many steps in each of its four trainings: the seconds of each, where the
                 first has to start workers, and the later ones find them there

`--against` names another checkout, for instance one of an earlier commit; then the two take turns. Beside the seconds
stand those of CPU time of all processes, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from report import write_report

HERE = Path(__file__).resolve().parents[1]
TRAININGS = ("teacher", "judge", "tokenizer", "generator")
MARKS = {"Ray": "raylet", "workers": "TrainWorker"}
"""What begins with the first process of this name."""
LOOK_SECONDS = 0.1


class Command:
    """`foldtrain` of a checkout, with the processes that it starts."""

    def __init__(self, checkout: Path, *arguments: str) -> None:
        self._environment = os.environ | {"PYTHONPATH": str(checkout)}
        self._command = [sys.executable, "-m", "foldtrain", *arguments]
        self.seconds = 0.0
        self.seen: dict[str, float] = {}
        """Seconds from Enter to the first process of each mark."""
        self._cpu: dict[int, float] = {}

    @property
    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return sum(self._cpu.values())

    def run(self, folder: Path) -> float:
        """Run it to its end. Returns the unix time at which it began.

        Raises:
            RuntimeError: if it fails, with the end of what it said.
        """
        log = folder / "log"
        began, at = time.monotonic(), time.time()
        with log.open("wb") as output:
            process = psutil.Popen(
                self._command, cwd=folder, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
        while process.poll() is None:
            self._look(process, time.monotonic() - began)
            time.sleep(LOOK_SECONDS)
        self.seconds = time.monotonic() - began
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(self._command)}\n{log.read_text(errors='replace')[-3000:]}")
        return at

    def _look(self, process: psutil.Process, passed: float) -> None:
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for each in family:
            try:
                times, title = each.cpu_times(), " ".join(each.cmdline())
            except psutil.Error:
                continue
            self._cpu[each.pid] = times.user + times.system
            for mark, name in MARKS.items():
                if name in title.split(" --")[0]:
                    self.seen.setdefault(mark, passed)


def write_inputs(checkout: Path, folder: Path) -> None:
    """Tokens, a tokenizer and a config, in the formats of a checkout."""
    folder.mkdir()
    program = "import sys, pathlib\nfrom cluster.drills.drilled_training import write_training as write\n"
    call = "write(pathlib.Path(sys.argv[1]), 0)"
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-c", program + call, str(folder)], cwd=folder, env=environment, check=True)


def run_stage(checkout: Path, inputs: Path, steps: int) -> dict[str, float]:
    """One stage alone: seconds from Enter on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(inputs / "tokenizer", folder / "run" / "tokenizer" / "export")
        changes = {"steps": steps, "checkpoint_every": steps, "log_every": 10, "zero_stage": 2}
        trainer = [f"generator.trainer.{key}={value}" for key, value in changes.items()]
        command = Command(checkout, "train-generator", str(inputs / "config.yaml"), f"run={folder / 'run'}", *trainer)
        at = command.run(folder)
        events = [json.loads(line) for line in (folder / "run" / "generator" / "events.jsonl").read_text().splitlines()]
    times = {event["event"]: event["time"] - at for event in events}
    return {
        "Ray is asked to start": command.seen["Ray"],
        "the first worker is there": command.seen["workers"],
        "the network is loaded": times["start"],
        "the first step is done": times["first_step"],
        "the last step is done, the network exported": times["finish"],
        "exit": command.seconds,
        "CPU": command.cpu_seconds,
    }


def run_quickstart(checkout: Path, _inputs: Path, steps: int) -> dict[str, float]:
    """All stages: the seconds of each training, and of all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = ["evaluation.judge", *(each for each in TRAININGS if each != "judge")]
        trainer = [f"{key}.trainer.{each}={steps}" for key in keys for each in ("steps", "checkpoint_every")]
        warm_up = [f"{key}.trainer.warmup_steps={min(10, steps)}" for key in keys]
        small = ("data.validation_samples=8000", "evaluation.samples=200", "sampling.samples_per_class=2")
        config = str(HERE / "configs" / "quickstart.yaml")
        command = Command(checkout, "quickstart", config, f"run={folder / 'run'}", *trainer, *warm_up, *small)
        command.run(folder)
        stages = json.loads((folder / "run" / "stages.json").read_text())
    seconds = {entry["stage"]: entry["seconds"] for entry in stages}
    return {stage: seconds[stage] for stage in (f"train-{each}" for each in TRAININGS)} | {
        "exit": command.seconds,
        "CPU": command.cpu_seconds,
    }


def measure(
    run: Callable[[Path, Path, int], dict[str, float]], checkouts: dict[str, Path], rounds: int, steps: int
) -> dict[str, list[dict[str, float]]]:
    """The figures of each checkout, of each round; they take turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for name, checkout in checkouts.items():
            write_inputs(checkout, Path(folder) / name)
        for number in range(rounds):
            names = list(checkouts) if number % 2 == 0 else list(checkouts)[::-1]
            for name in names:
                found[name].append(run(checkouts[name], Path(folder) / name, steps))
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=3, help="of each")
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--only", choices=("stage", "quickstart"))
    given = parser.parse_args()
    checkouts = ({"before": given.against.resolve()} if given.against else {}) | {"here": HERE}
    figures: dict[str, Any] = {"settings": {"rounds": given.rounds, "steps": given.steps}}
    rows = []
    for what, run in {"stage": run_stage, "quickstart": run_quickstart}.items():
        if given.only in {None, what}:
            found = measure(run, checkouts, given.rounds, given.steps)
            figures[what] = found
            median = {name: _medians(rounds) for name, rounds in found.items()}
            rows += [[what, part, *(f"{median[name][part]:.1f} s" for name in checkouts)] for part in median["here"]]
    write_report(f"start-up: {given.steps} steps", ["", "until", *checkouts], rows, figures, given.json)


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}


if __name__ == "__main__":
    main()
