"""Runs to watch: files as stages leave them, written by what writes them."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from cluster.jobs import records
from cluster.jobs.logs import LogWriter
from cluster.jobs.places import job_folder
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.shard_ledger import WorkerRate
from data_pipeline import storage
from trainer.evaluation.naming.numbers import Number
from trainer.records.jsonl import JsonlWriter
from trainer.records.trackers.pictures import PictureReader

STEP_SECONDS = 0.5
TERMS = ("reconstruction", "lpips", "commitment", "adversarial", "entropy")


def numbers(step: int, steps: int, began: float, batch: int = 256) -> dict[str, Any]:
    """A record of metrics.jsonl of a run whose loss falls, with noise that is the same each time."""
    noise = 0.04 * math.sin(step * 12.9898) * math.cos(step * 78.233)
    loss = 0.35 + 2.4 / (1 + step / 40) + noise
    found = {"time": began + 20 + step * STEP_SECONDS, "step": step, "steps": steps, "samples": step * batch}
    found |= {"loss": loss, "learning_rate": 1e-4 * min(1.0, step / 100), "grad_norm": 0.8 + 8 * abs(noise)}
    found |= {name: loss * (0.1 + 0.2 * place) + noise for place, name in enumerate(TERMS)}
    found |= {"samples_per_second": batch / STEP_SECONDS * (1 + noise), "eta_seconds": (steps - step) * STEP_SECONDS}
    found |= {"window_steps": 1, "window_seconds": STEP_SECONDS, "data_wait_share": 0.06 + noise / 2}
    return found | {"checkpoint_seconds": 0.0, "skipped_steps": 0, "passed_over_steps": 0, "goodput": 0.84}


def metrics(count: int, steps: int, began: float, spike_at: int = 0, above: float = 0.0) -> Iterator[dict[str, Any]]:
    for step in range(1, count + 1):
        record = numbers(step, steps, began)
        yield record | {"loss": 40.0 if step == spike_at else record["loss"] + above}


def write_records(uri: str, records: Any) -> None:
    """A file of records, as a stage writes it."""
    writer = JsonlWriter(uri, keep=[], interval=3600, in_columns=uri.endswith("metrics.jsonl"))
    for number, record in enumerate(records, start=1):
        writer.write(record)
        if number % 4096 == 0:
            writer.flush(60)
    writer.close(60)


def look(step: int, share: float) -> dict[str, Any]:
    """What an event says of a look at held-out images."""
    use = [min(1.0, share * (0.5 + 0.1 * group)) for group in range(6)]
    codes = {
        name: {"use": [each * part for each in use], "attainable": [1.0] * 6, "perplexity": [9.0] * 6, "dead": 0.05}
        for name, part in (("semantic", 1.0), ("detail", 0.8))
    }
    return {"prefixes": [1, 4], "images": 8, "mse": [0.2, 0.1], "codes": codes, "pictures_seconds": 0.1}


def picture(step: int, steps: int, size: int = 48, tiles: int = 6) -> bytes:
    """A PNG that becomes sharper with the steps."""
    generator = np.random.default_rng(7)
    y, x = np.mgrid[0:size, 0 : size * tiles] / size
    clean = np.stack([0.5 + 0.5 * np.sin(x * (2 + c) + y * (3 - c) + np.floor(x) * 1.7) for c in range(3)], axis=-1)
    noise = generator.random(clean.shape)
    share = 0.85 * (1 - step / steps) ** 1.5
    pixels = np.uint8(255 * np.clip(clean * (1 - share) + noise * share, 0, 1))
    found = io.BytesIO()
    Image.fromarray(pixels).save(found, "PNG")
    return found.getvalue()


def write_training(
    run: str,
    folder: str,
    *,
    count: int = 600,
    steps: int = 600,
    began: float | None = None,
    spike_at: int = 0,
    above: float = 0.0,
    ended: bool = True,
    frames: int = 0,
    config: Mapping[str, Any] | None = None,
    more: Any = (),
) -> None:
    """A stage that trains: metrics, events, pictures, config.

    Args:
        above: what its loss is higher by.
        more: further events.
    """
    uri = storage.join(run, folder)
    began = time.time() - 20 - count * STEP_SECONDS if began is None else began

    def at(step: int) -> float:
        return began + 20 + step * STEP_SECONDS

    events: list[dict[str, Any]] = [{"time": began + 1, "event": "start", "step": 0, "began": began, "workers": 2}]
    events += [dict(event) | {"time": at(event["step"])} for event in more]
    for number in range(frames):
        step = (number + 1) * count // frames
        events.append({"time": at(step), "event": "validation", "step": step} | look(step, (number + 1) / frames))
        kind = "samples" if folder == "generator" else "reconstructions"
        PictureReader(uri).write({"step": step, kind: picture(step, count)})
    events.sort(key=lambda event: event["time"])
    if ended:
        events.append({"time": at(count) + 8, "event": "finish", "step": count})
    write_records(storage.join(uri, "events.jsonl"), events)
    write_records(storage.join(uri, "metrics.jsonl"), metrics(count, steps, began, spike_at, above))
    if config is not None:
        import yaml

        storage.write_bytes(storage.join(uri, "config.yaml"), yaml.safe_dump(dict(config)).encode())


def write_evaluation(run: str, *found: Number) -> None:
    """The numbers of a run, as `evaluate` writes them."""
    storage.write_json(storage.join(run, "evaluation.json"), {"numbers": [each.to_json() for each in found]})


def fid(value: float, images: int = 1000, guidance: float = 1.5, **by: Any) -> Number:
    """FID of samples."""
    of = {"generator": {"sha256": f"{value:064.0f}"}, "sampling": {"guidance": guidance}, "seed": 0}
    return Number("fid", value, images, {"rounding": "nearest", "network": {"name": "inception-2015"}} | by, of, 0.03)


def write_pool(
    run: str, folder: str, *, done: int, shards: int, rates: Mapping[str, list[float]] | None = None
) -> None:
    """A stage that makes shards; at work if it has workers."""
    workers = tuple(
        WorkerRate(f"w{number}", host, rate)
        for host, all_of in (rates or {}).items()
        for number, rate in enumerate(all_of)
    )
    progress = PoolProgress(folder, storage.join(run, folder), shards, shards * 1000, done, done * 1000)
    if not workers:
        with progress:
            return
    progress._show(sum(worker.images_per_second for worker in workers), 0, workers)


def write_job(
    run: str,
    job: str,
    *,
    node: str,
    text: bytes,
    status: str = "running",
    submitted: float = 5.0,
    target: str = "slurm",
) -> None:
    """A job of the run, by `submit` and by itself."""
    config = {"nodes": 4, "price_per_hour": 6.5, "currency": "EUR"}
    asked = {"id": job, "stages": ("train-generator",), "run": run, "target": target, "target_config": config}
    records.write_job(records.Submitted(**asked, submitted=submitted, who="ada@head"), "")
    times = {
        "started": time.time() - 60,
        "heartbeat": time.time(),
        "ended": None if status == "running" else time.time(),
    }
    records.write_state(run, job, records.State(status=status, stage="train-generator", node=node, attempt=2, **times))
    output = LogWriter(job_folder(run, job))
    output.write(text)
    assert output.flush()


def generator_config(rate: float, depth: int) -> dict[str, Any]:
    """As a stage records it, as far as it matters here."""
    return {
        "seed": 0,
        "data": {"fit": "crop", "reading": {"crop": {"kind": "center"}}},
        "generator": {"model": {"depth": depth, "width": 256}, "trainer": {"learning_rate": rate, "global_batch": 256}},
        "cluster": {"workers": 2},
    }
