"""Checkpoints of every (ZeRO stage, workers) continued at every other: {0, 1, 2, 3} x {1, 2, 4}.

    python benchmarks/elastic_matrix.py [--precision fp32|bf16|fp16|both|all] [--two-networks] [--tokenizer]
                                       [--json FILE]

Prints, for each pair, the largest relative difference of a loss from the run that was not interrupted; `=` is bit for
bit. Moments and averages are compared right after loading: a difference there ends it with an error. Below each matrix
stands the most that a pair of two places differed by, and what it may: in 16 bits a sum in another order now and then
rounds to the neighbouring number, and the loss follows it. `both` are fp32 and bf16. Exit code 1 if a pair of the same
place is not equal, or another is out of its tolerance.

With --two-networks a generator and a critic are trained instead, in fp32, by the training loop itself with two
micro-batches a step; compared are all weights, moments and averages at the end, and their largest absolute difference.

With --tokenizer it is a tokenizer with its discriminator and every loss, {0, 1, 2, 3} x {1, 2} x {1, 3} micro-batches:
killed (kill -9) at each place between the two updates of a step, and gone on with at every place. Compared are losses,
adaptive weight, LeCam and the norm of the discriminator's gradient; at the same place all numbers of the checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import root_on_path  # noqa: F401 - tests/ is found through it
import torch
from report import write_figures
from rich.console import Console
from rich.table import Table

from tests.trainer import test_adversarial_resume as adversarial
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import ROLES, states
from tests.trainer.test_adversarial import resumed, tensors, unbroken
from tests.trainer.test_elastic_resume import MIDDLE, TOLERANCE, Matrix, Pair, Place
from tests.trainer.toy_adversarial import SAVED, STEPS
from trainer.checkpoints.catalog import step_folder

PLACES: list[Place] = [(stage, world) for world in (1, 2, 4) for stage in (0, 1, 2, 3)]
PRECISIONS = {name: [name] for name in TOLERANCE} | {"both": ["fp32", "bf16"], "all": list(TOLERANCE)}


@dataclass(frozen=True)
class Extremes:
    """What pairs differ by at most: those of the same place, which are to be equal, and those of two places."""

    name: str
    same: float
    elsewhere: float
    tolerance: float
    """Of `elsewhere`."""

    @property
    def is_good(self) -> bool:
        """Whether all is within tolerance."""
        return self.same == 0 and self.elsewhere <= self.tolerance

    def __str__(self) -> str:
        equal = "bit for bit" if self.same == 0 else f"NOT equal ({self.same:.1e})"
        return (
            f"{self.name}: same place {equal}; elsewhere at most {self.elsewhere:.1e}, tolerance {self.tolerance:.0e}"
        )


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


def show(matrix: Matrix, precision: str, console: Console) -> Extremes:
    """Print the matrix of one precision."""
    table = Table("from \\ to", *map(name_of, PLACES), title=precision, box=None)
    same, elsewhere = 0.0, 0.0
    for here in PLACES:
        found = {there: difference(matrix, (precision, here, there)) for there in PLACES}
        table.add_row(name_of(here), *("=" if not d else f"{d:.0e}" for d in found.values()))
        same = max(same, found.pop(here))
        elsewhere = max(elsewhere, *found.values())
    console.print(table)
    return Extremes(precision, same, elsewhere, TOLERANCE[precision])


NETWORKS_DIFFER = 1e-5
"""Largest absolute difference of a number of two networks at another place."""


def two_networks(console: Console, root: Path) -> Extremes:
    """The matrix of a stage with two trainables."""
    worlds = sorted({world for _, world in PLACES})
    for world in worlds:
        run_gloo(world, root, unbroken, str(root / str(world)), patience=600)
    moved = {pair: root / f"{name_of(pair[0])}-to-{name_of(pair[1])}" for pair in itertools.product(PLACES, PLACES)}
    for (here, _), folder in moved.items():
        source = root / str(here[1]) / str(here[0]) / "checkpoints"
        shutil.copytree(step_folder(str(source), SAVED), step_folder(str(folder / "checkpoints"), SAVED))
    for world in worlds:
        jobs = [(there[0], str(folder)) for (_, there), folder in moved.items() if there[1] == world]
        # Stage 3 last: DeepSpeed then replaces torch's linear layer for the process, and what follows rounds otherwise.
        run_gloo(world, root, resumed, sorted(jobs), patience=1800)
    table, same, elsewhere = Table("from \\ to", *map(name_of, PLACES), title="two networks", box=None), 0.0, 0.0
    for here in PLACES:
        whole = tensors(root / str(here[1]) / str(here[0]), STEPS)
        again = {there: tensors(moved[here, there], STEPS) for there in PLACES}
        found = {
            there: max(float((each[name] - whole[name]).abs().max()) for name in whole) for there, each in again.items()
        }
        table.add_row(name_of(here), *("=" if not d else f"{d:.0e}" for d in found.values()))
        same, elsewhere = max(same, found.pop(here)), max(elsewhere, *found.values())
    console.print(table)
    return Extremes("two networks", same, elsewhere, NETWORKS_DIFFER)


TOKENIZERS_DIFFER = 1e-3
"""Largest relative difference of a loss of a tokenizer at another place."""


def tokenizer(console: Console, root: Path) -> Extremes:
    """The matrix of a tokenizer with its discriminator."""
    places = adversarial.ALL
    whole, killed = ({place: root / name / adversarial.name_of(place) for place in places} for name in ("whole", "cut"))
    adversarial.run_each(root, whole.items())
    (root / "cut").mkdir()
    for place in places:
        adversarial.killed(place, killed[place])
    moved = {
        pair: root / "moved" / "-".join(map(adversarial.name_of, pair)) for pair in itertools.product(places, places)
    }
    for (here, there), folder in moved.items():
        if here != there:
            adversarial.moved(killed[here], folder)
    moved |= {(place, place): killed[place] for place in places}
    adversarial.run_each(root, [(there, folder) for (_, there), folder in moved.items()], patience=7200)
    short = [f"{zero}x{world}-{parts}" for zero, world, parts in places]
    table, elsewhere, same = Table("from \\ to", *short, title="tokenizer with discriminator", box=None), 0.0, 0.0
    for here in places:
        found = {there: _relative(whole[here], moved[here, there]) for there in places}
        table.add_row(short[places.index(here)], *("=" if not d else f"{d:.0e}" for d in found.values()))
        expected, again = (adversarial.tensors(folder) for folder in (whole[here], moved[here, here]))
        apart = (float((again[name].double() - tensor.double()).abs().max()) for name, tensor in expected.items())
        same = max(same, found.pop(here), *apart)
        elsewhere = max(elsewhere, *found.values())
    console.print(table)
    return Extremes("tokenizer with discriminator", same, elsewhere, TOKENIZERS_DIFFER)


def _relative(whole: Path, moved: Path) -> float:
    """Largest relative difference of a number of the steps after the checkpoint."""
    steps = [adversarial.metrics(folder)[-(adversarial.STEPS - adversarial.SAVED) :] for folder in (whole, moved)]
    pairs = [(one[name], other[name]) for one, other in zip(*steps, strict=True) for name in one]
    return max(abs(one - other) / max(abs(one), 1e-6) for one, other in pairs)


def main() -> None:
    """Run all pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="both")
    parser.add_argument("--two-networks", action="store_true")
    parser.add_argument("--tokenizer", action="store_true")
    parser.add_argument("--json", type=Path, help="write the extremes to this file")
    options, console = parser.parse_args(), Console(width=160)
    found = []
    if options.two_networks or options.tokenizer:
        matrix_of = two_networks if options.two_networks else tokenizer
        with tempfile.TemporaryDirectory() as folder:
            found.append(matrix_of(console, Path(folder)))
    else:
        for precision in PRECISIONS[options.precision]:
            with tempfile.TemporaryDirectory() as folder:
                matrix = Matrix(Path(folder))
                matrix.run([(precision, here, there) for here in PLACES for there in PLACES])
                found.append(show(matrix, precision, console))
    for each in found:
        console.print(str(each))
    if options.json is not None:
        write_figures("elastic matrix", {"matrices": [asdict(each) for each in found]}, options.json)
    sys.exit(0 if all(each.is_good for each in found) else 1)


if __name__ == "__main__":
    main()
