"""A real Slurm for the tests of this folder, where it can be started."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.slurm.slurm_cluster import SlurmCluster, why_not


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Two nodes on loopback. Tests that use it carry `@pytest.mark.xdist_group("slurm")`."""
    if reason := why_not():
        pytest.skip(reason)
    with SlurmCluster() as cluster:
        before = {name: os.environ.get(name) for name in cluster.environment}
        os.environ.update(cluster.environment)
        try:
            yield cluster
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
