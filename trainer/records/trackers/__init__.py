"""Outside readers of a run's metrics. metrics.jsonl is the source of truth; these show it elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from trainer.config import TrackingConfig
from trainer.records.trackers.follower import Follower, Reader
from trainer.records.trackers.pictures import PictureReader
from trainer.records.trackers.prometheus import PrometheusReader
from trainer.records.trackers.tensorboard import TensorBoardReader
from trainer.records.trackers.weights_and_biases import WandbReader, wandb_is_wanted

CLOSE_SECONDS = 5.0
"""How long the end of a run waits for all readers together."""


def open_followers(tracking: TrackingConfig, folder: str, name: str, config: dict[str, Any]) -> list[Follower]:
    """The readers that a config asks for, each on a thread of its own.

    Args:
        tracking: which ones.
        folder: of the stage, at any URI.
        name: of the stage.
        config: the resolved config of the whole run, which is only recorded.
    """
    wanted: dict[str, Callable[[], Reader]] = {
        "pictures": lambda: PictureReader(folder),
        "prometheus": lambda: PrometheusReader(folder, name, tracking.prometheus_port, tracking.prometheus_host),
    }
    if wandb_is_wanted(tracking.wandb):
        wanted["wandb"] = lambda: WandbReader(folder, name, config)
    if tracking.tensorboard:
        wanted["tensorboard"] = lambda: TensorBoardReader(folder)
    return [Follower(title, reader) for title, reader in wanted.items()]


def close_followers(followers: Sequence[Follower], seconds: float = CLOSE_SECONDS) -> dict[str, int]:
    """Let readers finish, all together within `seconds`.

    Returns:
        For each that missed any, how many records it never took.
    """
    for follower in followers:
        follower.finish()
    deadline = time.monotonic() + seconds
    for follower in followers:
        follower.join(max(0.0, deadline - time.monotonic()))
    return {follower.name: follower.dropped for follower in followers if follower.dropped}
