"""Self-attention of generators that read ids, and rotary positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.layers.rotary import grid_rotation, line_rotation, rotated, rotated_heads
from model.layers.self_attention import KeyValueCache, SelfAttention
from model.layers.visibility import GroupCausal

OPTIONS: dict[str, dict[str, Any]] = {
    "biases": {},
    "no biases": {"bias": False},
    "bias of the output alone": {"bias": False, "proj_bias": True},
    "norms": {"qk_norm": True},
}


def make(**options: Any) -> SelfAttention:
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, **options)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.4)
    return attention


def by_definition(attention: SelfAttention, x_BLC: Tensor, rotation_LD2: Tensor | None) -> Tensor:
    """A loop over heads, with complex numbers for rotations."""
    qkv = torch.nn.functional.linear(x_BLC, attention.qkv.weight, attention.qkv.bias)
    parts = []
    for head in range(2):
        q, k, v = (qkv[..., 16 * part + 8 * head : 16 * part + 8 * head + 8] for part in range(3))
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        if rotation_LD2 is not None:
            turn = torch.view_as_complex(rotation_LD2)
            q, k = (
                torch.view_as_real(torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2))) * turn).flatten(-2)
                for x in (q, k)
            )
        logits = q @ k.transpose(1, 2) / 8**0.5
        later = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        parts.append(logits.masked_fill(later, float("-inf")).softmax(-1) @ v)
    return torch.nn.functional.linear(torch.cat(parts, -1), attention.proj.weight, attention.proj.bias)


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_computes_what_attention_is_with_each_option(options: dict[str, Any], turns: bool) -> None:
    attention = make(**options)
    assert (attention.qkv.bias is not None) == options.get("bias", True)
    rotation = line_rotation(torch.arange(6), 8) if turns else None
    x_BLC = torch.randn(3, 6, 16)
    found = attention(x_BLC, GroupCausal.next_token(6), rotation_LD2=rotation)
    torch.testing.assert_close(found, by_definition(attention, x_BLC, rotation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps_with_a_cache_give_what_the_whole_does(options: dict[str, Any]) -> None:
    attention, rotation = make(**options), grid_rotation(torch.arange(6) // 3, torch.arange(6) % 3, 8)
    x_BLC = torch.randn(3, 6, 16)
    whole = attention(x_BLC, GroupCausal.next_token(6), rotation_LD2=rotation)
    cache = KeyValueCache(2, 3, 6, 2, 8, torch.float32, x_BLC.device)
    with torch.no_grad():
        steps = [
            attention(x_BLC[:, [i]], rotation_LD2=rotation[[i]], cache=cache.layer(1, slice(i, i + 1)))
            for i in range(6)
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_grids_rotation_turns_half_of_the_pairs_by_the_row_and_half_by_the_column() -> None:
    """LlamaGen's table for 16 x 16 cells and heads of 64 channels, at cell (0, 1)."""
    rotation = grid_rotation(torch.tensor([0]), torch.tensor([1]), 64)[0]
    assert rotation.shape == (32, 2)
    assert rotation[:16].tolist() == [[1.0, 0.0]] * 16
    assert rotation[16].tolist() == pytest.approx([0.5403, 0.8415], abs=1e-4)
    assert rotation[17].tolist() == pytest.approx([0.8460, 0.5332], abs=1e-4)


@pytest.mark.parametrize("gradients", [True, False])
def test_zeros_in_place_of_a_rotation_make_queries_and_keys_zero(gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        q, k, v = rotated_heads(torch.ones(1, 2, 3, 1, 8), torch.zeros(2, 4, 2))
    assert not q.any()
    assert not k.any()
    assert bool(v.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_rotation_turns_back(dtype: torch.dtype) -> None:
    rotation = line_rotation(torch.arange(5), 8)
    rotation[0] = 0
    x = torch.randn(2, 5, 3, 2, 8, dtype=torch.float64)

    def plainly(x: Tensor) -> Tensor:
        q, k = (rotated_plainly(part, rotation) for part in x.unbind(2)[:2])
        return q.cos().sum() + k.sin().sum() + x[:, :, 2].cos().sum()

    wanted = torch.autograd.functional.jacobian(plainly, x)
    leaf = x.to(dtype).requires_grad_()
    q, k, v = rotated_heads(leaf, rotation)
    assert q.dtype == k.dtype == v.dtype == dtype
    torch.testing.assert_close(q, rotated(leaf[:, :, 0], rotation))
    (found,) = torch.autograd.grad(q.cos().sum() + k.sin().sum() + v.cos().sum(), leaf)
    torch.testing.assert_close(found, wanted.to(dtype), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-2)


def rotated_plainly(x: Tensor, rotation: Tensor) -> Tensor:
    first, second = x[..., ::2], x[..., 1::2]
    cosine, sine = rotation[:, None, :, 0].to(x.dtype), rotation[:, None, :, 1].to(x.dtype)
    return torch.stack((first * cosine - second * sine, second * cosine + first * sine), -1).flatten(-2)


def test_a_grid_needs_heads_of_whole_quarters() -> None:
    with pytest.raises(ValueError, match="multiple of 4 channels, and not 6"):
        grid_rotation(torch.zeros(1), torch.zeros(1), 6)
