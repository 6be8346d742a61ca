"""Spectral normalization (arXiv 1802.05957): a weight divided by its largest singular value.

The value is estimated by power iteration, which goes one step further whenever the weight has changed. So passes with
the same weight are the same function: a preview, an accumulated micro-batch, the pass on made images beside that on
real ones, a block that is computed again in backward. (One iteration a pass, as elsewhere, makes each of them another
function, and the course of training depends on the number of micro-batches.)

Shapes: B batch, C channels, L positions, O outputs, I everything else of a weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.precision import without_autocast

_FIRST_ITERATIONS = 15
_EPS = 1e-12


class SpectralConv1d(nn.Conv1d):
    """A convolution over positions whose weight has norm one; its ends are joined (circular padding)."""

    left_O: Tensor
    """The left singular vector, as it was estimated for the weight of the last pass in training."""
    before_O: Tensor
    """What it was estimated from."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__(inputs, outputs, kernel)
        weight_OI = self.weight.detach().flatten(1)
        left_O = F.normalize(torch.randn(outputs, device=weight_OI.device), dim=0)
        for _ in range(_FIRST_ITERATIONS):
            left_O, _ = _iterated(weight_OI, left_O)
        self.register_buffer("left_O", left_O)
        self.register_buffer("before_O", left_O.clone())

    def forward(self, x_BCL: Tensor) -> Tensor:
        """[B, C, L] -> [B, O, L]."""
        x_BCL = _joined(x_BCL, self.kernel_size[0] // 2)
        return F.conv1d(x_BCL, self.weight / self._norm(), self.bias)

    def _norm(self) -> Tensor:
        """The largest singular value, float32, with the gradient to the weight that the two vectors give."""
        with without_autocast(self.weight.device):
            weight_OI = self.weight.flatten(1).float()
            with torch.no_grad():
                again_O, _ = _iterated(weight_OI, self.before_O)
                begin_O = torch.where((again_O == self.left_O).all(), self.before_O, self.left_O)
                left_O, right_I = _iterated(weight_OI, begin_O)
                if self.training:
                    self.before_O.copy_(begin_O)
                    self.left_O.copy_(left_O)
            return torch.dot(left_O, weight_OI @ right_I)


def _iterated(weight_OI: Tensor, left_O: Tensor) -> tuple[Tensor, Tensor]:
    """The left vector after one step, and the right one between."""
    right_I = F.normalize(weight_OI.t() @ left_O, dim=0, eps=_EPS)
    return F.normalize(weight_OI @ right_I, dim=0, eps=_EPS), right_I


def _joined(x_BCL: Tensor, margin: int) -> Tensor:
    """What lies before and after, if the positions are a ring; which may be shorter than the margin."""
    length = x_BCL.shape[-1]
    if margin == 0:
        return x_BCL
    if margin <= length:
        return torch.cat([x_BCL[..., -margin:], x_BCL, x_BCL[..., :margin]], dim=-1)
    rounds = -(-margin // length)
    first = rounds * length - margin
    return x_BCL.repeat(1, 1, 2 * rounds + 1)[..., first : first + length + 2 * margin]
