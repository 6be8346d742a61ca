"""Linear layers for sampling on a CPU: a product of few rows in bf16, the faster way round.

Shape suffixes: N rows, C channels that are read, K channels that are made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.precision import compute_dtype

MOST_ROWS = 32
"""Above it nothing is gained. On one thread of a CPU with AMX, 768 to 2304 channels, us: 4 rows 945 and 583, 32 rows
980 and 606."""


def linear(x_C: Tensor, weight_KC: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """`F.linear`; of few rows in bf16 on a CPU, without gradients, as the transpose of weight x rows.

    torch reorders the right side of a product for its kernel at each call: the rows are a thousandth of the weight.
    Sums are in float32 and rounded once, as `F.linear` does.
    """
    if not _is_few(x_C, weight_KC):
        return F.linear(x_C, weight_KC, bias_K)
    rows_CN = x_C.reshape(-1, x_C.shape[-1]).t()
    made_KN = torch.mm(weight_KC, rows_CN) if bias_K is None else torch.addmm(bias_K[:, None], weight_KC, rows_CN)
    return made_KN.t().contiguous().view(*x_C.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """[..., C] -> [..., K]."""
        return linear(input, self.weight, self.bias)


def _is_few(x_C: Tensor, weight_KC: Tensor) -> bool:
    if torch.is_grad_enabled() or x_C.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return compute_dtype(weight_KC) == torch.bfloat16 and x_C.numel() <= MOST_ROWS * x_C.shape[-1]
