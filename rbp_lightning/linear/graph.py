"""Traverses the autograd graph."""

from collections.abc import Iterator

from torch.autograd.graph import Node

from rbp_lightning.pytree import Vector


def graph_nodes(tensors: Vector) -> Iterator[Node]:
    """Yields each node of the autograd graph of some tensors once.

    Args:
        tensors: The tensors.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> [node.name() for node in graph_nodes([(2 * weight).sin()])]
        ['SinBackward0', 'MulBackward0', 'torch::autograd::AccumulateGrad']
    """
    nodes = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            yield node
