"""What foldtrain adds to a training step, and what a checkpoint takes from training.

    python benchmarks/training.py [--json FILE] [--rounds 1] [--steps 80] [--quick-steps 600] [--zero-stage 2]
                                  [--millions 100]

    bare_loop            steps/s through foldtrain with one worker (Ray, DeepSpeed, loader, metrics), over those of a
                         plain torch loop: the same network, loss, AdamW and clipping, one batch that stays in memory
    torchrun             steps/s through foldtrain with two workers that Ray starts, over those that torchrun starts
    quickstart           steps/s of the quickstart's generator (configs/quickstart.yaml) with two workers, over those of
                         the bare loop as two processes of torchrun under DistributedDataParallel, moving average too
    checkpoint_blocked   time that a checkpoint in the background keeps training waiting, over that of
                         `engine.save_checkpoint` to the same folder (checkpoint_blocked.py)

The network of the others is a generator of 286 positions in two folds. The two of a pair take turns of a few seconds
(turns.py), because the speed of a machine drifts; a ratio is the median of the rounds. A rate is of the steps after the
first ten. All processes have one thread, and the niceness that Ray gives its workers.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import checkpoint_blocked
import numpy as np
import torch
from report import write_report
from training_worker import RECORD_EVERY
from turns import Training, rates

from cluster.config.loading import load_config
from data_pipeline.config import ReadingConfig
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.shards.weights import Card, write_weights
from model.config import ImageFolderConfig, NextScaleConfig, TokenizerConfig, ViTConfig
from model.families import build_tokenizer
from trainer.config import GeneratorStageConfig, TrackingConfig, TrainerConfig
from trainer.job import TrainJob

SMALL = ViTConfig(width=64, depth=1, heads=1)
TOKENIZER = ImageFolderConfig(image_size=256, encoder=SMALL, decoder=SMALL)
GENERATOR = NextScaleConfig(num_classes=10, depth=4, width=256, heads=4)
SAMPLES, BATCH, WARM_UP = 512, 16, 10
WORKER = Path(__file__).with_name("training_worker.py")


def write_inputs(folder: Path, tokenizer: TokenizerConfig, classes: int) -> dict[str, str]:
    """A tokenizer that nobody trained, and random tokens. Returns their URIs."""
    torch.manual_seed(0)
    network = cast("torch.nn.Module", build_tokenizer(tokenizer))
    inputs = {"tokens": str(folder / "tokens"), "tokenizer": str(folder / "tokenizer")}
    record = tokenizer.model_dump(mode="json")
    card = write_weights(inputs["tokenizer"], "tokenizer", record, {"model": network.state_dict()}, {})
    write_tokens(inputs["tokens"], card, tokenizer, classes)
    return inputs


def write_tokens(uri: str, card: Card, tokenizer: TokenizerConfig, classes: int) -> None:
    """One shard."""
    layout, drawn = tokenizer.layout, np.random.default_rng(0)
    shape = (SAMPLES, 1, layout.positions, layout.folds)
    tokens_NWLF = drawn.integers(layout.vocabulary(), size=shape, dtype=np.uint16)
    label = drawn.integers(classes, size=SAMPLES, dtype=np.int32)
    key = np.array([f"{number:06d}" for number in range(SAMPLES)], dtype=np.bytes_)
    shard = write_token_shard(uri, "tokens-00000.tar", TokenBlock(tokens_NWLF, label, key), {})
    TokenManifest.build(
        samples=SAMPLES,
        classes=tuple(f"class_{number}" for number in range(classes)),
        layout=layout,
        views=("center",),
        image_size=tokenizer.image_size,
        fit="crop",
        tokenizer=TokenizerRecord(encoder=card.encoder(), config=card.encoder_config()),
        source="random",
        software={},
        shards=(shard,),
    ).write(uri)


def large_stage(steps: int, zero_stage: int) -> tuple[TokenizerConfig, GeneratorStageConfig]:
    """A tokenizer of 256 px, and a training of a generator on its tokens."""
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
    return TOKENIZER, GeneratorStageConfig(model=GENERATOR, trainer=trainer)


def quickstart_stage(steps: int) -> tuple[TokenizerConfig, GeneratorStageConfig]:
    """The quickstart's tokenizer and its generator's training, with another number of steps."""
    config = load_config(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
    given = config.generator.trainer.model_dump() | {"steps": steps, "checkpoint_every": steps}
    trainer = TrainerConfig.model_validate(given | {"log_every": RECORD_EVERY})
    model = config.generator.model.model_copy(update={"num_classes": GENERATOR.classes})
    return config.tokenizer.model, GeneratorStageConfig(model=model, trainer=trainer)


class Bench:
    """Trainings of one job, each in a folder and processes of its own.

    Args:
        folder: where.
        tokenizer: whose tokens, drawn at random, are trained on.
        section: what is trained, and how.
    """

    def __init__(self, folder: Path, tokenizer: TokenizerConfig, section: GeneratorStageConfig) -> None:
        folder.mkdir()
        self._folder, self._count = folder, 0
        reading = ReadingConfig(cache_dir=str(folder / "cache"))
        inputs, off = write_inputs(folder, tokenizer, section.model.classes), TrackingConfig(wandb="off")
        self._job = TrainJob("generator", "", section, 0, "crop", reading, inputs, {}, {}, tracking=off)

    def bare(self) -> Training:
        """A plain torch loop."""
        path, folder = self._next()
        return Training((sys.executable, str(WORKER), "bare", str(path)), folder)

    def bare_workers(self, workers: int) -> Training:
        """The plain loop in several processes."""
        return self._launched("bare", workers)

    def ray(self, workers: int) -> Training:
        """As the command."""
        path, folder = self._next()
        return Training((sys.executable, str(WORKER), "ray", str(path), str(workers)), folder)

    def torchrun(self, workers: int) -> Training:
        """The same workers without Ray."""
        return self._launched("torchrun", workers)

    def _launched(self, way: str, workers: int) -> Training:
        path, folder = self._next()
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}")
        return Training((*launcher, str(WORKER), way, str(path)), folder)

    def _next(self) -> tuple[Path, Path]:
        self._count += 1
        folder = self._folder / f"run-{self._count}"
        path = folder.with_suffix(".pickle")
        path.write_bytes(pickle.dumps(replace(self._job, folder=str(folder))))
        return path, folder


PAIRS = (("bare", "foldtrain"), ("torchrun_2", "foldtrain_2"), ("bare_quickstart", "foldtrain_quickstart"))


def measure(steps: int, quick_steps: int, zero_stage: int, rounds: int) -> dict[str, list[float]]:
    """Steps per second of each round."""
    found: dict[str, list[float]] = {name: [] for pair in PAIRS for name in pair}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "large", *large_stage(steps, zero_stage))
        quick = Bench(Path(folder) / "quickstart", *quickstart_stage(quick_steps))
        ways = {
            "bare": bench.bare,
            "foldtrain": lambda: bench.ray(1),
            "torchrun_2": lambda: bench.torchrun(2),
            "foldtrain_2": lambda: bench.ray(2),
            "bare_quickstart": lambda: quick.bare_workers(2),
            "foldtrain_quickstart": lambda: quick.ray(2),
        }
        for pair, number in itertools.product(PAIRS, range(rounds)):
            names = pair if number % 2 == 0 else pair[::-1]
            last = quick_steps if pair == PAIRS[-1] else steps
            for name, rate in zip(names, rates([ways[name]() for name in names], WARM_UP, last), strict=True):
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
    parser.add_argument("--quick-steps", type=int, default=600, help="of the quickstart's training")
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--millions", type=int, default=100, help="parameters in millions, of the checkpoint")
    given = parser.parse_args()
    rounds = measure(given.steps, given.quick_steps, given.zero_stage, given.rounds)
    speed = {name: statistics.median(values) for name, values in rounds.items()}
    blocked = checkpoint_blocked.medians(given.millions, workers=2, stage=given.zero_stage)
    ratio = {
        "bare_loop": median_ratio(rounds["foldtrain"], rounds["bare"]),
        "torchrun": median_ratio(rounds["foldtrain_2"], rounds["torchrun_2"]),
        "quickstart": median_ratio(rounds["foldtrain_quickstart"], rounds["bare_quickstart"]),
        "checkpoint_blocked": blocked["blocked"] / blocked["synchronous"],
    }
    values = {
        "bare_loop": ("one worker", "bare loop", speed["bare"], speed["foldtrain"], "steps/s", "≥ 0.95"),
        "torchrun": ("two workers", "torchrun", speed["torchrun_2"], speed["foldtrain_2"], "steps/s", "≥ 0.98"),
        "quickstart": (
            *("quickstart's generator, two workers", "bare loop", speed["bare_quickstart"]),
            *(speed["foldtrain_quickstart"], "steps/s", "≥ 0.9"),
        ),
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
