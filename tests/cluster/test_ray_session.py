"""A command's connection to Ray, and how it ends."""

from __future__ import annotations

import signal

import pytest

from cluster.config import ClusterConfig
from cluster.ray_session import ray_session


@pytest.mark.xdist_group("ray")
def test_sigterm_ends_a_command_between_its_stages_in_order() -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, ray_session(ClusterConfig()):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
