"""Restart of codes that nothing chooses: remedies for codebook collapse that the published ImageFolder does not have.

How a stage calls it, with all ranks doing the same:

1. `codes = CodeRestarts(network.codebooks, config, seed, device)` when it is made
2. `codes.note(output)` in each pass that is trained with (once for each sample of the step; not in previews)
3. `codes.after_step(step, engine)` in its own `after_step`: codes are restarted where that is due
4. `codes.state()` and `codes.load_state(state)` in its own

Codes are restarted as `dead_code_restart` says. What happens is a function of the codebook, the counts, the latents of
the global batch, the seed and the step: it is the same on all ranks, and at any number of them.

Shapes: N latents that this rank looked up in the step, C channels of a code, V codes, G groups (scales), R rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.order.permutations import keyed_bits, keyed_uniform
from model.protocols import TokenizerOutput
from trainer.config import TokenizerStageConfig

_SPREAD = 0.1
_MOST_PRODUCTS = 2**24
"""Products of codes and latents that are in memory at once."""
DECAY = 0.99
"""Of the usage averages of clustering VQ."""

Rows = tuple[Tensor, Tensor]
"""int64 [R] rows of a codebook, and their new values [R, C]."""


class CodebookEngine(Protocol):
    """What is needed of the engine that trains the codebooks."""

    def whole(self, name: str) -> Tensor:
        """A parameter, gathered from all ranks."""
        ...

    def overwrite_rows(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Set rows of it on all ranks."""
        ...


