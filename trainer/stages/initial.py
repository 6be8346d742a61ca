"""Weights that a stage starts from, in place of random ones: `init_from` of its section.

They go into the network before the engine takes it over, so that master weights and moving average start from them, and
optimizer moments from zero. A start that finds a checkpoint goes on from that, and does not read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import differences
from trainer.checkpoints.catalog import latest_step
from trainer.job import INITIAL, TrainJob
from trainer.registry import trained_in

if TYPE_CHECKING:
    from torch import nn

_NAMED = 3
"""Tensors that a refusal names."""


def load_initial(job: TrainJob, network: nn.Module, config: dict[str, Any]) -> None:
    """Give a network the weights that it is to start from, if there are any.

    Args:
        job: what is trained.
        network: of it, as made.
        config: of the network, as its card will have it, for the refusal.

    Raises:
        UsageError: if the weights are of another network than the one that is to be trained, or not those that the
            driver has found; it names tensors and settings that differ.
    """
    if INITIAL not in job.inputs or latest_step(job.checkpoints) is not None:
        return
    key, uri = f"{trained_in(job.stage).section}.init_from", job.inputs[INITIAL]
    card, state = weights.read_weights(uri, job.stage)
    if card.fingerprint() != job.lineage[INITIAL]:
        raise UsageError(f"{key}: the weights at {uri} were replaced while this start was under way: start it again")
    here = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differs = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differs:
        named = "; ".join(f"{name} {there.get(name, 'none')} -> {here.get(name, 'none')}" for name in differs[:_NAMED])
        more = f" and {len(differs) - _NAMED} more" if len(differs) > _NAMED else ""
        settings = ", ".join(differences(card.config, config)) or "none"
        raise UsageError(
            f"{key}: the {job.stage} at {uri} is of another shape than the one to be trained (there -> here): {named}"
            f"{more}. Settings that differ: {settings}. Set those that decide the shape as they are there, or train "
            "without init_from"
        )
    network.load_state_dict(state)
