"""What `python benchmarks/tokenize.py` measures.

A SeaweedFS on loopback holds JPEG files of 500 x 375 pixels in image shards. The pool of `foldtrain tokenize` reads
them, decodes them, cuts ADM's centre crop of 256 pixels, encodes and commits token shards to the same server. Its rate
is the steady one: of each worker's shards from the first read to the commit, without its first shard, in which Ray
Data's own actors still start. An ImageNet run has that once in hours.

The encoder alone has the same cores: the same network, batches and precision on pixels that are in memory already as
float32, in the same workers, before each shard and after the last. So a machine whose speed drifts (15 % within minutes
were seen) favours neither. It is also measured in processes of its own with nothing of Ray's beside it, before the
pipeline starts and after it has ended; that rate and the ratio to it are stated, too. All of them keep freed memory as
tokenize's workers do (data_pipeline/node/host_memory.py). Images per second of processor time, of all threads of the
workers, say how much of it is spent on anything but the encoder.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from decode import made_picture
from report import write_report

from cluster.config.run import ClusterConfig
from cluster.drills.s3_server import BUCKET, S3Server
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, WorkerNeeds
from cluster.pool.shard_pool import PoolSettings, Shards, make_shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.pool.tokenizing import TokenizeWork
from cluster.session.ray_session import ray_session
from data_pipeline.config import TokensConfig
from data_pipeline.node.host_memory import keep_freed_memory
from data_pipeline.shards.image_shards import ImageSample, finish_images, read_indexes, write_image_shard
from data_pipeline.shards.weights import Card, write_weights
from data_pipeline.tokens.commits import read_commits
from data_pipeline.tokens.plan import TokenPlan, plan_tokens
from data_pipeline.tokens.tokenizing import encoder_of, finish, load_encoder
from model.config import MaskgitVqganConfig, TokenizerConfig
from model.families import build_tokenizer, tokenizer_families

SIDE = 256
LEVELS: dict[str, Any] = {"widths": (32, 32, 64, 64, 128)}
"""A quarter of the published channels."""
VIT: dict[str, Any] = {"width": 384, "depth": 8, "heads": 6}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "imagefolder": {"patch_size": 16, "encoder": VIT, "decoder": {"depth": 1}},
    "titok": {
        "target": "rgb",
        "latents": 32,
        "encoder": VIT | {"patch_size": 16},
        "decoder": VIT | {"depth": 1, "patch_size": 16},
    },
    "vqgan": {"encoder": LEVELS, "decoder": LEVELS},
    "maskgit-vqgan": {
        half: config.model_dump() | LEVELS
        for half, config in (("encoder", MaskgitVqganConfig().encoder), ("decoder", MaskgitVqganConfig().decoder))
    },
}
"""What is measured, by kind. Tokens follow from the encoder alone, so the decoders of the transformers are small."""
BATCH = 16
PICTURES = 48
IMAGE_SHARD = 100
SHARDS = 5
"""Token shards of each worker. A real one holds 10,000 images, so what lies between two shards hardly counts there."""
RAY_NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112 - Ray spells it so
"""Ray's workers give way to other processes; so must the encoder alone, or a busy machine would favour it."""
ENCODER_ROUNDS = 2
"""Batches that the encoder alone is timed over, each time; four times as many where it has processes of its own."""


@dataclass(frozen=True)
class Rate:
    """Images in so many seconds of the clock, and of processors."""

    images: int
    seconds: float
    cpu: float

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.images + other.images, self.seconds + other.seconds, self.cpu + other.cpu)

    @property
    def per_second(self) -> float:
        return self.images / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.images / self.cpu


@dataclass(frozen=True)
class TimedWork:
    """The work of tokenize; the driver hears how long each shard took, and the encoder alone around it."""

    work: TokenizeWork

    def open(self, threads: int) -> MakeShard:
        make = self.work.open(threads)
        encode, image_BCHW = load_encoder(self.work.plan, self.work.tokenizer), pixels()
        encode(image_BCHW)

        def alone() -> tuple[float, float]:
            began, used = time.time(), time.process_time()
            for _ in range(ENCODER_ROUNDS):
                encode(image_BCHW)
            return time.time() - began, time.process_time() - used

        def timed(number: int, advance: Advance) -> dict[str, Any]:
            before = alone()
            began, used = time.time(), time.process_time()
            facts = make(number, advance)
            ended = {"committed": time.time(), "cpu": time.process_time() - used, "worker": os.getpid()}
            facts |= {"began": began, "images": self.work.plan.shards[number].samples} | ended
            return facts | {"alone": (before, alone())}

        return timed


