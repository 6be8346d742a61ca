"""Before tokens are made: whether the tokenizer is as good as the config asks (`tokens.require`).

Its card says what was measured while it trained. One that says nothing (it was imported, or trained without looks) is
measured here, on held-out images.
"""

from __future__ import annotations

import os

from cluster.config.run import RunConfig
from cluster.stages.inputs import held_out_images
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.measured import Measured
from data_pipeline.text.counted import counted
from trainer.evaluation.tokenizers.gate import failures

_IMAGES = 256
"""That a tokenizer is measured on here, at most."""


def check_tokenizer_gate(config: RunConfig) -> None:
    """Refuse a tokenizer that is outside of what the config asks for.

    Raises:
        UsageError: if it is; it names each number, its branch and scale, and what to do.
    """
    require = config.tokens.require
    if require is None:
        return
    uri = config.product("tokenizer")
    measured = weights.read_card(uri, "tokenizer").measured or _measure(config, uri)
    wrong = list(failures(require, measured))
    if wrong:
        when = "" if measured.step is None else f", after step {measured.step:,}"
        found = "\n  ".join(wrong)
        raise UsageError(
            f"tokens.require: the tokenizer at {uri} has, on {counted(measured.images, 'image')}{when}:\n  {found}\n"
            "Train it further or otherwise (tokenizer.dead_code_steps restarts codes that nothing uses; fewer codes "
            "are used better), ask for less, or tokenize all the same with --anyway"
        )


def _measure(config: RunConfig, uri: str) -> Measured:
    images = held_out_images(config)
    console().print(
        f"tokenize: the card of {uri} says nothing of its quality: it is measured on {images}", markup=False
    )
    import torch

    from data_pipeline.node.node_cache import NodeCache
    from data_pipeline.shards.tokenizers import load_tokenizer
    from trainer.engine.device import driver_device
    from trainer.evaluation.tokenizers.tokenizer_record import LabelledPixels, measure

    torch.set_num_threads(os.cpu_count() or 1)
    device, _ = driver_device(config.cluster.gpus_per_worker)
    network, _ = load_tokenizer(uri, device)
    cache = NodeCache(config.data.reading.cache_dir, config.data.reading.cache_bytes)
    size = network.config.image_size
    shown = LabelledPixels.load(storage.absolute(images), size, config.data.fit, _IMAGES, cache)
    return measure(network, shown.pixels_NHWC, device)
