"""The frozen proxy whose codes a tokenizer learns to predict: TiTok's stage 1 (arXiv 2406.07550, 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from data_pipeline.shards import tokenizers
from model.layers.precision import without_autocast
from model.protocols import Tokenizer
from trainer.job import PROXY, TrainJob

PROXY_CODES = "proxy_BK"
"""Among what a training pass is given: the proxy's codes of each image, int64."""


def load_proxy(job: TrainJob, device: torch.device) -> Tokenizer:
    """The proxy of a job, with its moving-average weights, in float32 and frozen.

    Raises:
        UsageError: if it is not the one that the driver has found.
    """
    uri = job.inputs[PROXY]
    proxy, card = tokenizers.load_tokenizer(uri, device)
    if card.fingerprint() != job.lineage[PROXY]:
        raise UsageError(f"inputs.proxy: the tokenizer at {uri} was replaced while this start was under way: try again")
    return proxy


@torch.no_grad()
def proxy_codes(proxy: Tokenizer, image_BCHW: Tensor) -> Tensor:
    """Its codes of images in [-1, 1], [B, K]: of one fold, in float32 whatever the precision of training."""
    with without_autocast(image_BCHW.device):
        return proxy.tokenize(image_BCHW.float())[..., 0]
