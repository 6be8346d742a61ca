"""What a config needs that a cluster's nodes have to have themselves: nothing secret is sent to them."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.config.fields import map_places
from cluster.config.run import RunConfig
from data_pipeline.storage import uris
from trainer.registry import QUICKSTART, stage_named

_BY_SCHEME = {
    "s3": ("AWS_",),
    "s3a": ("AWS_",),
    "gs": ("GOOGLE_", "GCLOUD_"),
    "gcs": ("GOOGLE_", "GCLOUD_"),
    "abfs": ("AZURE_",),
    "abfss": ("AZURE_",),
    "az": ("AZURE_",),
    "hf": ("HF_", "HUGGING_FACE_", "HUGGINGFACE_"),
}
"""How the names of variables begin that a kind of storage reads."""


def not_sent(stage: str, config: RunConfig, environment: Mapping[str, str]) -> list[str]:
    """What is set here, is needed by a stage, and does not go to a cluster: a sentence for each purpose, no value."""
    purposes: dict[str, tuple[str, ...]] = {}

    def see(_: str, place: str) -> str:
        scheme, _rest = uris.split_scheme(place)
        if scheme in _BY_SCHEME:
            purposes[f"{scheme}://"] = _BY_SCHEME[scheme]
        return place

    map_places(config, see)
    if config.tracking.wandb == "auto" and (stage == QUICKSTART or stage_named(stage).trains):
        purposes["Weights & Biases"] = ("WANDB_",)
    if config.teacher is not None and config.teacher.timm:
        purposes[f"the pretrained teacher {config.teacher.timm}"] = _BY_SCHEME["hf"]
    found = []
    for purpose, prefixes in purposes.items():
        names = sorted(name for name in environment if name.startswith(prefixes))
        if names:
            found.append(f"{', '.join(names)}: set here for {purpose} and not sent; the cluster's nodes need their own")
    return found
