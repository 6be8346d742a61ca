"""The backward pass of a loss on fake tensors, node by node.

Autograd's engine starts a thread for each real device and refuses fake ones of a device that is not there. Its graph
does not: a node computes the gradients of its inputs when it is called. So this goes through the graph in the engine's
order (a node when all gradients to it are there) and does for each what the engine does: sums, casts, and lets the node
go, with what it saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import GraphExecGroup

OnWeight = Callable[[Tensor, Tensor], None]
"""Takes a leaf and its gradient."""
Gradients = dict[int, list[Tensor | None]]
"""By the id of a node: gradients to what it made in forward."""


def run_backward(
    roots: Sequence[tuple[Tensor, Tensor]],
    on_weight: OnWeight = lambda _weight, _gradient: None,
    before: Callable[[Any, list[Tensor | None]], None] = lambda _node, _arrived: None,
    only: set[int] | None = None,
) -> None:
    """Run it.

    Args:
        roots: tensors and gradients to them. A graph goes on living as long as the caller holds its tensor: hand over
            the only reference where what it saved is to go.
        on_weight: called with each leaf and its gradient, which is not kept.
        before: called with each node before it runs, and the gradients that have come to it.
        only: ids of the nodes that run; None for all.
    """
    gradients: Gradients = {}
    nodes = []
    for tensor, gradient in roots:
        node = tensor.grad_fn
        if node is None:
            raise ValueError("the loss does not depend on anything that is trained")
        nodes.append(node)
        _add(gradients, node, tensor.output_nr, gradient)
        del tensor, gradient, node
    del roots
    order = _by_dependence(nodes)
    del nodes
    with torch.no_grad(), GraphExecGroup():
        while order:
            node = order.pop()
            arrived = gradients.pop(id(node), None)
            if arrived is None or (only is not None and id(node) not in only):
                continue
            before(node, arrived)
            if hasattr(node, "variable"):
                assert arrived[0] is not None
                on_weight(node.variable, arrived[0])
            else:
                _pass_on(node, arrived, gradients)
            del node, arrived


def leaf_gradients(
    outputs: Any, inputs: Any, grad_outputs: Any = None, *_: Any, create_graph: bool = False, **__: Any
) -> tuple[Tensor | None, ...]:
    """What torch.autograd.grad gives for a scalar, or for one tensor and the gradient to it.

    Raises:
        NotImplementedError: for gradients of gradients.
    """
    if create_graph:
        raise NotImplementedError("gradients of gradients are not traced on a device that is not there")
    wanted: list[Tensor] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    found: dict[int, Tensor] = {}
    nodes = {id(tensor.grad_fn): tensor for tensor in wanted if tensor.grad_fn is not None}

    def on_weight(weight: Tensor, gradient: Tensor) -> None:
        found[id(weight)] = gradient

    def before(node: Any, arrived: list[Tensor | None]) -> None:
        tensor = nodes.get(id(node))
        if tensor is not None and arrived[tensor.output_nr] is not None:
            found[id(tensor)] = arrived[tensor.output_nr]  # type: ignore[assignment]

    loss: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    gradient = torch.ones_like(loss) if grad_outputs is None else grad_outputs
    run_backward([(loss, gradient)], on_weight, before, _leading_to(loss, wanted))
    return tuple(found.get(id(tensor)) for tensor in wanted)


def _leading_to(root: Tensor, wanted: list[Tensor]) -> set[int]:
    """Ids of the nodes on the ways from a tensor to those whose gradients are wanted: autograd runs no others."""
    targets = {id(tensor.grad_fn) for tensor in wanted if tensor.grad_fn is not None}
    leaves = {id(tensor) for tensor in wanted if tensor.grad_fn is None}
    found: set[int] = set()
    for node in _by_dependence([root.grad_fn]):  # what a node depends on comes before it
        ends = id(node) in targets or (hasattr(node, "variable") and id(node.variable) in leaves)
        if ends or any(id(child) in found for child, _ in node.next_functions if child is not None):
            found.add(id(node))
    return found


def _by_dependence(roots: list[Any]) -> list[Any]:
    """All nodes, each before those that it depends on: roots come last."""
    order: list[Any] = []
    seen: set[int] = set()
    for root in roots:
        if id(root) in seen:
            continue
        seen.add(id(root))
        path = [(root, iter([node for node, _ in root.next_functions]))]
        while path:
            node, children = path[-1]
            child = next((each for each in children if each is not None and id(each) not in seen), None)
            if child is None:
                order.append(node)
                path.pop()
            else:
                seen.add(id(child))
                path.append((child, iter([each for each, _ in child.next_functions])))
    return order


def _pass_on(node: Any, arrived: list[Tensor | None], gradients: Gradients) -> None:
    """Call a node, and add what it gives to the gradients of those before it."""
    metadata = node._input_metadata
    padded = arrived + [None] * (len(metadata) - len(arrived))
    if hasattr(node, "apply") and not callable(node):  # a Python autograd.Function
        found = node.apply(*(_zeros(each) if g is None else g for g, each in zip(padded, metadata, strict=True)))
    else:
        found = node(*padded)
    results = found if isinstance(found, tuple) else (found,)
    for (child, index), gradient in zip(node.next_functions, results, strict=False):
        if child is None or gradient is None:
            continue
        _add(gradients, child, index, _fit(gradient, child._input_metadata[index]))


def _add(gradients: Gradients, node: Any, index: int, gradient: Tensor) -> None:
    slots = gradients.setdefault(id(node), [])
    slots += [None] * (index + 1 - len(slots))
    other = slots[index]
    slots[index] = gradient if other is None else other + gradient


def _zeros(metadata: Any) -> Tensor:
    return torch.zeros(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)


def _fit(gradient: Tensor, metadata: Any) -> Tensor:
    """In the shape and number format of what it is the gradient of."""
    if gradient.shape != tuple(metadata.shape):
        gradient = gradient.sum_to_size(tuple(metadata.shape))
    return gradient if gradient.dtype == metadata.dtype else gradient.to(metadata.dtype)
