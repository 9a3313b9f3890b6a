"""A network that solves harder puzzles by iterating for longer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map

from datamodules.puzzles import IGNORED
from models.batches import BatchesOfOneKind, weight
from models.cell_config import save_with_cell
from models.cosine_decay import adam_with_cosine_decay
from models.equilibrium_reasoner.cell import ReasoningCell
from models.equilibrium_reasoner.curves import CurvePictures
from models.equilibrium_reasoner.pictures import ThinkingPictures
from rbp_lightning import Failure, FixedPoint, GradientEstimator, NeumannRBP, UserError, ignoring
from rbp_lightning.agreement import everywhere
from rbp_lightning.errors import check_count, check_instance, check_number
from rbp_lightning.estimators.intermediate_states import tape_start
from rbp_lightning.nn import jacobian_penalty
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update

SETTLED = 1e-5
"""The relative residual below which a puzzle's answer no longer changes."""


class EquilibriumReasoner(BatchesOfOneKind):
    """Iterates a cell on small puzzles in training, and for longer on larger puzzles in evaluation.

    Its options and the estimator cover published training methods. Deep Thinking networks (Bansal et al., NeurIPS 2022)
    are ``TBPTT`` with random steps; path-independent equilibrium models (Anil et al., NeurIPS 2022) have random starts;
    Hierarchical and Tiny Recursive Models have a two-level cell, several segments, and ``JFB`` or ``TBPTT``. With a
    solver tolerance of 0, the number of steps is fixed.

    Args:
        cell: The update of the states, and the readout.
        learning_rate: Adam's initial learning rate, above 0, with a cosine decay to 0 over the run. ``--optimizer`` on
            the command line, with or without ``--lr_scheduler``, replaces both.
        random_steps: Lowest and highest number of steps of a training solve, drawn anew for each batch; ``None`` for
            the solver's ``max_steps``.
        random_start: Whether training solves start from normal random numbers instead of 0, so that the fixed point
            does not depend on the start.
        segments: Number of solves in a training step, at least 1. Each starts from the detached state of the previous
            one and has a loss of its own: deep supervision (HRM, TRM).
        loss_steps: Numbers of steps of a training solve, increasing, after which a loss is taken in addition to the
            end; the loss is the mean of all. With ``random_steps``, those from the drawn number on are left out. The
            estimator differentiates each state as if the solve ended there. ``None`` for the end alone.
        jacobian_penalty: Weight of ``rbp_lightning.nn.jacobian_penalty`` at the end of each training solve, at least 0.
        residual_penalty: Weight of the mean square of the change by one more step at the end of each training solve, at
            least 0, which draws states to a fixed point.
        eval_steps: Numbers of steps after which answers are evaluated, increasing; ``None`` for the solver's
            ``max_steps``. A state that has converged is not iterated further.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> from models import ConvolutionalCell
        >>> reasoner = EquilibriumReasoner(ConvolutionalCell(num_inputs=1, num_classes=2, num_hidden=8))
        >>> reasoner.estimator = JFB(solver=Picard(max_steps=24, tol=0))
        >>> reasoner(torch.ones(4, 1, 16)).steps
        24
    """

    def __init__(
        self,
        cell: ReasoningCell,
        learning_rate: float = 1e-3,
        random_steps: Sequence[int] | None = None,
        random_start: bool = False,
        segments: int = 1,
        loss_steps: Sequence[int] | None = None,
        jacobian_penalty: float = 0.0,
        residual_penalty: float = 0.0,
        eval_steps: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        save_with_cell(self, cell)
        self.cell = check_instance(self, "cell", cell, ReasoningCell, "one, such as ConvolutionalCell(1, 2)")
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        self.random_steps = None if random_steps is None else self._increasing("random_steps", random_steps)
        if self.random_steps is not None and len(self.random_steps) != 2:
            raise UserError(f"EquilibriumReasoner: random_steps={random_steps!r} must be two numbers, low and high.")
        self.random_start = check_instance(self, "random_start", random_start, bool, "true or false")
        self.segments = check_count(self, "segments", segments, 1)
        self.loss_steps = None if loss_steps is None else self._increasing("loss_steps", loss_steps)
        if self.random_steps is not None:
            self._check_loss_steps(self.random_steps[1], "random_steps")
        self.jacobian_penalty = check_number(self, "jacobian_penalty", jacobian_penalty, 0.0)
        self.residual_penalty = check_number(self, "residual_penalty", residual_penalty, 0.0)
        self.eval_steps = None if eval_steps is None else self._increasing("eval_steps", eval_steps)
        # A Trainer's estimator replaces it.
        self.estimator: GradientEstimator = NeumannRBP()

    def _increasing(self, name: str, steps: Sequence[int]) -> list[int]:
        if not isinstance(steps, list | tuple) or not steps:
            raise UserError(f"EquilibriumReasoner: {name}={steps!r} must be a list of numbers of steps.")
        counts = [check_count(self, name, step, 1) for step in steps]
        if counts != sorted(set(counts)):
            raise UserError(f"EquilibriumReasoner: {name}={steps!r} must increase: sort it.")
        return counts

    def _check_loss_steps(self, most: int, name: str) -> None:
        if self.loss_steps is not None and self.loss_steps[-1] >= most:
            raise UserError(
                f"EquilibriumReasoner: loss_steps={self.loss_steps} must be below {most}, the most steps of a training "
                f"solve: lower them, or raise {name}."
            )

    def forward(self, inputs: Tensor, max_steps: int | None = None) -> FixedPoint:
        """Iterates the cell from 0.

        Args:
            inputs: The puzzles, of shape ``[batch, num_inputs, *positions]``.
            max_steps: The most steps; ``None`` for the solver's.

        Raises:
            UserError: If the inputs have another number of channels.
        """
        fixed_point: FixedPoint = self.estimator(*self._start(inputs), batch_dims=1, max_steps=max_steps)
        return fixed_point

    def _start(self, inputs: Tensor) -> tuple[Any, State]:
        if inputs.dim() < 3 or inputs.shape[1] != self.cell.num_inputs:
            raise UserError(
                f"{type(self.cell).__name__}: num_inputs={self.cell.num_inputs}, but the puzzles have the shape "
                f"{list(inputs.shape)}: set num_inputs to their second number."
            )
        return self.cell.start(inputs)

    def think(self, inputs: Tensor, budgets: Sequence[int]) -> Iterator[tuple[int, Tensor, FixedPoint]]:
        """Iterates the cell from 0, and yields the answers after several numbers of steps.

        Args:
            inputs: The puzzles, of shape ``[batch, num_inputs, *positions]``.
            budgets: Total numbers of steps, increasing.

        Yields:
            The number of steps, the class scores ``[batch, num_classes, *positions]`` and the result of the solve.
        """
        update, state = self._start(inputs)
        taken, settled = 0, False
        for budget in budgets:
            if not settled:
                # Not converging within a budget is no failure; residuals are logged.
                with ignoring(Failure.NOT_CONVERGED, Failure.DIVERGED):
                    fixed_point = self.estimator(update, state, batch_dims=1, max_steps=budget - taken)
                state, taken = fixed_point.state, budget
                scores = self.cell.scores(state)
                settled = everywhere((fixed_point.residual <= SETTLED).all())
            yield budget, scores, fixed_point

    @property
    def budgets(self) -> list[int]:
        """The numbers of steps after which answers are evaluated."""
        return self.eval_steps or [self.estimator.solver.max_steps]

    @property
    def endings(self) -> list[str]:
        """The endings of the metrics' names after each of the ``budgets``; without one if there is one budget only."""
        return [f"_after_{steps}" for steps in self.budgets] if len(self.budgets) > 1 else [""]

    def batch_entries(self, stage: str) -> tuple[str, ...]:
        """Puzzles, except in prediction with targets."""
        return ("inputs", "size") if stage == "predict" else ("inputs", "targets", "size")

    def on_fit_start(self) -> None:
        """Compares the numbers of steps with those of the estimator, which is known now.

        Raises:
            UserError: If a loss would never be taken, or the estimator differentiates more steps than precede it.
        """
        if self.random_steps is None:
            self._check_loss_steps(self.estimator.solver.max_steps, "the solver's max_steps")
        for step in self.loss_steps or ():
            tape_start(self.estimator, step, taped=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the mean over all losses of the cross-entropy, and over segments of the weighted penalties."""
        update, state = self._start(batch["inputs"])
        if self.random_start:
            state = tree_map(torch.randn_like, state)
        losses: list[Tensor] = []
        penalties: dict[str, list[Tensor]] = {"jacobian_penalty": [], "residual_penalty": []}
        for _ in range(self.segments):
            steps = None
            if self.random_steps is not None:
                low, high = self.random_steps
                steps = int(torch.randint(low, high + 1, ()))
            at = [step for step in self.loss_steps or () if steps is None or step < steps]
            # Growing changes are no failure, since the cell bounds its states.
            with ignoring(Failure.DIVERGED):
                fixed_point = self.estimator(update, state, batch_dims=1, max_steps=steps, states_at=at)
            for one in [*fixed_point.states, fixed_point.state]:
                losses.append(self._loss(self.cell.scores(one), batch["targets"]))
            state = tree_map(Tensor.detach, fixed_point.state)
            if self.jacobian_penalty:
                penalties["jacobian_penalty"].append(jacobian_penalty(update, state))
            if self.residual_penalty:
                penalties["residual_penalty"].append(_square_change(update, fixed_point.state))
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss, prog_bar=True)
        for name, values in penalties.items():
            if values:
                penalty = torch.stack(values).mean()
                self.log(f"train/{name}", penalty)
                loss = loss + getattr(self, name) * penalty
        self.log("train/steps", float(fixed_point.steps))
        self.log("train/residual", fixed_point.residual.max())
        return loss

    def _loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        wanted = [len(targets), self.cell.num_classes, *targets.shape[1:]]
        if list(scores.shape) != wanted or bool((targets >= self.cell.num_classes).any()):
            raise UserError(
                f"{type(self.cell).__name__}: its scores have the shape {list(scores.shape)}, but the targets have the "
                f"shape {list(targets.shape)} and classes up to {int(targets.max())}: set num_classes and dims to "
                "those of the puzzles."
            )
        return cross_entropy(scores, targets, ignore_index=IGNORED)

    def _evaluate(self, batch: dict[str, Tensor], stage: str) -> Tensor:
        inputs, targets, size = batch["inputs"], batch["targets"], int(batch["size"][0])
        for ending, (_, scores, fixed_point) in zip(self.endings, self.think(inputs, self.budgets), strict=True):
            right = (scores.argmax(1) == targets) | (targets == IGNORED)
            exact = right.flatten(1).all(1).float().mean()
            residual = fixed_point.residual.mean()
            if ending:
                self._log(f"{stage}/exact_{size}{ending}", exact, len(inputs))
                self._log(f"{stage}/residual_{size}{ending}", residual, len(inputs))
        asked = targets != IGNORED  # their number weights batches and processes
        self._log(f"{stage}/loss_{size}", self._loss(scores, targets), int(asked.sum()))
        self._log(f"{stage}/exact_{size}", exact, len(inputs), prog_bar=True)
        self._log(f"{stage}/accuracy_{size}", right[asked].float().mean(), int(asked.sum()))
        self._log(f"{stage}/residual_{size}", residual, len(inputs))
        return scores.argmax(1)

    def _log(self, name: str, value: Tensor, count: int, prog_bar: bool = False) -> None:
        # The name has the size, which distinguishes the data loaders.
        size = weight(count)
        self.log(name, value, prog_bar=prog_bar, batch_size=size, sync_dist=True, add_dataloader_idx=False)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Solves puzzles and compares the answers with the targets."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Solves puzzles and compares the answers with the targets."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Solves puzzles.

        Returns:
            The class of each position, int64 of shape ``[batch, *positions]``.
        """
        *_, (_, scores, _) = self.think(batch["inputs"], self.budgets)
        return scores.argmax(1)

    def configure_callbacks(self) -> list[Callback]:
        """Adds pictures of how answers evolve, and of the results of a test."""
        return [ThinkingPictures(), CurvePictures()]

    def configure_optimizers(self) -> Any:
        """Returns Adam with a cosine decay over the whole run.

        Raises:
            UserError: If the run's length is not limited.
        """
        return adam_with_cosine_decay(self, self.learning_rate)


def _square_change(update: Update, state: State) -> Tensor:
    leaves = zip(tree_leaves(update(state)), tree_leaves(state), strict=True)
    return torch.stack([(new - old).square().mean() for new, old in leaves]).mean()
