"""Joining a Ray cluster, or starting one on this machine for as long as a command runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.config import ClusterConfig

_OBJECT_STORE_BYTES = 256 * 2**20  # only control messages pass through it: images and tokens go to storage


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """A connection to Ray, shared by all stages of a command.

    Joins `cluster.address` or RAY_ADDRESS; without either a cluster of this machine's CPUs is started, which ends with
    this process however it ends.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data warns of a changed default for accelerators that a stage does not use.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    # Errors of workers are shown. Ray Train warns once a second where a cluster has no dashboard to ask.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "logging_config": ray.LoggingConfig(log_level="ERROR")}
    if address:
        ray.init(address=address, **quiet)
    else:
        # A token left by another cluster would be asked for by a head and not sent by its driver (Ray 2.60).
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        cpus = max(os.cpu_count() or 1, int(config.workers * config.cpus_per_worker + 0.999))
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()
