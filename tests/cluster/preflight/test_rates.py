"""The rate of a link, from how long tensors take over it."""

from __future__ import annotations

import pytest

from cluster.preflight.checks import links


@pytest.mark.parametrize(("rate", "free"), [(10e6, 0), (10e6, 65_536), (300e6, 2**20), (20e9, 0)])
def test_what_a_line_lets_pass_at_once_does_not_count(monkeypatch: pytest.MonkeyPatch, rate: float, free: int) -> None:
    """A line that shapes its traffic lets the first bytes pass at once."""
    sizes = list[int]()

    def seconds(_device: object, size: int) -> float:
        sizes.append(size)
        return max(size - free, 1) / rate

    monkeypatch.setattr(links, "_all_reduce", seconds)
    found = links._rate("cpu")
    assert rate <= found <= rate * 1.1
    assert max(sizes) <= min(2**24, 4 * (0.06 * rate + free) + 2**16), "no longer than it takes to know"
    assert sizes.count(max(sizes)) == 2
