"""Historical node states of a graph that is solved part by part."""

from typing import Any

import torch
from torch import Tensor

from rbp_lightning import UserError


class HistoricalStates:
    """The last known states of all nodes of a graph that is solved part by part (GNNAutoScale: Fey et al., ICML 2021).

    In the solve of a part, the nodes outside are constants: the states from the last solve of their own part, initially
    0. With fixed weights, solving the parts in turn is a block Gauss-Seidel iteration, which converges to the fixed
    point of the whole graph if the update is a contraction in a maximum norm over the nodes (Bertsekas and Tsitsiklis,
    Parallel and Distributed Computation, 1989, section 6.2). In training, a state is up to one epoch old.

    Example:
        >>> history = HistoricalStates()
        >>> history.push(torch.tensor([2]), torch.ones(1, 4), num_nodes=3)
        >>> history.states_like(torch.zeros(2, 4), num_nodes=3)[:, 0]
        tensor([0., 0., 1.])
    """

    def __init__(self) -> None:
        self._states: Tensor | None = None

    def states_like(self, state: Tensor, num_nodes: int) -> Tensor:
        """Returns the states of all nodes, of shape ``[num_nodes, d]``.

        Args:
            state: A state of some nodes, of shape ``[num_part, d]``, which determines d, dtype and device.
            num_nodes: Number of nodes of the graph. If it or d has changed, the states are reset to 0.
        """
        shape = (num_nodes, *state.shape[1:])
        if self._states is None or self._states.shape != shape:
            self._states = torch.zeros(shape, dtype=state.dtype, device=state.device)
        self._states = self._states.to(state)
        return self._states

    def push(self, nodes: Tensor, state: Tensor, num_nodes: int) -> None:
        """Stores the states of a part.

        Args:
            nodes: The part's nodes, int64, of shape ``[num_part]``.
            state: Their states, of shape ``[num_part, d]``.
            num_nodes: Number of nodes of the graph.
        """
        self.states_like(state, num_nodes)[nodes] = state.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states for a checkpoint."""
        return {"states": self._states}

    def load_state_dict(self, saved: Any) -> None:
        """Restores the states from a checkpoint.

        Args:
            saved: The result of ``state_dict``.

        Raises:
            UserError: If it is anything else.
        """
        states = saved.get("states", self) if isinstance(saved, dict) else self
        if states is not None and not isinstance(states, Tensor):
            raise UserError("The historical states in the checkpoint are not what was saved: use another one.")
        self._states = states
