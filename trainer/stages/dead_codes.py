"""Restart of codes that nothing chooses: the remedy for codebook collapse that the published code does not have."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_pipeline.order.permutations import keyed_bits, keyed_uniform

_SPREAD = 0.1


def replacements(codebook_VC: Tensor, hits_SV: Tensor, seed: int, step: int, branch: int) -> tuple[Tensor, Tensor]:
    """Split codes in use to replace the dead ones; a pure function, so all ranks agree.

    A code is dead if no scale chose it. Each is replaced by a code drawn by how often the finest scale chose it, moved
    a little at random, so that the two share its work and drift apart.

    Returns:
        rows int64 [R] of the codebook, and their new values [R, C].
    """
    dead = (hits_SV.sum(0) == 0).nonzero().flatten()
    weight = hits_SV[-1].double()
    if not len(dead) or weight.sum() == 0:
        return dead[:0], codebook_VC[:0]
    draws = torch.from_numpy(keyed_uniform(seed, f"dead_codes/{branch}/{step}", np.arange(len(dead), dtype=np.int64)))
    donors = torch.searchsorted(weight.cumsum(0) / weight.sum(), draws.to(weight.device), right=True)
    chosen = codebook_VC[donors.clamp(max=len(codebook_VC) - 1)]
    noise_seed = int(keyed_bits(seed, f"dead_code_noise/{branch}", np.array([step], dtype=np.int64))[0] >> np.uint64(1))
    noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(noise_seed)).to(chosen.device)
    scale = chosen.norm(dim=1, keepdim=True) / chosen.shape[1] ** 0.5
    return dead, chosen + _SPREAD * scale * noise
