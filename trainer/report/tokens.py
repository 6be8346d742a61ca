"""What the report shows of tokens: codes by position, what branches share, and what their bits are worth."""

from __future__ import annotations

from typing import Any

from trainer.report.charts import number
from trainer.report.data import Evaluation


def positions(evaluation: Evaluation, names: list[str]) -> list[dict[str, Any]]:
    """For each fold and group a heat map of how many codes, by perplexity, each position uses; squares as squares."""
    found = []
    offset = 0
    for positions in evaluation.groups:
        side = round(positions**0.5)
        columns = side if side * side == positions else min(positions, 32)
        maps = []
        for name, values in zip(names, evaluation.perplexity_of_positions, strict=False):
            own = values[offset : offset + positions]
            most = max(own, default=1.0) or 1.0
            cells = [{"share": round(value / most, 3), "value": number(value)} for value in own]
            maps.append({"fold": name, "cells": cells, "least": number(min(own, default=0.0)), "most": number(most)})
        found.append({"positions": f"{positions:,}", "columns": columns, "maps": maps})
        offset += positions
    return found if evaluation.perplexity_of_positions and offset == len(evaluation.perplexity_of_positions[0]) else []


def shared(evaluation: Evaluation, names: list[str]) -> list[dict[str, Any]]:
    """Mutual information of each pair of folds by group, with the estimate of shuffled images taken off."""
    rows = []
    for each in evaluation.mutual_information:
        one, other = (names[fold] if fold < len(names) else f"fold {fold + 1}" for fold in each.folds)
        cells = [
            {
                "bits": f"{max(0.0, plain - shuffled):.2f}",
                "note": f"{plain:.2f} plain, {shuffled:.2f} shuffled, of {entropy:.2f}",
            }
            for plain, shuffled, entropy in zip(each.plain, each.shuffled, each.entropy, strict=False)
        ]
        rows.append({"pair": f"{one} and {other}", "cells": cells})
    return rows


def baselines(evaluation: Evaluation) -> list[dict[str, str]]:
    """A row for each prefix: the tokenizer's error beside that of principal components of as many bits."""
    found = evaluation.baselines
    if found is None or len(found.bits) != len(evaluation.mse_of_prefixes):
        return []
    return [
        {"bits": f"{bits:,}", "own": number(own), "components": number(theirs), "ratio": number(own / theirs)}
        for bits, own, theirs in zip(found.bits, evaluation.mse_of_prefixes, found.mse, strict=True)
        if theirs
    ]
