"""What in a run does not belong together: it is shown all the same, with a note that says so.

Samples may be drawn otherwise than those that were judged, by other networks, or a network may have been trained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.weights import Card
from trainer.report.data import Evaluation, Samples, StageRecords

_NOT_DECIDING = frozenset({"samples_per_class", "classes", "batch", "cpu_batch"})
"""Settings of sampling that do not decide what an image of a class looks like; all others do."""


def notes(
    run_uri: str, evaluation: Evaluation, samples: Samples | None, records: tuple[StageRecords, ...]
) -> Iterator[str]:
    """Sentences, one for each pair that does not belong together."""
    if samples is not None:
        changed = list(_changes(samples.sampling, evaluation.sampling))
        if changed:
            yield f"The samples shown were drawn otherwise than those that were judged: {', '.join(changed)}."
        others = _others(samples.fingerprints, evaluation.fingerprints)
        if others:
            yield f"The samples shown are of another {' and '.join(others)} than was judged: draw them again."
    for stage in records:
        yield from _stage_notes(run_uri, stage, evaluation)


def _changes(shown: Mapping[str, Any], judged: Mapping[str, Any]) -> Iterator[str]:
    for key in shown:
        if key in judged and key not in _NOT_DECIDING and shown[key] != judged[key]:
            yield f"{key} {shown[key]} here, {judged[key]} there"


def _others(shown: Mapping[str, Any], judged: Mapping[str, Any]) -> list[str]:
    return [name for name in shown if name in judged and shown[name] != judged[name]]


def _stage_notes(run_uri: str, records: StageRecords, evaluation: Evaluation) -> Iterator[str]:
    given = evaluation.inputs.get(records.stage)
    card = card_at(given or storage.join(run_uri, records.stage, "export"), records.stage)
    if card is None:
        return
    judged = evaluation.fingerprints.get(records.stage)
    if judged is not None and judged != card.fingerprint():
        yield f"The {records.stage} was trained again since it was judged: evaluate again."
    step = int(records.steps.max(initial=0))
    if card.steps is not None and step > card.steps:
        yield (
            f"The {records.stage} is being trained further: the curves go to step {step}, and the network that is "
            f"there has {card.steps}."
        )


def card_at(uri: str, stage: str) -> Card | None:
    """What a stage's network at a place is; None if there is none, or none that can be read."""
    try:
        return weights.read_card(uri, stage)
    except UsageError:
        return None


def hashes_of(card: Card) -> frozenset[str]:
    """All that records may name a network by: whole or halves, of the weights as trained or of their average."""
    named = (name(ema) for name in (card.fingerprint, card.encoder, card.decoder) for ema in (True, False))
    return frozenset((*named, *card.files.values()))
