"""Weights that a stage starts from, in place of random ones: `init_from` of its section.

They go into the network before the engine takes it over, so that master weights and moving average start from them, and
optimizer moments from zero. A start that finds a checkpoint goes on from that, and does not read them.

Parameters that `init_except` names start anew: a class table for other classes, a head for other codes. Which ones
these are is an event of the stage (`initial`), and nothing else may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import differences
from trainer.checkpoints.catalog import latest_step
from trainer.job import INITIAL, TrainJob
from trainer.records.run_directory import append_event
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
    section, uri = trained_in(job.stage).section, job.inputs[INITIAL]
    key = f"{section}.init_from"
    card, state = weights.read_weights(uri, job.stage)
    if card.fingerprint() != job.lineage[INITIAL]:
        raise UsageError(f"{key}: the weights at {uri} were replaced while this start was under way: start it again")
    own = network.state_dict()
    anew = _anew(job, key, sorted(own.keys() | state.keys()))
    here = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in anew}
    there = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in anew}
    differs = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differs:
        named = "; ".join(f"{name} {there.get(name, 'none')} -> {here.get(name, 'none')}" for name in differs[:_NAMED])
        more = f" and {len(differs) - _NAMED} more" if len(differs) > _NAMED else ""
        settings = ", ".join(differences(card.config, config)) or "none"
        raise UsageError(
            f"{key}: the {job.stage} at {uri} is of another shape than the one to be trained (there -> here): {named}"
            f"{more}. Settings that differ: {settings}. Set those that decide the shape as they are there, name "
            f"what is to start anew as {section}.init_except, or train without init_from"
        )
    network.load_state_dict({name: own[name] if name in anew else state[name] for name in own})
    if anew and _is_first_rank():
        kept = [name for name in own if name not in anew]
        append_event(job.folder, "initial", 0, weights=uri, anew=[name for name in own if name in anew], kept=len(kept))


def _anew(job: TrainJob, key: str, names: list[str]) -> set[str]:
    """The parameters that start anew, of those of either network.

    Raises:
        UsageError: if one that is named is in neither.
    """
    asked = job.section.init_except or ()
    found = {part: {name for name in names if name == part or name.startswith(f"{part}.")} for part in asked}
    unknown = [part for part, matching in found.items() if not matching]
    if unknown:
        tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
        raise UsageError(
            f"{key.removesuffix('from')}except: {unknown} name no parameter of the {job.stage}. Its parameters are "
            f"those of {tops}"
        )
    return {name for matching in found.values() for name in matching}


def _is_first_rank() -> bool:
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0
