"""The 2015 Inception, as ADM's evaluator takes it: FID, sFID, Inception score, precision and recall.

The network, its resizing as TensorFlow 1 did it and its normalization are torch-fidelity's. Of one image come

    features   [2048]  pool_3: FID, precision, recall (Heusel et al. 2017; Kynkäänniemi et al. 2019)
    spatial    [2023]  the first 7 channels of mixed_6/conv after its rectifier, 17 × 17, in the order of rows, columns,
                       channels: sFID (Nash et al. 2021, arXiv 2103.03841; the order of mu_s in ADM's npz)
    logits     [1008]  without bias: Inception score (Salimans et al. 2016)

Shapes: B images, C channels, H, W sides.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import UsageError
from trainer.config.feature_networks import INCEPTION_SHA256, InceptionNetwork
from trainer.evaluation.networks.weight_bytes import parse_weights, read_file

SPATIAL_CHANNELS = 7
PUBLISHED = (
    "the 2015 Inception is published by torch-fidelity (github.com/toshas/torch-fidelity, release v0.2.0) as "
    "weights-inception-2015-12-05-6726825d.pth, and by pytorch-fid (github.com/mseitzer/pytorch-fid, release "
    "fid_weights) as pt_inception-2015-12-05-6726825d.pth, the same bytes"
)


class Inception:
    """The network as a `FeatureNetwork`.

    Raises:
        UsageError: if the file is not there, has another sha256 than the config asks for, or is of another network.
    """

    def __init__(self, config: InceptionNetwork, device: torch.device) -> None:
        data = read_file(config.file, PUBLISHED)
        self.sha256 = storage.sha256(data)
        if not self.sha256.startswith(config.sha256):
            raise UsageError(
                f"{config.file} has the sha256 {self.sha256}, but {config.sha256} is asked for: {PUBLISHED}. To use "
                f"this file all the same, set sha256: {self.sha256[:8]} beside it: its numbers are not called FID"
            )
        self.network = _network(config.file, parse_weights(config.file, data, PUBLISHED)).to(device)
        self._spatial: list[Tensor] = []
        branch: nn.Module = self.network.get_submodule("Mixed_6d.branch1x1")
        branch.register_forward_hook(self._keep_spatial)

    @property
    def is_fid(self) -> bool:
        """Whether the file is the published one."""
        return self.sha256 == INCEPTION_SHA256

    @property
    def name(self) -> str:
        """inception-2015, or inception-HASH of another file."""
        return "inception-2015" if self.is_fid else f"inception-{self.sha256[:8]}"

    def identity(self) -> dict[str, Any]:
        """Kind, name, and sha256 of the file."""
        return {"kind": "inception", "name": self.name, "sha256": self.sha256}

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 -> features [B, 2048], spatial [B, 2023], logits [B, 1008], float32."""
        features_BD, logits_BK = self.network(pixels_BCHW)
        return {"features": features_BD, "spatial": self._spatial.pop(), "logits": logits_BK}

    def _keep_spatial(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output_BCHW: Tensor) -> None:
        self._spatial = [output_BCHW[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)]


def _network(uri: str, state: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's network. It loads a file by itself, with pickle, so it is given one that is written here."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], buffer)
    except RuntimeError as error:
        problems = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise UsageError(f"{uri} has the weights of another network ({problems[:300]}): {PUBLISHED}") from None
    return network
