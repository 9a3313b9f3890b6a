"""Plots of solves in TensorBoard."""

import contextlib
import copy

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor
from torch.utils._pytree import tree_map

from rbp_lightning.conjugate_gradient import conjugate_gradient
from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.pytree import State, Vector, norm, widened
from rbp_lightning.solvers import FixedPointSolver, Update

MOST_FOR_A_SPECTRUM = 512
"""Most elements of a sample whose whole spectrum is drawn."""

ADJOINT_PRODUCTS = 50
"""How many products the adjoint residual is drawn for."""


class RecordingTest(ConvergenceTest):
    """A convergence test that keeps the residual at each look.

    Args:
        tol: Largest relative residual of a converged sample.
        batch_dims: The number of leading dimensions that index independent samples.

    Example:
        >>> test = RecordingTest(tol=1e-2, batch_dims=0)
        >>> _ = Picard(max_steps=4, check_every=1).iterate(lambda h: h / 2 + 1, torch.zeros(()), 4, test)
        >>> [round(float(residual), 3) for residual in test.residuals]
        [1.0, 0.333, 0.143, 0.067]
    """

    def __init__(self, tol: float, batch_dims: int) -> None:
        super().__init__(tol, batch_dims)
        self.residuals: list[Tensor] = []

    def observe(self, previous: Vector, current: Vector) -> None:
        """Records the change between two successive iterates."""
        super().observe(previous, current)
        self.residuals.append(self.residual)


class MonitorPlots:
    """Draws the plots of one solve.

    Args:
        trainer: Where to draw them: its TensorBoard loggers, if it has any.
        solver: The forward solver.
    """

    def __init__(self, trainer: Trainer, solver: FixedPointSolver) -> None:
        self._writers = [
            logger.experiment
            for logger in trainer.loggers
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero
        ]
        self._step = trainer.global_step
        self._solver = copy.copy(solver)
        if hasattr(solver, "check_every"):
            self._solver.check_every = 1  # type: ignore[attr-defined]  # to look at every step
        self._jacobian: FlatJacobian | None = None

    def draw_solve(self, update: Update, initial_state: State, batch_dims: int, jacobian: FlatJacobian) -> None:
        """Draws the forward residual against iteration, steps to convergence and the spectrum of J.

        Args:
            update: The map F.
            initial_state: Where the solve started.
            batch_dims: The number of leading dimensions that index independent samples.
            jacobian: Products with J at the fixed point.
        """
        if not self._writers:
            return
        self._jacobian = jacobian
        test = RecordingTest(self._solver.tol, batch_dims)
        start = tree_map(lambda leaf: leaf.detach(), initial_state)
        with torch.no_grad():
            self._solver.iterate(update, start, self._solver.max_steps, test)
        residuals = torch.stack([residual.flatten() for residual in test.residuals]).double().cpu()
        figure, axes = _axes("step", "relative residual")
        for quantile, label in ((1.0, "worst sample"), (0.5, "median sample")):
            axes.semilogy(range(1, len(residuals) + 1), residuals.quantile(quantile, dim=1), label=label)
        if self._solver.tol > 0:
            axes.axhline(self._solver.tol, color="grey", linestyle=":", label="tolerance")
        axes.legend()
        self._show("forward_residual", figure)
        reached = residuals <= self._solver.tol
        steps = torch.where(reached.any(0), reached.int().argmax(0) + 1, len(residuals) + 1)
        for writer in self._writers:
            writer.add_histogram("monitor/steps_to_convergence", steps, self._step)
        if jacobian.size <= MOST_FOR_A_SPECTRUM:
            self._draw_spectrum(jacobian)

    def _draw_spectrum(self, jacobian: FlatJacobian) -> None:
        dense = jacobian.dense().double().cpu().reshape(-1, jacobian.size, jacobian.size)[0]
        if not bool(dense.isfinite().all()):
            return
        values = torch.linalg.eigvals(dense)
        figure, axes = _axes("real part", "imaginary part")
        axes.add_patch(Circle((0, 0), 1, fill=False, color="grey", linestyle=":"))
        axes.plot(values.real, values.imag, ".")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title("eigenvalues of J (first sample), unit circle")
        self._show("spectrum", figure)

    def draw_adjoint(self, gradient: Vector) -> None:
        """Draws the adjoint residual against the number of products, of the Neumann series and conjugate gradients.

        Args:
            gradient: Leaves of g.
        """
        if self._jacobian is None:
            return
        linearization, self._jacobian = self._jacobian.linearization, None
        batch_dims = linearization.batch_dims
        term = gradient = widened(gradient)
        first = norm(gradient, batch_dims)
        sizes = []
        for _ in range(ADJOINT_PRODUCTS):
            term = linearization.vjp(term)
            sizes.append(torch.where(first == 0, 0, norm(term, batch_dims) / first).max())
        figure, axes = _axes("products with J^T and J", "adjoint residual / ||g||, worst sample")
        axes.semilogy(range(1, ADJOINT_PRODUCTS + 1), torch.stack(sizes).double().cpu(), label="Neumann series")
        steps = [1, 2, 4, 8, 16, ADJOINT_PRODUCTS // 2]
        with contextlib.suppress(UserError):  # the update may have no product with J
            solutions = [conjugate_gradient(linearization, gradient, count, 0.0, 1) for count in steps]
            left = torch.stack([solution.residual.max() for solution in solutions]).double().cpu()
            axes.semilogy([2 * count for count in steps], left, "o-", label="conjugate gradients")
        axes.legend()
        self._show("adjoint_residual", figure)

    def _show(self, name: str, figure: Figure) -> None:
        for writer in self._writers:
            writer.add_figure(f"monitor/{name}", figure, self._step, close=False)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes
