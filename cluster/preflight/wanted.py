"""What the nodes are checked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.config.run import RunConfig
from data_pipeline import storage


@dataclass(frozen=True)
class Wanted:
    """What a run needs of each node, as plain data. Without a config only what every run needs is checked."""

    run: str | None = None
    """Absolute URI of the folder that is written to; None where there is no run yet."""
    reads: tuple[str, ...] = ()
    """Absolute URIs that every node reads from."""
    cache_folder: str | None = None
    """Where nodes keep copies of remote shards; None for the usual place, which each node knows."""
    cache_bytes: int | None = None
    """Most bytes of these copies, if that is limited."""
    workers: int = 1
    """Most workers of a training."""
    gpus_per_worker: int = 0
    threads: int = 1
    """That each worker computes with."""


def wanted_by(config: RunConfig, reads: Iterable[str] | None = None) -> Wanted:
    """What a run needs.

    Args:
        config: of the run.
        reads: URIs that are read from; those of `inputs` if they are not given.
    """
    given = [uri for name in type(config.inputs).model_fields if (uri := config.given(name))]
    cluster = config.cluster
    return Wanted(
        run=storage.absolute(config.run),
        reads=tuple(map(storage.absolute, given if reads is None else reads)),
        cache_folder=storage.absolute(cache) if (cache := config.data.reading.cache_dir) else None,
        cache_bytes=config.data.reading.cache_bytes,
        workers=cluster.most_workers,
        gpus_per_worker=cluster.gpus_per_worker,
        threads=max(1, int(cluster.cpus_per_worker)),
    )
