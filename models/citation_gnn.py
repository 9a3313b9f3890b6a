"""A graph network for node classification on citation graphs."""

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from models.cell_config import save_with_cell
from models.consistency import consistency_loss
from models.node_classifier import NodeClassifier
from models.propagation import PropagationCell
from models.propagation.prepared_graph import PreparedGraph, PrepareGraph
from rbp_lightning import (
    FixedPoint,
    GradientEstimator,
    NeumannRBP,
    UserError,
    WarmStart,
    column_sum_penalty,
    jacobian_penalty,
)
from rbp_lightning.errors import check_number
from rbp_lightning.solvers import Update


class CitationGNN(NodeClassifier):
    """Graph network that classifies nodes by their states at a fixed point (paper, section 4.2).

    Args:
        cell: The update of the node states, and the readout.
        learning_rate: Adam's learning rate, above 0.
        weight_decay: L2 penalty on the input layer, at least 0. ``--optimizer`` on the command line replaces both.
        warm_start: Whether each training step on the same graph starts from the last fixed point, and the adjoint solve
            (``RBP`` and ``CGRBP``) from the last adjoint. Both are saved in checkpoints; evaluation does not use them.
            It helps if only the weights change between steps; with dropout each step is a different problem.
        consistency: Weight, at least 0, of the consistency loss between two dropout masks, as in GRAND (Feng et al.,
            NeurIPS 2020); 0 uses one mask.
        temperature: Temperature that sharpens the target of the consistency loss, in (0, 1].
        jacobian_weight: Weight of the Jacobian penalty (Bai et al., ICML 2021), at least 0.
        column_sum_weight: Weight of the penalty on the Jacobian's column sums (Linsley et al., NeurIPS 2020), at least
            0.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> from models import PageRankCell
        >>> model = CitationGNN(PageRankCell(num_features=5, num_classes=2, dropout=0.0))
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> model.class_scores(Data(x=torch.ones(3, 5), edge_index=path), "predict").shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        cell: PropagationCell,
        learning_rate: float = 0.01,
        weight_decay: float = 5e-4,
        warm_start: bool = False,
        consistency: float = 0.0,
        temperature: float = 0.5,
        jacobian_weight: float = 0.0,
        column_sum_weight: float = 0.0,
    ) -> None:
        super().__init__(cell.inject, cell.num_classes, learning_rate, weight_decay)
        save_with_cell(self, cell)
        self.cell = cell
        self.consistency = check_number(self, "consistency", consistency, 0.0)
        self.temperature = check_number(self, "temperature", temperature, 0.0, 1.0, low_allowed=False)
        self.jacobian_weight = check_number(self, "jacobian_weight", jacobian_weight, 0.0)
        self.column_sum_weight = check_number(self, "column_sum_weight", column_sum_weight, 0.0)
        # A Trainer's estimator replaces it.
        self.estimator: GradientEstimator = NeumannRBP()
        if warm_start and cell.features_enter == "first_state":
            raise UserError(
                "CitationGNN: warm_start=True replaces the initial state, but with features_enter='first_state' only "
                "that has the features: change one of them."
            )
        self.warm_start = WarmStart() if warm_start else None
        self._warm_graph: str | None = None

    def forward(self, graph: Data) -> tuple[Update, FixedPoint]:
        """Solves for the fixed point of the node states.

        Args:
            graph: A graph with ``x`` and ``edge_index``. The matrices made from it are cached on it.

        Returns:
            The update and its fixed point, whose state has the shape ``[num_nodes, d]``.

        Raises:
            UserError: If ``x`` or ``edge_index`` is malformed.
        """
        prepared = self._prepare(graph)
        update, state = self.cell.start(prepared.features, prepared.adjacency)
        warm_start = self.warm_start if self.training else None
        if warm_start is not None and self._warm_graph != prepared.fingerprint:
            warm_start.clear()
            self._warm_graph = prepared.fingerprint
        return update, self.estimator(update, state, warm_start=warm_start)

    def _prepare(self, graph: Data) -> PreparedGraph:
        prepare = PrepareGraph(self.cell.aggregation, self.cell.inject.weight.dtype)
        prepared: PreparedGraph = prepare.forward(graph).prepared  # cached on the graph itself
        return prepared

    def class_scores(self, graph: Data, stage: str) -> Tensor:
        """Returns the class scores of all nodes at the fixed point."""
        _, fixed_point = self(graph)
        if stage != "predict":
            self._log_solves([fixed_point], stage)
        return self._scores(fixed_point)

    def _scores(self, fixed_point: FixedPoint) -> Tensor:
        scores = self.cell.scores(fixed_point.state)
        wanted = [fixed_point.state.shape[0], self.num_classes]
        if list(scores.shape) != wanted:
            raise UserError(
                f"{type(self.cell).__name__}: its scores have the shape {list(scores.shape)}, but must have {wanted}, "
                f"[num_nodes, num_classes]. If the cell returns its state, set num_hidden to {self.num_classes}."
            )
        return scores

    def _log_solves(self, fixed_points: list[FixedPoint], stage: str) -> None:
        steps = sum(fixed_point.steps for fixed_point in fixed_points)
        residual = torch.stack([fixed_point.residual for fixed_point in fixed_points]).max()
        self.log(f"{stage}/steps", float(steps), batch_size=1, sync_dist=stage != "train")
        self.log(f"{stage}/residual", residual, batch_size=1, sync_dist=stage != "train")

    def training_loss(self, graph: Data) -> Tensor:
        """Returns the mean cross-entropy of the labelled training nodes plus the weighted penalties."""
        draws = [self(graph) for _ in range(2 if self.consistency else 1)]
        self._log_solves([fixed_point for _, fixed_point in draws], "train")
        scores = [self._scores(fixed_point) for _, fixed_point in draws]
        loss = torch.stack([self.cross_entropy(draw, graph, graph.train_mask) for draw in scores]).mean()
        if self.consistency:
            loss = loss + self.consistency * consistency_loss(scores, self.temperature)
        update, fixed_point = draws[0]
        for weight, penalty in (
            (self.jacobian_weight, jacobian_penalty),
            (self.column_sum_weight, column_sum_penalty),
        ):
            if weight:
                loss = loss + weight * penalty(update, fixed_point.state)
        return loss

    def on_train_start(self) -> None:
        """Checks that a warm start can carry over from step to step and to a resumed run.

        Raises:
            UserError: If there is a warm start and more than one batch per epoch or more than one process.
        """
        batches, processes = self.trainer.num_training_batches, self.trainer.world_size
        if self.warm_start is not None and (batches > 1 or processes > 1):
            raise UserError(
                f"CitationGNN: warm_start=True needs the whole graph in one process, but an epoch has {batches} "
                f"batches in each of {processes} processes: set warm_start to False, or num_parts and devices to 1."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the warm start."""
        if self.warm_start is not None:
            checkpoint["warm_start"] = {"graph": self._warm_graph, **self.warm_start.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the warm start of the resumed run."""
        if self.warm_start is not None and "warm_start" in checkpoint:
            saved = checkpoint["warm_start"]
            if not isinstance(saved, dict) or {"graph", "state", "adjoint"} - saved.keys():
                raise UserError("CitationGNN: warm_start in the checkpoint is not what was saved: use another one.")
            self._warm_graph = saved["graph"]
            self.warm_start.load_state_dict(saved)