def pixels() -> Any:
    """A batch in memory."""
    return np.random.default_rng(0).uniform(-1, 1, (BATCH, 3, SIDE, SIDE)).astype(np.float32)


def write_images(uri: str, count: int) -> None:
    """Image shards of a few made pictures, in turn."""
    files = []
    for seed in range(PICTURES):
        buffer = io.BytesIO()
        made_picture(seed, 500, 375).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    samples = [ImageSample(f"{number:06d}", 0, "jpg", files[number % PICTURES]) for number in range(count)]
    starts = range(0, count, IMAGE_SHARD)
    records = tuple(
        write_image_shard(uri, f"images-{number:05d}.tar", samples[start : start + IMAGE_SHARD], "made")
        for number, start in enumerate(starts)
    )
    finish_images(uri, read_indexes(uri, records), classes=("made",), split="train")


def tokenizer_config(kind: str) -> TokenizerConfig:
    return tokenizer_families()[kind].config.model_validate({"image_size": SIDE} | TOKENIZERS[kind])


def write_tokenizer(uri: str, config: TokenizerConfig) -> Card:
    torch.manual_seed(0)
    network = cast("torch.nn.Module", build_tokenizer(config))
    return write_weights(uri, "tokenizer", config.model_dump(mode="json"), {"model": network.state_dict()}, {})


def encode_alone(config: TokenizerConfig, threads: int, precision: str, start: Barrier, results: Any) -> None:
    """One process of the encoder alone: when its timed batches began and ended."""
    os.nice(RAY_NICENESS - os.nice(0))
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build_tokenizer(config)
    cast("torch.nn.Module", network).eval()
    encode = encoder_of(network, precision, "cpu")
    image_BCHW = pixels()
    encode(image_BCHW)
    start.wait()
    began, used = time.time(), time.process_time()
    for _ in range(4 * ENCODER_ROUNDS):
        encode(image_BCHW)
    results.put((began, time.time(), time.process_time() - used))


def encoder_rate(config: TokenizerConfig, workers: int, threads: int, precision: str) -> Rate:
    """All processes together."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers), context.Queue()
    arguments = (config, threads, precision, start, results)
    processes = [context.Process(target=encode_alone, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    spans = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    began, ended, cpu = zip(*spans, strict=True)
    return Rate(workers * 4 * ENCODER_ROUNDS * BATCH, max(ended) - min(began), sum(cpu))


def run_pipeline(plan: TokenPlan, tokenizer: str, workers: int, threads: int) -> tuple[list[dict[str, Any]], float]:
    """What the workers say of their shards, and the seconds before the first read."""
    left = read_commits(plan).missing
    shards = Shards(left, lambda number: plan.shards[number].name, lambda number: plan.shards[number].samples)
    needs, size = WorkerNeeds(threads, 0), PoolSize(workers, workers)
    settings = PoolSettings("tokenize", plan.output, size, needs)
    facts: list[dict[str, Any]] = []
    launched = time.time()
    with (
        PoolProgress("tokenize", plan.output, len(left), plan.samples, 0, 0) as progress,
        ray_session(ClusterConfig(workers=workers, cpus_per_worker=threads)),
    ):
        from ray import cloudpickle  # once Ray is configured

        # Workers look for modules where their own Python does, and not beside this file.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        work = TimedWork(TokenizeWork(plan, tokenizer, gpus=0))
        make_shards(work, shards, settings, progress, lambda _number, fact: facts.append(fact))
    finish(plan)
    return facts, min(fact["began"] for fact in facts) - launched


def steady_rates(facts: list[dict[str, Any]]) -> tuple[Rate, Rate]:
    """All workers together, without each one's first shard: the pipeline, and the encoder alone around its shards."""
    by_worker: dict[int, list[dict[str, Any]]] = {}
    for fact in sorted(facts, key=lambda fact: fact["began"]):
        by_worker.setdefault(fact["worker"], []).append(fact)
    later = [made[1:] for made in by_worker.values() if len(made) > 1]
    pipeline = [(sum(f["images"] for f in made), sum(f["committed"] - f["began"] for f in made)) for made in later]
    rounds = [[one for f in made for one in f["alone"]] for made in later]
    alone = [(len(each) * ENCODER_ROUNDS * BATCH, sum(seconds for seconds, _ in each)) for each in rounds]
    cpu = sum(f["cpu"] for made in later for f in made)
    cpu_alone = sum(used for each in rounds for _, used in each)
    return _together(pipeline, cpu), _together(alone, cpu_alone)


