"""Plots of solves."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rbp_lightning.agreement import alike
from rbp_lightning.diagnostics.log_figure import log_figure, log_histogram
from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import JacobianOperator, NormalCG
from rbp_lightning.pytree import Vector, norm, to_float32

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FOR_A_SPECTRUM = 512
"""Most elements of a sample whose whole spectrum is drawn."""

ADJOINT_PRODUCTS = 50
"""How many products the adjoint residual is drawn for."""

LEAST_DRAWN = 1e-17
"""Residuals below this, which a logarithmic axis has no place for where they are 0, are drawn at it."""


class MonitorPlots:
    """Draws the plots of one solve for the loggers of a Trainer.

    Args:
        trainer: The Trainer.
        folder: The run's folder, where the latest plots are files, if it has one.
    """

    def __init__(self, trainer: Trainer, folder: Path | None) -> None:
        self._trainer, self._folder = trainer, folder
        self._step = trainer.global_step
        self._operator: JacobianOperator | None = None

    def draw_solve(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        """Draws the forward residual against iteration, steps to convergence and the spectrum of J.

        Args:
            fixed_point: The result of the solve, with the residual of every step.
            operator: The Jacobian at the fixed point.
        """
        self._operator = operator
        steps = [one.step for one in fixed_point.history]
        residuals = torch.stack([one.relative.flatten() for one in fixed_point.history]).double().cpu()
        residuals = residuals.clamp_min(LEAST_DRAWN)
        figure, axes = self._axes("forward solve", "step of the solve", "relative residual")
        for quantile, label in ((1.0, "worst sample"), (0.5, "median sample")):
            axes.semilogy(steps, residuals.quantile(quantile, dim=1), label=label)
        if fixed_point.tol > 0:
            axes.axhline(fixed_point.tol, color="grey", linestyle=":", label="tolerance")
        axes.legend()
        self._log("forward_solve", figure)
        log_histogram(self._trainer, "monitor/steps_to_convergence", fixed_point.sample_steps, self._step)
        if alike(operator.size) and operator.size <= MOST_FOR_A_SPECTRUM:
            self._draw_spectrum(operator)

    def _draw_spectrum(self, operator: JacobianOperator) -> None:
        from matplotlib.patches import Circle

        dense = operator.dense().double().cpu().reshape(-1, operator.size, operator.size)[0]
        if not bool(dense.isfinite().all()):
            return
        values = torch.linalg.eigvals(dense)
        radius = float(values.abs().max())
        title = f"eigenvalues of J, radius {radius:.3g}"
        figure, axes = self._axes(title, "real part (first sample)", "imaginary part")
        axes.add_patch(Circle((0, 0), 1, fill=False, color="grey", linestyle=":", label="unit circle"))
        axes.plot(values.real, values.imag, ".")
        # The circle is there also where no eigenvalue comes near it.
        reach = 1.1 * max(1.0, radius)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.legend(loc="upper right")
        self._log("spectrum", figure)

    def draw_adjoint(self, gradient: Vector) -> None:
        """Draws the adjoint residual against the number of products, of the Neumann series and conjugate gradients.

        Args:
            gradient: Leaves of g.
        """
        if self._operator is None:
            return
        operator, self._operator = self._operator, None
        term = gradient = to_float32(gradient)
        first = norm(gradient, operator.batch_dims)
        sizes: list[Tensor] = []
        for _ in range(ADJOINT_PRODUCTS):
            term = operator.vjp(term)
            sizes.append(torch.where(first == 0, 0, norm(term, operator.batch_dims) / first).max())
        figure, axes = self._axes(
            "adjoint equation, solved in two ways",
            "products with J^T and J",
            "adjoint residual / ||g||, worst sample",
        )
        axes.semilogy(
            range(1, ADJOINT_PRODUCTS + 1),
            torch.stack(sizes).double().cpu().clamp_min(LEAST_DRAWN),
            label="Neumann series",
        )
        steps = [1, 2, 4, 8, 16, ADJOINT_PRODUCTS // 2]
        with contextlib.suppress(UserError):  # the update may have no product with J
            solutions = [NormalCG(count, tol=0.0).solve(operator, gradient) for count in steps]
            left = (
                torch.stack([solution.residual.max() for solution in solutions]).double().cpu().clamp_min(LEAST_DRAWN)
            )
            axes.semilogy([2 * count for count in steps], left, "o-", label="conjugate gradients")
        axes.legend()
        self._log("adjoint_solve", figure)

    def _log(self, name: str, figure: "Figure") -> None:
        log_figure(self._trainer, f"monitor/{name}", figure, self._step, self._folder)

    def _axes(self, title: str, x_label: str, y_label: str) -> "tuple[Figure, Axes]":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(f"{title}, training step {self._step}", fontsize="medium")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        return figure, axes
