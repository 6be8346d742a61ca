"""What foldtrain adds to a training step, and what a checkpoint takes from training.

    python benchmarks/training.py [--json FILE] [--rounds 1] [--steps 80] [--zero-stage 2] [--millions 100]

    bare_loop            steps/s through foldtrain with one worker (Ray, DeepSpeed, loader, metrics), over those of a
                         plain torch loop: the same network, loss, AdamW and clipping, one batch that stays in memory
    torchrun             steps/s through foldtrain with two workers that Ray starts, over those that torchrun starts
    checkpoint_blocked   time that a checkpoint in the background keeps training waiting, over that of
                         `engine.save_checkpoint` to the same folder (checkpoint_blocked.py)

The network is a generator of 286 positions in two folds. The two of a pair take turns of a few seconds (turns.py),
because the speed of a machine drifts; a ratio is the median of the rounds. A rate is that of the steps after the first
ten. All processes have one thread, and the niceness that Ray gives its workers.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoint_blocked
import numpy as np
import torch
from report import write_report
from training_worker import RECORD_EVERY
from turns import Training, rates

from data_pipeline.config import ReadingConfig
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.shards.weights import Card, write_weights
from model.config import ImageFolderConfig, NextScaleConfig, ViTConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.config import GeneratorStageConfig, TrackingConfig, TrainerConfig
from trainer.job import TrainJob

SMALL = ViTConfig(width=64, depth=1, heads=1)
TOKENIZER = ImageFolderConfig(image_size=256, encoder=SMALL, decoder=SMALL)
GENERATOR = NextScaleConfig(num_classes=10, depth=4, width=256, heads=4)
SAMPLES, BATCH, WARM_UP = 512, 16, 10
WORKER = Path(__file__).with_name("training_worker.py")


def write_inputs(folder: Path) -> dict[str, str]:
    """A tokenizer that nobody trained, and random tokens. Returns their URIs."""
    torch.manual_seed(0)
    network = ImageFolderTokenizer(TOKENIZER)
    inputs = {"tokens": str(folder / "tokens"), "tokenizer": str(folder / "tokenizer")}
    record = TOKENIZER.model_dump(mode="json")
    card = write_weights(inputs["tokenizer"], "tokenizer", record, {"model": network.state_dict()}, {})
    write_tokens(inputs["tokens"], card)
    return inputs


def write_tokens(uri: str, card: Card) -> None:
    """One shard."""
    layout, drawn = TOKENIZER.layout, np.random.default_rng(0)
    shape = (SAMPLES, 1, layout.positions, layout.folds)
    tokens_NWLF = drawn.integers(layout.vocabulary(), size=shape, dtype=np.uint16)
    label = drawn.integers(GENERATOR.classes, size=SAMPLES, dtype=np.int32)
    key = np.array([f"{number:06d}" for number in range(SAMPLES)], dtype=np.bytes_)
    shard = write_token_shard(uri, "tokens-00000.tar", TokenBlock(tokens_NWLF, label, key), {})
    TokenManifest.build(
        samples=SAMPLES,
        classes=tuple(f"class_{number}" for number in range(GENERATOR.classes)),
        layout=layout,
        views=("center",),
        image_size=TOKENIZER.image_size,
        fit="crop",
        tokenizer=TokenizerRecord(encoder=card.encoder(), config=card.encoder_config()),
        source="random",
        software={},
        shards=(shard,),
    ).write(uri)


class Bench:
    """Trainings of one job, each in a folder and processes of its own.

    Args:
        folder: where.
        steps: of each.
        zero_stage: of DeepSpeed.
    """

    def __init__(self, folder: Path, steps: int, zero_stage: int) -> None:
        self._folder, self._count = folder, 0
        trainer = TrainerConfig.model_validate(
            {
                "steps": steps,
                "global_batch": BATCH,
                "weight_decay": 0.05,
                "gradient_clipping": 1.0,
                "zero_stage": zero_stage,
                "log_every": RECORD_EVERY,
                "checkpoint_every": steps,
            }
        )
        section = GeneratorStageConfig(model=GENERATOR, trainer=trainer)
        reading = ReadingConfig(cache_dir=str(folder / "cache"))
        inputs, off = write_inputs(folder), TrackingConfig(wandb="off")
        self._job = TrainJob("generator", "", section, 0, "crop", reading, inputs, {}, {}, tracking=off)

    def bare(self) -> Training:
        """A plain torch loop."""
        path, folder = self._next()
        return Training((sys.executable, str(WORKER), "bare", str(path)), folder)

    def ray(self, workers: int) -> Training:
        """As the command."""
        path, folder = self._next()
        return Training((sys.executable, str(WORKER), "ray", str(path), str(workers)), folder)

    def torchrun(self, workers: int) -> Training:
        """The same workers without Ray."""
        path, folder = self._next()
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}")
        return Training((*launcher, str(WORKER), "torchrun", str(path)), folder)

    def _next(self) -> tuple[Path, Path]:
        self._count += 1
        folder = self._folder / f"run-{self._count}"
        path = folder.with_suffix(".pickle")
        path.write_bytes(pickle.dumps(replace(self._job, folder=str(folder))))
        return path, folder


def measure(steps: int, zero_stage: int, rounds: int) -> dict[str, list[float]]:
    """Steps per second of each round."""
    found: dict[str, list[float]] = {"bare": [], "foldtrain": [], "torchrun_2": [], "foldtrain_2": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), steps, zero_stage)
        ways = {
            "bare": bench.bare,
            "foldtrain": lambda: bench.ray(1),
            "torchrun_2": lambda: bench.torchrun(2),
            "foldtrain_2": lambda: bench.ray(2),
        }
        for pair in (("bare", "foldtrain"), ("torchrun_2", "foldtrain_2")):
            for number in range(rounds):
                names = pair if number % 2 == 0 else pair[::-1]
                for name, rate in zip(names, rates([ways[name]() for name in names], WARM_UP, steps), strict=True):
                    found[name].append(rate)
                    print(f"{name}: {rate:.3f} steps/s", file=sys.stderr, flush=True)
    return found


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Of the rounds."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=1, help="of each pair")
    parser.add_argument("--steps", type=int, default=80, help="of each training")
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--millions", type=int, default=100, help="parameters in millions, of the checkpoint")
    given = parser.parse_args()
    rounds = measure(given.steps, given.zero_stage, given.rounds)
    speed = {name: statistics.median(values) for name, values in rounds.items()}
    blocked = checkpoint_blocked.medians(given.millions, workers=2, stage=given.zero_stage)
    ratio = {
        "bare_loop": median_ratio(rounds["foldtrain"], rounds["bare"]),
        "torchrun": median_ratio(rounds["foldtrain_2"], rounds["torchrun_2"]),
        "checkpoint_blocked": blocked["blocked"] / blocked["synchronous"],
    }
    values = {
        "bare_loop": ("one worker", "bare loop", speed["bare"], speed["foldtrain"], "steps/s", "≥ 0.95"),
        "torchrun": ("two workers", "torchrun", speed["torchrun_2"], speed["foldtrain_2"], "steps/s", "≥ 0.98"),
        "checkpoint_blocked": (
            *("checkpoint", "save_checkpoint", blocked["synchronous"], blocked["blocked"]),
            *("s", "≤ 0.1"),
        ),
    }
    rows = [
        [what, f"{against}: {theirs:.3f} {unit}", f"{ours:.3f} {unit}", f"{ratio[name]:.3f}", goal]
        for name, (what, against, theirs, ours, unit, goal) in values.items()
    ]
    title = f"training: generator {GENERATOR.width} x {GENERATOR.depth}, ZeRO {given.zero_stage}, batch {BATCH}"
    figures: dict[str, Any] = {"steps_per_second": speed, "rounds": rounds, "checkpoint_seconds": blocked}
    figures |= {"settings": {key: value for key, value in vars(given).items() if key != "json"}, "ratio": ratio}
    write_report(title, ["", "against", "foldtrain", "ratio", "goal"], rows, figures, given.json)


if __name__ == "__main__":
    main()