def _together(workers: list[tuple[int, float]], cpu: float) -> Rate:
    images = sum(count for count, _ in workers)
    return Rate(images, images / sum(count / seconds for count, seconds in workers), cpu)


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """A server that this process and all that it starts use."""
    before = dict(os.environ)
    with S3Server(folder) as server:
        os.environ.update(server.environment())
        yield f"s3://{BUCKET}"
    os.environ.clear()
    os.environ.update(before)


def measure(kind: str, images: int, workers: int, threads: int, precision: str, decode: str) -> dict[str, Any]:
    """All figures."""
    network = tokenizer_config(kind)
    with tempfile.TemporaryDirectory() as folder, s3(Path(folder) / "s3") as bucket:
        write_images(f"{bucket}/images", images)
        card = write_tokenizer(f"{folder}/tokenizer", network)
        config = TokensConfig.model_validate(
            {
                "shard_samples": -(-images // (SHARDS * workers)),
                "batch": BATCH,
                "precision": precision,
                "decode": decode,
            }
        )
        plan = plan_tokens(f"{bucket}/images", card, config, f"{bucket}/tokens", "crop")
        before = encoder_rate(network, workers, threads, precision)
        facts, start = run_pipeline(plan, f"{folder}/tokenizer", workers, threads)
        after = encoder_rate(network, workers, threads, precision)
    pipeline, encoder = steady_rates(facts)
    outside = before + after
    measured = {"pipeline": pipeline, "encoder": encoder, "encoder_outside": outside}
    settings: dict[str, Any] = {"kind": kind, "images": images, "workers": workers, "threads": threads, "batch": BATCH}
    settings |= {"precision": precision, "decode": decode, "shards": len(plan.shards)}
    return {
        "images_per_second": {name: rate.per_second for name, rate in measured.items()},
        "images_per_cpu_second": {name: rate.per_cpu_second for name, rate in measured.items()},
        "start_seconds": start,
        "settings": settings,
        "ratio": {
            "pipeline_encoder": pipeline.per_second / encoder.per_second,
            "pipeline_encoder_cpu": pipeline.per_cpu_second / encoder.per_cpu_second,
            "pipeline_encoder_outside": pipeline.per_second / outside.per_second,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The pipeline of tokenize against the encoder alone.")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--kind", choices=tuple(TOKENIZERS), default="imagefolder")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, default=1, help="of each worker; its CPUs")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--decode", choices=("exact", "fast"), default="exact")
    given = parser.parse_args()
    found = measure(given.kind, given.images, given.workers, given.threads, given.precision, given.decode)
    rates, per_cpu, ratio = found["images_per_second"], found["images_per_cpu_second"], found["ratio"]
    labels = {"encoder": "encoder alone", "pipeline": "pipeline", "encoder_outside": "encoder, without Ray"}
    does = {
        "encoder": "forward passes on pixels in memory",
        "pipeline": "read S3, decode, crop, encode, write S3, commit",
        "encoder_outside": "the same in processes of its own, before and after",
    }
    rows = [[labels[name], f"{rates[name]:.2f}", f"{per_cpu[name]:.2f}", does[name]] for name in labels]
    rows += [
        ["ratio", f"{ratio['pipeline_encoder']:.3f}", f"{ratio['pipeline_encoder_cpu']:.3f}", "goal: 0.9"],
        ["not in it", f"{found['start_seconds']:.1f} s", "", "start of Ray, workers, torch, tokenizer"],
    ]
    title = f"tokenize: {given.kind}, {SIDE} px, {given.workers} workers of {given.threads} threads"
    write_report(title, ["", "images/s", "per CPU second", "what"], rows, found, given.json)
