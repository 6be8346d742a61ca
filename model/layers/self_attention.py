"""Self-attention of generators that read ids: fused projections, options of the published ones, and a static cache.

    x ── qkv ──┬─ (norm of each head) ─ (rotation) ─ queries ─┐
               ├─ (norm of each head) ─ (rotation) ─ keys ────┼─ attend ─ proj ─ out
               └─ values ─────────────────────────────────────┘
                        keys and values are written into the cache at a span, if there is one

Shape suffixes: N blocks, B batch, L positions (M of the cache), C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.layers.attention import attend
from model.layers.linear import Linear
from model.layers.precision import without_autocast
from model.layers.rotary import rotated, rotated_heads
from model.layers.visibility import GroupCausal


@dataclass(frozen=True)
class LayerCache:
    """Room for the keys and values of one block, and where the next ones go."""

    keys_BMHD: Tensor
    values_BMHD: Tensor
    span: slice

    def extend(self, k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[Tensor, Tensor]:
        """Write at the span; all keys and values up to its end."""
        self.keys_BMHD[:, self.span].copy_(k_BLHD)
        self.values_BMHD[:, self.span].copy_(v_BLHD)
        return self.keys_BMHD[:, : self.span.stop], self.values_BMHD[:, : self.span.stop]


class KeyValueCache:
    """Keys and values of all blocks, in two buffers that are reserved once for a batch.

    Args:
        blocks: how many.
        batch: rows, twice the images where guidance doubles them.
        positions: of the longest sequence.
        heads: attention heads.
        head_dim: channels of a head.
        dtype: of keys and values.
        device: where.
    """

    def __init__(
        self,
        blocks: int,
        batch: int,
        positions: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # A head's keys lie side by side: a kernel reads them a head at a time.
        shape = (blocks, batch, heads, positions, head_dim)
        self._keys, self._values = (torch.empty(shape, dtype=dtype, device=device).transpose(2, 3) for _ in range(2))

    def layer(self, block: int, span: slice) -> LayerCache:
        """That of one block, whose next keys go to `span`."""
        return LayerCache(self._keys[block], self._values[block], span)


class SelfAttention(nn.Module):
    """Softmax attention with one fused projection to queries, keys and values.

    Args:
        width: channels.
        heads: attention heads.
        bias: whether the fused projection has one.
        proj_bias: whether the output projection has one; None as `bias`.
        qk_norm: LayerNorm of each head's queries and keys, with a weight and a bias for the channels of a head.
        norm_eps: of it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        proj_bias: bool | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else None
        self.k_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else None
        self.proj = Linear(width, width, bias=bias if proj_bias is None else proj_bias)

    def forward(
        self,
        x_BLC: Tensor,
        groups: GroupCausal | None = None,
        *,
        rotation_LD2: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[B, L, C], of the projections' dtype.

        Args:
            x_BLC: normed, in the dtype of the products.
            groups: who sees whom; None sees all, as the newest positions see a cache.
            rotation_LD2: cosines and sines of the positions' rotations (`rotary.py`).
            cache: where keys and values are kept; without gradients.
        """
        qkv_BL3HD = self.qkv(x_BLC).unflatten(-1, (3, self.heads, self.head_dim))
        q_BLHD, k_BLHD, v_BLHD = self._rotated(qkv_BL3HD, rotation_LD2)
        if cache is not None:
            k_BLHD, v_BLHD = cache.extend(k_BLHD, v_BLHD)
        out: Tensor = self.proj(attend(q_BLHD, k_BLHD, v_BLHD, groups).flatten(2))
        return out

    def _rotated(self, qkv_BL3HD: Tensor, rotation_LD2: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.q_norm is None and rotation_LD2 is not None:
            return rotated_heads(qkv_BL3HD, rotation_LD2)
        q_BLHD, k_BLHD, v_BLHD = qkv_BL3HD.unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            with without_autocast(qkv_BL3HD.device):
                q_BLHD, k_BLHD = _normed(self.q_norm, q_BLHD), _normed(self.k_norm, k_BLHD)
        if rotation_LD2 is not None:
            q_BLHD, k_BLHD = rotated(q_BLHD, rotation_LD2), rotated(k_BLHD, rotation_LD2)
        return q_BLHD, k_BLHD, v_BLHD


def _normed(norm: nn.LayerNorm, x_BLHD: Tensor) -> Tensor:
    """In x's dtype: the kernel itself sums in float32."""
    out: Tensor = torch.layer_norm(
        x_BLHD, norm.normalized_shape, norm.weight.to(x_BLHD.dtype), norm.bias.to(x_BLHD.dtype), norm.eps
    )
    return out
