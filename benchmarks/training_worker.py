"""The same training in one of three ways, as a process of its own.

python benchmarks/training_worker.py bare JOB.pickle             a plain torch loop
torchrun --nproc-per-node WORKERS benchmarks/training_worker.py bare JOB.pickle        the same under DDP
python benchmarks/training_worker.py ray JOB.pickle WORKERS      as `foldtrain train-generator` does it
torchrun --nproc-per-node WORKERS benchmarks/training_worker.py torchrun JOB.pickle
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from trainer.config import GeneratorStageConfig
from trainer.job import TrainJob

RECORD_EVERY = 5
"""Steps between two records of metrics.jsonl."""
NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112 - Ray spells it so


def bare(job: TrainJob) -> None:
    """The network, its loss, AdamW and clipping in as few lines as torch needs, on a batch that stays in memory."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from model.generators.next_scale import FoldedGenerator
    from model.losses.tokens import folded_cross_entropy
    from trainer.engine.optimizer import parameter_groups
    from trainer.networks import load_forcing

    assert isinstance(job.section, GeneratorStageConfig)
    config, world = job.section.trainer, int(os.environ.get("WORLD_SIZE", "1"))
    quantizer = load_forcing(job.inputs["tokenizer"], torch.device("cpu"))
    assert quantizer is not None
    network = FoldedGenerator(job.section.model, quantizer.layout, quantizer.width)
    groups = parameter_groups(network, config.weight_decay, set(network.no_decay_parameters()))
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    averages = [parameter.detach().clone() for parameter in network.parameters() if config.ema_decay]
    forward: torch.nn.Module = network
    if world > 1:
        dist.init_process_group("gloo")
        forward = DistributedDataParallel(network)
    layout, batch = quantizer.layout, config.global_batch // world
    tokens_BLF = torch.randint(layout.vocabulary(), (batch, layout.positions, layout.folds))
    label_B = torch.randint(job.section.model.classes, (batch,))
    seed_B = torch.arange(batch)
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    metrics = (Path(job.folder) / "metrics.jsonl").open("a")
    for step in range(1, config.steps + 1):
        with torch.no_grad():
            input_BLC = quantizer.generator_input(tokens_BLF)
        loss, _ = folded_cross_entropy(forward(label_B, input_BLC, seed_B), tokens_BLF)
        loss.backward()
        clip_grad_norm_(network.parameters(), config.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        if averages:
            weights = [parameter.detach() for parameter in network.parameters()]
            torch._foreach_lerp_(averages, weights, 1 - config.ema_decay)
        if step % RECORD_EVERY == 0 and (world == 1 or dist.get_rank() == 0):
            print(json.dumps({"step": step, "time": time.time()}), file=metrics, flush=True)


def under_ray(job: TrainJob, workers: int) -> None:
    """What the command does."""
    from cluster.config.run import ClusterConfig
    from cluster.training.stage import train

    train(job, ClusterConfig(workers=workers))


def under_torchrun(job: TrainJob) -> None:
    """What a worker does, with Ray out of it."""
    import torch.distributed as dist

    from trainer.loop.worker import run_worker

    dist.init_process_group("gloo")
    dist.barrier()
    run_worker(job, torch.device("cpu"))


def main() -> None:
    way, path, *more = sys.argv[1:]
    job: TrainJob = pickle.loads(Path(path).read_bytes())
    if way == "ray":
        under_ray(job, int(more[0]))
        return
    os.nice(NICENESS - os.nice(0))  # as Ray's workers
    torch.set_num_threads(1)
    if way == "bare":
        bare(job)
    else:
        under_torchrun(job)


if __name__ == "__main__":
    main()
