"""What frozen networks say of images, as rows: features, logits. The rows of each are under the name of its slot.

Shapes: B images, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels
from trainer.config.feature_networks import FeatureNetworkConfig
from trainer.evaluation.measures import ImageMeasure, Rows

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.networks.feature_networks import FeatureNetwork


FEATURES = "features"
"""The output of a network that distances are of."""


def row_name(slot: str, output: str, keep: int | None = None) -> str:
    """`<slot>.<output>`; of what the first `keep` positions of the tokens give, `keep<N>.<slot>.<output>`."""
    return f"{slot}.{output}" if keep is None else f"keep{keep}.{slot}.{output}"


@dataclass(frozen=True)
class Slot:
    """A network under a name."""

    name: str
    """teacher, judge, inception, …: how its rows begin."""
    config: FeatureNetworkConfig
    identity: dict[str, Any]
    """What it is, with the hash of its weights."""
    is_fid: bool = False
    """Whether distances of its features are FID."""


@dataclass(frozen=True)
class NetworkRows:
    """Rows `<slot>.<output>` of each network's outputs."""

    slots: tuple[Slot, ...]

    def identity(self) -> dict[str, Any]:
        """The networks."""
        return {"kind": "networks"} | {slot.name: slot.identity for slot in self.slots}

    def open(self, device: torch.device) -> ImageMeasure:
        """Load them.

        Raises:
            UsageError: if one is another by now.
        """
        return OpenNetworkRows(open_slots(self.slots, device), device)


def open_slots(slots: Sequence[Slot], device: torch.device) -> dict[str, FeatureNetwork]:
    """The networks by slot.

    Raises:
        UsageError: if one is another than its slot says.
    """
    from trainer.evaluation.networks.feature_networks import open_network

    found = {slot.name: open_network(slot.config, device) for slot in slots}
    for slot in slots:
        if found[slot.name].identity() != slot.identity:
            raise UsageError(f"the network {slot.name} was trained again meanwhile: start the evaluation again")
    return found


@dataclass(frozen=True)
class OpenNetworkRows:
    """The networks in memory."""

    networks: Mapping[str, FeatureNetwork]
    device: torch.device

    def __call__(self, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64], first: int) -> Rows:  # noqa: ARG002
        """What they say of a batch."""
        return rows_of(self.networks, pixels_BHWC, self.device)


def rows_of(networks: Mapping[str, FeatureNetwork], pixels_BHWC: Pixels, device: torch.device) -> Rows:
    """The outputs of networks as rows."""
    import torch

    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2))).to(device)
    return {
        f"{slot}.{name}": values.float().cpu().numpy()
        for slot, network in networks.items()
        for name, values in network(pixels_BCHW).items()
    }
