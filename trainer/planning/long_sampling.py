"""Sampling of many positions from the traces of a few: a step for each, whose operations differ in lengths alone.

    traced     | begin | step | step | step | step | end |                      of 4 and of 9 positions
    continued  | begin | step | step | step | … | step | step | step | end |    of as many as are asked for

The difference of the two traces is five steps, so the length of one is known. Each operation of a step grows from step
to step by what it grew between two neighbours: what it computes and moves is a line in the positions before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.planning.operation import Operation

FEW = (4, 9)
"""Positions that are traced: squares, as some networks want."""
Tensors = tuple[tuple[int, int], ...]
"""Numbers of storages, and bytes."""
_APART = 2**40
"""Between the numbers of storages that one step makes and those of the next."""


def continued(fewer: Sequence[Operation], more: Sequence[Operation], positions: int) -> list[Operation]:
    """The operations of sampling `positions` of them, from those of sampling FEW.

    Raises:
        ValueError: if the traces are not of steps that are all alike.
    """
    size, rest = divmod(len(more) - len(fewer), FEW[1] - FEW[0])
    middle = len(more) // 2
    before, step = more[middle - size : middle], more[middle : middle + size]
    if rest or size < 1 or len(before) != size or [op.name for op in before] != [op.name for op in step]:
        raise ValueError("the steps of sampling are not alike: trace all of them")
    extra = positions - FEW[1]
    inserted = [
        _grown(last, here, there, number, apart=True)
        for number in range(1, extra + 1)
        for last, here, there in zip(step, before, step, strict=True)
    ]
    tail = [
        _grown(op, before[index % size], step[index % size], extra) for index, op in enumerate(more[middle + size :])
    ]
    return [*more[: middle + size], *inserted, *tail]


def _grown(op: Operation, here: Operation, there: Operation, steps: int, *, apart: bool = False) -> Operation:
    """An operation as it is so many steps later, by how its like grew from one step (`here`) to the next (`there`)."""
    if op.name != there.name or len(op.reads) != len(there.reads) or len(op.writes) != len(there.writes):
        return op  # of the end
    offset = steps * _APART if apart else 0

    def moved(tensors: Tensors, first: Tensors, then: Tensors) -> Tensors:
        rows = zip(tensors, first, then, strict=True)
        return tuple(
            # A storage that both steps have is a weight or a cache; any other is the step's own.
            (number if one[0] == two[0] else number + offset, size + steps * (two[1] - one[1]))
            for (number, size), one, two in rows
        )

    return replace(
        op,
        flops=op.flops + steps * (there.flops - here.flops),
        exact_flops=op.exact_flops + steps * (there.exact_flops - here.exact_flops),
        reads=moved(op.reads, here.reads, there.reads),
        writes=moved(op.writes, here.writes, there.writes),
    )
