"""The states of a graph's nodes, as the last visit of each left them."""

from typing import Any

import torch
from torch import Tensor

from rbp_lightning import UserError


class HistoricalStates:
    """States of all nodes of a graph that is visited part by part (GNNAutoScale: Fey et al., ICML 2021).

    What lies outside of a part enters its solve as a constant, with the state that its own last visit found; 0 before
    the first. While the weights stay as they are, repeated visits are a block Gauss-Seidel iteration, which leads to
    the fixed point of the whole graph if the update contracts in a maximum norm over the nodes (Bertsekas and
    Tsitsiklis, Parallel and Distributed Computation, 1989, section 6.2). While they change, a state is up to one epoch
    old.

    Example:
        >>> history = HistoricalStates()
        >>> history.push(torch.tensor([2]), torch.ones(1, 4), num_nodes=3)
        >>> history.states_like(torch.zeros(2, 4), num_nodes=3)[:, 0]
        tensor([0., 0., 1.])
    """

    def __init__(self) -> None:
        self._states: Tensor | None = None

    def states_like(self, state: Tensor, num_nodes: int) -> Tensor:
        """States of all nodes, of shape ``[num_nodes, d]``, to read from.

        Args:
            state: A state of some nodes, ``[num_part, d]``, which tells d, the dtype and the device.
            num_nodes: Nodes of the graph. States of another number of nodes or another d are forgotten.
        """
        shape = (num_nodes, *state.shape[1:])
        if self._states is None or self._states.shape != shape:
            self._states = torch.zeros(shape, dtype=state.dtype, device=state.device)
        self._states = self._states.to(state)
        return self._states

    def push(self, nodes: Tensor, state: Tensor, num_nodes: int) -> None:
        """Keeps the states that a visit found.

        Args:
            nodes: Which nodes, int64, of shape ``[num_part]``.
            state: Their states, of shape ``[num_part, d]``.
            num_nodes: Nodes of the graph.
        """
        self.states_like(state, num_nodes)[nodes] = state.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"states": self._states}

    def load_state_dict(self, saved: Any) -> None:
        """Takes what a checkpoint kept.

        Args:
            saved: What ``state_dict`` returned.

        Raises:
            UserError: If it is anything else.
        """
        states = saved.get("states", self) if isinstance(saved, dict) else self
        if states is not None and not isinstance(states, Tensor):
            raise UserError("The historical states in the checkpoint are not what was saved: use another one.")
        self._states = states
