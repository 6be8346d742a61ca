"""Checkpoints of every (ZeRO stage, workers) continued at every other: {0, 1, 2, 3} x {1, 2, 4}.

    python benchmarks/elastic_matrix.py [--precision fp32|bf16|fp16|both|all]

Prints, for each pair, the largest relative difference of a loss from the run that was not interrupted; `=` is bit for
bit. Moments and averages are compared right after loading: a difference there ends it with an error. Below each matrix
stands the most that a pair of two places differed by, and what it may: in 16 bits a sum in another order now and then
rounds to the neighbouring number, and the loss follows it. `both` are fp32 and bf16. Exit code 1 if a pair of the same
place is not equal, or another is out of its tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import root_on_path  # noqa: F401 - tests/ is found through it
import torch
from rich.console import Console
from rich.table import Table

from tests.trainer.small_training import ROLES, states
from tests.trainer.test_elastic_resume import MIDDLE, TOLERANCE, Matrix, Pair, Place

PLACES: list[Place] = [(stage, world) for world in (1, 2, 4) for stage in (0, 1, 2, 3)]
PRECISIONS = {name: [name] for name in TOLERANCE} | {"both": ["fp32", "bf16"], "all": list(TOLERANCE)}


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


def name_of(place: Place) -> str:
    """For instance zero2x4."""
    return f"zero{place[0]}x{place[1]}"


def show(matrix: Matrix, precision: str, console: Console) -> bool:
    """Print the matrix of one precision, and its extremes. Returns whether all of it is within tolerance."""
    table = Table("from \\ to", *map(name_of, PLACES), title=precision, box=None)
    same, elsewhere = 0.0, 0.0
    for here in PLACES:
        found = {there: difference(matrix, (precision, here, there)) for there in PLACES}
        table.add_row(name_of(here), *("=" if not d else f"{d:.0e}" for d in found.values()))
        same = max(same, found.pop(here))
        elsewhere = max(elsewhere, *found.values())
    console.print(table)
    equal = "bit for bit" if same == 0 else f"NOT equal ({same:.1e})"
    tolerance = TOLERANCE[precision]
    console.print(f"{precision}: same place {equal}; elsewhere at most {elsewhere:.1e}, tolerance {tolerance:.0e}")
    return same == 0 and elsewhere <= tolerance


def main() -> None:
    """Run all pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="both")
    good = True
    for precision in PRECISIONS[parser.parse_args().precision]:
        with tempfile.TemporaryDirectory() as folder:
            matrix = Matrix(Path(folder))
            matrix.run([(precision, here, there) for here in PLACES for there in PLACES])
            good &= show(matrix, precision, Console(width=160))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
