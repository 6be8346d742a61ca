"""Imports of a training process, made before there is anything to train: they are seconds of every start."""

from __future__ import annotations

import os
from importlib import import_module

from trainer.registry import trained_in


def import_stage(stage: str, device: str) -> None:
    """Import torch, DeepSpeed, and all that a stage is made of.

    Args:
        stage: its name.
        device: type of this process's device, "cpu" or "cuda", which DeepSpeed reads when it is imported.
    """
    from data_pipeline.node.compiled_code import keep_compiled_code_private

    keep_compiled_code_private()
    os.environ["DS_ACCELERATOR"] = device
    own = trained_in(stage).trains.partition(":")[0]
    for module in ("deepspeed", "torch._dynamo", "trainer.loop.compose", own):
        import_module(module)
