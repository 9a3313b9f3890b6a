"""The plots of the monitor."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rbp_lightning.agreement import same_everywhere
from rbp_lightning.diagnostics.log_figure import log_figure, log_histogram
from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import JacobianOperator, NormalCG
from rbp_lightning.pytree import Vector, norm, to_float32

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SPECTRUM_SIZE = 512
"""The most elements of a sample whose spectrum is drawn."""

ADJOINT_PRODUCTS = 50
"""The number of products for which the adjoint residual is drawn."""

FLOOR = 1e-17
"""Smaller residuals are drawn here, since a logarithmic axis cannot show 0."""


class MonitorPlots:
    """Draws the plots of one solve for the loggers of a Trainer.

    Args:
        trainer: The Trainer.
        folder: The run's folder for the latest plots; ``None`` writes no files.
    """

    def __init__(self, trainer: Trainer, folder: Path | None) -> None:
        self._trainer, self._folder = trainer, folder
        self._step = trainer.global_step
        self._operator: JacobianOperator | None = None

    def draw_solve(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        """Draws the forward residual against iteration, steps to convergence and the spectrum of J.

        Args:
            fixed_point: The result of the solve, with its history.
            operator: The Jacobian at the fixed point.
        """
        self._operator = operator
        steps = [one.step for one in fixed_point.history]
        residuals = torch.stack([one.relative.flatten() for one in fixed_point.history]).double().cpu()
        residuals = residuals.clamp_min(FLOOR)
        figure, axes = self._axes("forward solve", "step of the solve", "relative residual")
        for quantile, label in ((1.0, "worst sample"), (0.5, "median sample")):
            axes.semilogy(steps, residuals.quantile(quantile, dim=1), label=label)
        if fixed_point.tol > 0:
            axes.axhline(fixed_point.tol, color="grey", linestyle=":", label="tolerance")
        axes.legend()
        self._log("forward_solve", figure)
        log_histogram(self._trainer, "monitor/steps_to_convergence", fixed_point.sample_steps, self._step)
        if same_everywhere(operator.size) and operator.size <= MAX_SPECTRUM_SIZE:
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
        # The unit circle stays visible even if all eigenvalues are small.
        reach = 1.1 * max(1.0, radius)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.legend(loc="upper right")
        self._log("spectrum", figure)

    def draw_adjoint(self, gradient: Vector) -> None:
        """Draws the adjoint residual of the Neumann series and of conjugate gradients against products.

        Args:
            gradient: The leaves of g.
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
            torch.stack(sizes).double().cpu().clamp_min(FLOOR),
            label="Neumann series",
        )
        steps = [1, 2, 4, 8, 16, ADJOINT_PRODUCTS // 2]
        with contextlib.suppress(UserError):  # the update may not support products with J
            solutions = [NormalCG(count, tol=0.0).solve(operator, gradient) for count in steps]
            residuals = torch.stack([solution.residual.max() for solution in solutions]).double().cpu()
            axes.semilogy([2 * count for count in steps], residuals.clamp_min(FLOOR), "o-", label="conjugate gradients")
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
