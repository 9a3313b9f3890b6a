"""The callback that audits a module's gradients."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track

from rbp_lightning.diagnostics.audit.advice import QUASI_NEWTON, advise, recommend, summaries
from rbp_lightning.diagnostics.audit.forward import (
    ForwardMeasurement,
    advise_solver,
    measure_forward,
    quasi_newton_solver,
    solvers_like,
    taped_solver,
)
from rbp_lightning.diagnostics.audit.measurement import Measurement, measure
from rbp_lightning.diagnostics.audit.reference import DENSE_SIZE, Reference, reference
from rbp_lightning.diagnostics.audit.report import pareto, print_left_out, print_solvers, print_table, write_files
from rbp_lightning.diagnostics.log_figure import can_draw, log_figure
from rbp_lightning.errors import UserError
from rbp_lightning.estimators import (
    BPTT,
    CGRBP,
    JFB,
    RBP,
    SHINE,
    TBPTT,
    AdaptiveNeumann,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    PhantomGradient,
)
from rbp_lightning.linear import GMRES, BiCGSTAB, ConjugateGradient, Dense
from rbp_lightning.solvers import Anderson, Auto, Broyden, ReducedRankExtrapolation


def candidates(
    configured: GradientEstimator, steps: Sequence[int], error: float, symmetric: bool
) -> Iterator[tuple[str, GradientEstimator]]:
    """Yields the estimators to compare, with the configured estimator's forward solver.

    Args:
        configured: The configured estimator, which is one of them.
        steps: The numbers of steps to try.
        error: The relative error to reach, for estimators with a tolerance.
        symmetric: Whether the Jacobian is symmetric, which ``ConjugateGradient`` needs.

    Yields:
        A name and an estimator.
    """
    solver = configured.solver
    yield "BPTT", BPTT(taped_solver(solver))
    for count in steps:
        if count <= solver.max_steps:
            yield f"TBPTT(steps={count})", TBPTT(count, solver)
    yield "JFB", JFB(solver)
    for count in steps:
        yield f"PhantomGradient(steps={count})", PhantomGradient(count, solver=solver)
    for count in steps:
        yield f"RBP(steps={count})", RBP(count, tol=0.0, solver=solver)
    for count in steps:
        yield f"NeumannRBP(steps={count})", NeumannRBP(count, solver)
    for count in steps:
        yield f"CGRBP(steps={count})", CGRBP(count, tol=0.0, solver=solver)
    for count in steps:
        yield f"Implicit(GMRES(steps={count}))", Implicit(GMRES(count, tol=0.0, restart=min(count, 50)), solver)
    for count in steps:
        yield f"Implicit(BiCGSTAB(steps={count}))", Implicit(BiCGSTAB(count, tol=0.0), solver)
    if symmetric:
        for count in steps:
            yield f"Implicit(ConjugateGradient(steps={count}))", Implicit(ConjugateGradient(count, tol=0.0), solver)
    yield "Implicit(Dense())", Implicit(Dense(DENSE_SIZE), solver)
    if solver.tol > 0:  # otherwise the number of steps is part of the problem
        for count in steps:
            yield f"SHINE(steps={count})", SHINE(count, solver=quasi_newton_solver(solver))
    for kind in (Auto, Anderson, ReducedRankExtrapolation, Broyden):
        yield f"Implicit({kind.__name__}(tol={error:g}))", Implicit(kind(max_steps=200, tol=error), solver)
    yield f"AdaptiveNeumann(tol={error:g})", AdaptiveNeumann(tol=error, max_steps=200, solver=solver)
    yield f"{type(configured).__name__} as configured", configured


class GradientAudit(Callback):
    """Audits the gradients of training steps instead of training.

    Args:
        estimator: The configured estimator.
        error: The relative error to reach.
        steps: The numbers of steps to try.

    Attributes:
        references: The reference of each batch.
        measurements: The measurements of the estimators on all batches.
        solvers: The measurements of the forward solvers.
        left_out: The estimators that cannot be applied to the module, and why.
        advice: The advice.
        recommended: The estimator that it recommends; ``None`` for none.
    """

    def __init__(self, estimator: GradientEstimator, error: float, steps: Sequence[int]) -> None:
        self.estimator, self.error, self.steps = estimator, error, steps
        self.references: list[Reference] = []
        self.measurements: list[Measurement] = []
        self.solvers: list[ForwardMeasurement] = []
        self.left_out: dict[str, str] = {}
        self.advice = ""
        self.recommended: Measurement | None = None
        self._folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the log folder.

        Raises:
            UserError: If the module uses manual optimisation.
        """
        if not pl_module.automatic_optimization:
            raise UserError(
                f"{type(pl_module).__name__} uses manual optimisation, which an audit cannot follow: set "
                "automatic_optimization to True."
            )
        self._folder = trainer.log_dir if trainer.loggers else None

    def audited_step(self, module: LightningModule) -> Callable[..., None]:
        """Returns a function that replaces the module's training step by an audit.

        Args:
            module: The module.
        """

        @functools.wraps(module.training_step)  # Lightning looks at its arguments
        def audited(*arguments: Any, **named: Any) -> None:
            self._audit(module, [*arguments, *named.values()])

        return audited

    def _audit(self, module: LightningModule, arguments: Sequence[Any]) -> None:
        batch = len(self.references)
        self.references.append(reference(module, arguments))
        # The first batch decides, so that each estimator is measured on all batches.
        found = candidates(self.estimator, self.steps, self.error, self.references[0].symmetric)
        for name, solver in solvers_like(self.estimator.solver):
            self.solvers.append(measure_forward(module, name, solver, arguments, batch))
        chosen = [(name, estimator) for name, estimator in found if name not in self.left_out]
        for name, estimator in track(chosen, f"gradients of batch {batch}", transient=True):
            exact = self.references[-1].gradient
            try:
                self.measurements.append(measure(module, name, estimator, arguments, batch, exact))
            except UserError as refusal:
                if estimator is self.estimator:
                    raise
                self.left_out[name] = str(refusal)
        self.measurements = [one for one in self.measurements if one.gradient not in self.left_out]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and writes the report."""
        measured = summaries(self.measurements)
        self.recommended = recommend(self.references, measured, self.error)
        self.advice = advise(self.references, measured, self.error)
        # No advice on the solver beside an estimator that needs one of its own.
        if self.recommended is None or not self.recommended.gradient.startswith(QUASI_NEWTON):
            self.advice += advise_solver(self.solvers)
        print_table(self.references, measured)
        print_left_out(self.left_out)
        print_solvers(self.solvers)
        if self._folder is not None:
            folder = Path(self._folder)
            content = self.references, self.measurements, measured, self.left_out, self.solvers
            write_files(folder, *content, self.advice, self.error)
            drawn = folder / "audit.png" if can_draw() else "not drawn, install matplotlib for that"
            print(f"Measurements: {folder / 'audit.csv'}, {folder / 'audit.json'}; error against cost: {drawn}")
        if can_draw() and trainer.loggers:
            log_figure(trainer, "audit/error_against_cost", pareto(measured, self.error), trainer.global_step)
        print(self.advice)
