"""Metrics in Weights & Biases, offline beside the run unless WANDB_MODE says otherwise."""

from __future__ import annotations

import io
import os
import tempfile
from typing import Any, Literal

from data_pipeline import storage


def wandb_is_wanted(setting: Literal["auto", "off"]) -> bool:
    """Whether to start it: not if the config says off, nor with WANDB_MODE=disabled."""
    return setting == "auto" and os.environ.get("WANDB_MODE", "offline") != "disabled"


class WandbReader:
    """One W&B run for this start of a stage.

    Args:
        folder: of the stage; if it is remote, W&B's files lie in a temporary folder of this machine.
        name: of the stage.
        config: of the whole run.
    """

    def __init__(self, folder: str, name: str, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project="foldtrain",
            name=name,
            config=config,
            dir=tempfile.mkdtemp(prefix="wandb-") if storage.is_remote(folder) else folder,
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own step cannot go back, as a rollback does

    def write(self, record: dict[str, Any]) -> None:
        """Log the numbers and pictures of a record; `step` is one of them."""
        shown = {name: value for name, value in record.items() if isinstance(value, int | float)}
        self._run.log(shown | {name: _picture(value) for name, value in record.items() if isinstance(value, bytes)})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _picture(png: bytes) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png)))
