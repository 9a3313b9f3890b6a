"""A graph network for graphs that are too large to be solved at once."""

from typing import Any

from torch_geometric.data import Data

from models.citation_gnn import CitationGNN
from models.historical_states import HistoricalStates
from models.propagation import PropagationCell
from models.propagation.parts import PartialAdjacency, PartMatrices, rows_of, start_in_blocks
from rbp_lightning import FixedPoint, UserError
from rbp_lightning.errors import check_count
from rbp_lightning.solvers import Update


class PartitionedGNN(CitationGNN):
    """Graph network that trains on parts of a graph without dropping the edges between them.

    A part, from ``CitationGraph`` with ``num_parts``, is solved with all edges into it: nodes outside are constants,
    with the states from the last solve of their own part (GNNAutoScale: Fey et al., ICML 2021), and the solve starts
    from the part's last states. A training step takes memory for the part, beside one state of the whole graph. The
    gradient is that of the part's own equation, without the effect of its states on themselves through other parts.
    Training on the whole graph is the same as with ``CitationGNN``.

    Evaluation uses the fixed point of the whole graph, not the historical states.

    Args:
        cell: The update of the node states, and the readout.
        eval_blocks: Number of row blocks in which evaluation computes the update; more blocks take less memory.
        **arguments: Arguments of ``CitationGNN``.

    Raises:
        UserError: If an argument is out of its range, or only the initial state of the cell has the features.

    Example:
        >>> from models import PageRankCell
        >>> model = PartitionedGNN(PageRankCell(num_features=5, num_classes=2, dropout=0.0), eval_blocks=2).eval()
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> with torch.no_grad():
        ...     model.class_scores(Data(x=torch.ones(3, 5), edge_index=path), "predict").shape
        torch.Size([3, 2])
    """

    def __init__(self, cell: PropagationCell, eval_blocks: int = 1, **arguments: Any) -> None:
        super().__init__(cell, **arguments)
        self.eval_blocks = check_count(self, "eval_blocks", eval_blocks, 1)
        if cell.features_enter == "first_state":
            raise UserError(
                "PartitionedGNN: a part starts from its last state, but with features_enter='first_state' only the "
                "initial state has the features: set it to every_step."
            )
        self.history = HistoricalStates()

    def forward(self, graph: Data) -> tuple[Update, FixedPoint]:
        """Solves for the fixed point of the node states of a graph or a part.

        Args:
            graph: A graph with ``x`` and ``edge_index``, or a part with ``nodes`` and ``whole``.

        Returns:
            The update and its fixed point, whose state has the shape ``[num_nodes, d]``.

        Raises:
            UserError: If the graph is malformed.
        """
        if "whole" in graph:
            return self._solve_part(graph)
        if self.training:
            return super().forward(graph)
        prepared = self._prepare(graph)
        update, state = start_in_blocks(self.cell, prepared.features, prepared.adjacency, self.eval_blocks)
        return update, self.estimator(update, state)

    def _solve_part(self, part: Data) -> tuple[Update, FixedPoint]:
        whole = part.whole.to(part.x.device)  # in place, so that it is moved only once
        prepared, num_nodes = self._prepare(whole), whole.num_nodes
        matrices = part.get("matrices")
        if not isinstance(matrices, PartMatrices) or matrices.adjacency is not prepared.adjacency:
            matrices = part.matrices = PartMatrices(prepared.adjacency, part.nodes)
        adjacency = PartialAdjacency(matrices.own)
        update, state = self.cell.start(rows_of(prepared.features, part.nodes), adjacency)
        history = self.history.states_like(state, num_nodes)
        adjacency.inflow = matrices.outside @ history
        fixed_point = self.estimator(update, history[part.nodes])
        if self.training:
            self.history.push(part.nodes, fixed_point.state, num_nodes)
        return update, fixed_point

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Checks that parts are trained in one process, since processes do not share historical states.

        Raises:
            UserError: If the batch is a part and there are several processes.
        """
        super().on_train_batch_start(batch, batch_idx)
        processes = self.trainer.world_size
        if processes > 1 and "whole" in batch:
            raise UserError(
                f"PartitionedGNN: {processes} processes do not share the historical states of the graph's parts: set "
                "devices to 1, or use CitationGNN, which ignores edges between parts."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the historical states, so that a resumed run is exact."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["historical_states"] = self.history.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the historical states of the resumed run."""
        super().on_load_checkpoint(checkpoint)
        if "historical_states" in checkpoint:
            self.history.load_state_dict(checkpoint["historical_states"])