class CodeRestarts:
    """Counts how often each code was chosen, and restarts those that were not."""

    def __init__(
        self, codebooks: dict[str, tuple[int, int]], config: TokenizerStageConfig, seed: int, device: torch.device
    ) -> None:
        self._config, self._seed, self._device = config, seed, device
        self._hits = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in codebooks.items()}
        """How often each code was chosen since the last restart, by codebook; the ranks' numbers add up."""
        clusters = config.dead_code_restart == "cluster"
        self._usage = {name: torch.zeros(codes, device=device) for name, (_, codes) in codebooks.items() if clusters}
        """Moving average of each code's share of all hits; rank 0 has it, and the others zeros."""
        self._seen: dict[str, list[Tensor]] = {name: [] for name in codebooks}

    def note(self, output: TokenizerOutput) -> None:
        """Count what was chosen in a pass, and keep what it was chosen for until the end of the step."""
        if not self._config.dead_code_steps:
            return
        for name, chosen_GV in output.hits.items():
            self._hits[name] += chosen_GV
        if self._config.dead_code_restart != "split":
            for name, seen_NC in output.seen.items():
                self._seen[name].append(seen_NC)

    def after_step(self, step: int, engine: CodebookEngine) -> list[int]:
        """Restart codes if it is time to (a collective then).

        Args:
            step: how many there have been.
            engine: that trains the codebooks.

        Returns:
            How many codes of each codebook were restarted; empty if it was not time, or where codes move all the time.
        """
        seen = {name: torch.cat(parts) for name, parts in self._seen.items() if parts}
        for parts in self._seen.values():
            parts.clear()
        every, until = self._config.dead_code_steps, self._config.trainer.steps * self._config.dead_code_until
        if not every or step % every or step >= until:
            return []
        restarted = []
        for index, (name, hits_GV) in enumerate(self._all_hits().items()):
            rows, values = self._replacements(name, engine.whole(name), hits_GV, seen.get(name), step, index)
            if len(rows):
                engine.overwrite_rows(name, rows, values)
            restarted.append(len(rows))
        for hits_GV in self._hits.values():
            hits_GV.zero_()
        return restarted if self._config.dead_code_restart != "cluster" else []

    def _replacements(
        self, name: str, codebook_VC: Tensor, hits_GV: Tensor, seen_NC: Tensor | None, step: int, index: int
    ) -> Rows:
        how = self._config.dead_code_restart
        if how == "split":
            return replacements(codebook_VC, hits_GV, self._seed, step, index)
        assert seen_NC is not None  # a stage that takes a step looks codes up
        if how == "latent":
            return latents(codebook_VC, hits_GV, seen_NC, self._seed, step, index)
        usage_V = self._everywhere(self._usage[name])
        rows, values, usage_V = clustered(codebook_VC, hits_GV, seen_NC, usage_V)
        self._usage[name] = usage_V if dist.get_rank() == 0 else torch.zeros_like(usage_V)
        return rows, values

    def _all_hits(self) -> dict[str, Tensor]:
        """How often all ranks chose each code since the last restart, int64 [G, V] by codebook (a collective)."""
        return {name: self._everywhere(hits_GV) for name, hits_GV in self._hits.items()}

    @staticmethod
    def _everywhere(part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    def state(self) -> dict[str, Tensor]:
        """The counts since the last restart, and the usage averages, summed over ranks (a collective)."""
        if not self._config.dead_code_steps:  # the config alone decides, so that all ranks reach the collective
            return {}
        usage = {f"usage.{name}": self._everywhere(usage_V) for name, usage_V in self._usage.items()}
        return {f"hits.{name}": hits_GV for name, hits_GV in self._all_hits().items()} | usage

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Count on from there. One rank gets the state, and the others nothing."""
        for kind, counts in (("hits", self._hits), ("usage", self._usage)):
            for name, counted in counts.items():
                counted.zero_()
                if f"{kind}.{name}" in state:
                    counted += state[f"{kind}.{name}"].to(self._device)


def replacements(codebook_VC: Tensor, hits_GV: Tensor, seed: int, step: int, branch: int) -> Rows:
    """Split codes in use to replace the dead ones.

    A code is dead if no scale chose it. Each is replaced by a code drawn by how often the finest scale chose it, moved
    a little at random, so that the two share its work and drift apart.
    """
    dead = _dead(hits_GV)
    weight = hits_GV[-1].double()
    if not len(dead) or weight.sum() == 0:
        return dead[:0], codebook_VC[:0]
    draws = torch.from_numpy(keyed_uniform(seed, f"dead_codes/{branch}/{step}", np.arange(len(dead), dtype=np.int64)))
    donors = torch.searchsorted(weight.cumsum(0) / weight.sum(), draws.to(weight.device), right=True)
    chosen = codebook_VC[donors.clamp(max=len(codebook_VC) - 1)]
    noise_seed = int(keyed_bits(seed, f"dead_code_noise/{branch}", np.array([step], dtype=np.int64))[0] >> np.uint64(1))
    noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(noise_seed)).to(chosen.device)
    scale = chosen.norm(dim=1, keepdim=True) / chosen.shape[1] ** 0.5
    return dead, chosen + _SPREAD * scale * noise


def latents(codebook_VC: Tensor, hits_GV: Tensor, seen_NC: Tensor, seed: int, step: int, branch: int) -> Rows:
    """Set dead codes to latents of the global batch, drawn at random, each at most once (a collective).

    If more codes are dead than there are latents, the last of them stay dead.
    """
    dead, everyone = _dead(hits_GV), len(seen_NC) * dist.get_world_size()
    dead = dead[:everyone]
    order = keyed_bits(seed, f"dead_code_latents/{branch}/{step}", np.arange(everyone, dtype=np.int64))
    drawn = torch.from_numpy(np.argsort(order, kind="stable")[: len(dead)]).to(seen_NC.device)
    return dead, _rows_of_all(seen_NC, drawn).to(codebook_VC)


def clustered(codebook_VC: Tensor, hits_GV: Tensor, seen_NC: Tensor, usage_V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move codes of little use to the latents of the global batch that are nearest to them (a collective).

    Clustering VQ (CVQ, arXiv 2307.15139), as TA-TiTok trains: with the moving average p of its share of all hits, a
    code becomes (1 - a) * code + a * latent, where a = exp(-p * V * 10 / (1 - 0.99) - 0.001): all but 1 for dead codes,
    and 0 for those that are used a tenth as much as the mean. Nearest means by squared distance, whatever the look-up.

    Returns:
        The rows that move, their values, and the new averages.
    """
    hits_V = hits_GV.sum(0)
    usage_V = DECAY * usage_V + (1 - DECAY) * hits_V / hits_V.sum().clamp_min(1)
    share_V = torch.exp(-usage_V * len(usage_V) * 10 / (1 - DECAY) - 1e-3)
    rows = (share_V > 0).nonzero().flatten()
    share_R1 = share_V[rows, None]
    nearest_R = _nearest_of_all(codebook_VC[rows].float(), seen_NC)
    return rows, ((1 - share_R1) * codebook_VC[rows] + share_R1 * _rows_of_all(seen_NC, nearest_R)), usage_V


def _dead(hits_GV: Tensor) -> Tensor:
    return (hits_GV.sum(0) == 0).nonzero().flatten()


def _rows_of_all(seen_NC: Tensor, places_R: Tensor) -> Tensor:
    """Rows of the latents of all ranks, by their places in the order of the step's samples (a collective)."""
    own_R = places_R - dist.get_rank() * len(seen_NC)
    here_R = (own_R >= 0) & (own_R < len(seen_NC))
    rows_RC = seen_NC[own_R.clamp(0, len(seen_NC) - 1)] * here_R[:, None]
    dist.all_reduce(rows_RC)
    return rows_RC


def _nearest_of_all(codes_RC: Tensor, seen_NC: Tensor) -> Tensor:
    """The place of the latent of all ranks that is nearest to each code; the first of several (a collective).

    Each rank finds its own nearest: two numbers for each code travel, and no distances.
    """
    square_N = seen_NC.square().sum(1)
    best = [
        (square_N - 2 * part_RC @ seen_NC.t()).min(1)
        for part_RC in torch.split(codes_RC, max(1, _MOST_PRODUCTS // len(seen_NC)))
    ]
    distance_R = torch.cat([each.values for each in best]) if best else codes_RC[:, 0]
    place_R = (torch.cat([each.indices for each in best]) if best else codes_RC[:, 0].long()).clone()
    least_R = distance_R.clone()
    dist.all_reduce(least_R, dist.ReduceOp.MIN)
    place_R += dist.get_rank() * len(seen_NC)
    place_R[distance_R > least_R] = torch.iinfo(torch.int64).max
    dist.all_reduce(place_R, dist.ReduceOp.MIN)
    return place_R
