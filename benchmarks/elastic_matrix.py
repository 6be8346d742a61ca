"""Checkpoints of every (ZeRO stage, workers) continued at every other: {0, 1, 2, 3} x {1, 2, 4}, in fp32 and bf16.

    python -m benchmarks.elastic_matrix [--precision fp32|bf16]

Prints, for each pair, the largest relative difference of a loss from the run that was not interrupted; `=` is bit for
bit. Moments and averages are compared right after loading: a difference there ends it with an error. Exit code 1 if a
pair of the same place is not equal, or an fp32 pair differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.trainer.small_training import ROLES, states
from tests.trainer.test_elastic_resume import MIDDLE, Matrix, Pair, Place

PLACES: list[Place] = [(stage, world) for world in (1, 2, 4) for stage in (0, 1, 2, 3)]
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


def difference(matrix: Matrix, pair: Pair) -> float:
    """Largest relative difference of the losses of a resumed run.

    Raises:
        ValueError: if what was loaded is not what was saved.
    """
    precision, here, _ = pair
    saved, loaded = states(matrix.source(precision, here), MIDDLE), states(matrix.target(pair), MIDDLE)
    if not all(torch.equal(saved[role][name], loaded[role][name]) for role in ROLES for name in saved[role]):
        raise ValueError(f"{pair}: what was loaded is not what was saved")
    expected, losses = matrix.whole[precision, here][MIDDLE:], matrix.again[pair]["losses"]
    return max(abs(one - other) / abs(one) for one, other in zip(expected, losses, strict=True))


def show(matrix: Matrix, precision: str, console: Console) -> bool:
    """Print the matrix of one precision. Returns whether all of it is within tolerance."""
    table = Table("from \\ to", *(f"zero{stage}x{world}" for stage, world in PLACES), title=precision, box=None)
    good = True
    for here in PLACES:
        found = {there: difference(matrix, (precision, here, there)) for there in PLACES}
        good &= found[here] == 0 and max(found.values()) <= TOLERANCE[precision]
        table.add_row(f"zero{here[0]}x{here[1]}", *("=" if not d else f"{d:.0e}" for d in found.values()))
    console.print(table)
    return good


def main() -> None:
    """Run all pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    chosen = parser.parse_args().precision
    precisions = [chosen] if chosen else ["fp32", "bf16"]
    good = True
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            matrix = Matrix(Path(folder))
            matrix.run([(precision, here, there) for here in PLACES for there in PLACES])
            good &= show(matrix, precision, Console(width=160))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
