"""Metrics in Weights & Biases, offline beside the run unless WANDB_MODE says otherwise."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from data_pipeline import storage


def wandb_is_wanted(setting: Literal["auto", "off"]) -> bool:
    """Whether to start it: not if the config says off, nor with WANDB_MODE=disabled."""
    return setting == "auto" and os.environ.get("WANDB_MODE", "offline") != "disabled"


class WandbReader:
    """One W&B run for this start of a stage.

    Args:
        folder: of the stage; if it is remote, W&B's files lie in a temporary folder of this machine until the end, when
            those of an offline run are put into `wandb/` of the stage, for `wandb sync`.
        name: of the stage.
        config: of the whole run.
    """

    def __init__(self, folder: str, name: str, config: dict[str, Any]) -> None:
        import wandb

        self._folder = folder
        self._scratch = Path(tempfile.mkdtemp(prefix="wandb-")) if storage.is_remote(folder) else None
        self._run = wandb.init(
            project="foldtrain",
            name=name,
            config=config,
            dir=folder if self._scratch is None else str(self._scratch),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own step cannot go back, as a rollback does

    def write(self, record: dict[str, Any]) -> None:
        """Log the numbers and pictures of a record; `step` is one of them."""
        shown = {name: value for name, value in record.items() if isinstance(value, int | float)}
        self._run.log(shown | {name: _picture(value) for name, value in record.items() if isinstance(value, bytes)})

    def close(self) -> None:
        """Finish the run, and W&B's own process, which has written all of it once it has ended."""
        import wandb

        try:
            self._run.finish()
            # A worker may be ended without its exit handlers, and then this process leaves its folder behind.
            wandb.teardown()
            self._put()
        finally:
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def _put(self) -> None:
        """The files of offline runs, to where the stage is."""
        if self._scratch is None:
            return
        for path in sorted(self._scratch.glob("wandb/offline-run-*/**/*")):
            if path.is_file() and not path.is_symlink():
                uri = storage.join(self._folder, str(path.relative_to(self._scratch)))
                storage.write_bytes(uri, path.read_bytes())


def _picture(png: bytes) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png)))
