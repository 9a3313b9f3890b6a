"""The interface of gradient estimators."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch._functorch.config
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_unflatten

from rbp_lightning.errors import UserError, check_count, check_instance
from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.attach_adjoint import attach_adjoint, refuse_transforms
from rbp_lightning.estimators.describe import as_call, describe
from rbp_lightning.estimators.judged_solve import judged_solve
from rbp_lightning.estimators.log_hyperparameters import log_hyperparameters
from rbp_lightning.estimators.observer import SolveObserver, observers_of_solve
from rbp_lightning.estimators.parameter_storage import watch_parameters
from rbp_lightning.estimators.progress import showing_progress
from rbp_lightning.estimators.random_draws import DrawWatch
from rbp_lightning.estimators.spot_checks import SpotChecks
from rbp_lightning.estimators.unshared import unshare
from rbp_lightning.estimators.warm_start import WarmStart
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import State, Vector
from rbp_lightning.reporting import current_context
from rbp_lightning.solvers import Auto, FixedPointSolver, Solve, Update


class GradientEstimator(Callback, ABC):
    """Finds fixed points and decides how gradients flow through them.

    Given to a Trainer as a callback it becomes ``pl_module.estimator``; a module calls it wherever it needs the fixed
    point of an update. It works as well without a Trainer. It is a description: what belongs to one solve is in the
    ``FixedPoint``, so one estimator serves nested solves, threads and several solves before a backward pass.

    Args:
        solver: Forward solver that finds the fixed point; ``None`` is ``Auto()``.

    Example:
        >>> class LastStep(GradientEstimator):
        ...     "Differentiates the last step alone."
        ...     def differentiate(self, solve, record):
        ...         vector = solve.without_tape(steps_after=1)
        ...         return solve.freezing_failures(lambda: solve.last_steps(vector, 1))
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> LastStep()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 2 of the true 4
        tensor(2.)
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        super().__init__()
        if solver is not None:
            check_instance(self, "solver", solver, FixedPointSolver, "one, such as Picard()")
        self.solver = Auto() if solver is None else solver

    @abstractmethod
    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Finds the fixed point with gradients enabled.

        Args:
            solve: The solve.
            record: Takes how the adjoint is solved, in the backward pass.

        Returns:
            The differentiable leaves of the fixed point. Those of ``solve.last_steps`` itself are given the values of
            the iterate whose residual is reported.
        """

    def __call__(
        self,
        update: Update,
        initial_state: State,
        batch_dims: int = 0,
        warm_start: WarmStart | None = None,
        max_steps: int | None = None,
        history: bool = False,
        progress: bool = False,
    ) -> FixedPoint:
        """Iterates an update to its fixed point.

        Args:
            update: The map F, from a state to the next one. Gradients reach every tensor it uses: parameters, injected
                inputs, anything it closes over.
            initial_state: Where to start: a floating-point tensor or a pytree of them. Only ``BPTT`` passes a
                gradient on to it; a fixed point does not depend on where it was started.
            batch_dims: How many leading dimensions of every leaf index independent samples. Convergence is judged, and
                adjoint equations are solved, for each of them apart. The default treats the state as one vector, which
                is right for nodes of one graph.
            warm_start: Holds the results of the last solve of the same problem, which this one starts from and
                replaces by its own.
            max_steps: Most applications of F in this solve; ``None`` takes the solver's. An evaluation may well run
                deeper than the training.
            history: Whether the residuals of all steps are wanted, in ``FixedPoint.history``, rather than those that
                the convergence checks need.
            progress: Whether to show the residual in a progress bar, for a long solve.

        Returns:
            The fixed point, and how the solve ended.

        Raises:
            UserError: If an argument or the update is not as described.
            ConvergenceError: If the solve fails and the policy is to raise.
        """
        run: Callable[..., FixedPoint] = self._untraced if torch.compiler.is_compiling() else self._run
        return run(update, initial_state, batch_dims, warm_start, max_steps, history, progress)

    def _run(
        self,
        update: Update,
        initial_state: State,
        batch_dims: int,
        warm_start: WarmStart | None,
        max_steps: int | None,
        history: bool,
        progress: bool,
    ) -> FixedPoint:
        refuse_transforms()
        batch_dims = check_count(self, "batch_dims", batch_dims, 0)
        taped = torch.is_grad_enabled()
        if max_steps is not None:
            max_steps = check_count(self, "max_steps", max_steps, 1)
            if taped:
                self.check_max_steps(max_steps)
        if warm_start is not None:
            check_instance(self, "warm_start", warm_start, WarmStart, "one that this problem alone uses, or None")
            initial_state = warm_start.state_like(initial_state)
        context = current_context()
        observers = observers_of_solve() if taped else []
        record_all = history or any(observer.record for observer in observers)
        checks = _taped_checks if taped else _untaped_checks
        checked = checks.next(context.place) is not None or context.place in checks.found
        watch = DrawWatch(update) if checked and self.solver.tol > 0 and callable(update) else None
        solve = Solve(watch or update, initial_state, batch_dims, self.solver, max_steps, record_all)
        record = AdjointRecord(type(self).__name__, context, observers, warm_start) if taped else None
        with showing_progress(type(self).__name__, self.solver.tol) if progress else nullcontext() as solve.at_check:
            if record is not None:
                _keep_saved_tensors()
                image = self.differentiate(solve, record)
            else:
                image = solve.values(solve.freezing_failures(lambda: solve.iterate(solve.max_steps)))
                image = [leaf.clone() for leaf in image]
        if record is not None:
            if image[0] is solve.last_taped[1][0]:
                image = attach_adjoint(lambda gradient: gradient, image, solve.values(image))
            if checked:
                watch_parameters(type(self).__name__, image, solve.last_taped[0], context)
        # A draw need not matter, and another thread may have made it.
        is_random = watch is not None and watch.draws and solve.is_stochastic(DRAWS, self.solver.tol)
        if is_random:
            checks.found.add(context.place)
        fixed_point = judged_solve(type(self).__name__, solve, image, context, record, is_random)
        if warm_start is not None:
            warm_start.keep_state(fixed_point)
        if observers:
            operator = JacobianOperator(_refuse_evaluation, *solve.last_taped, batch_dims, self.solver.per_leaf)
            for observer in observers:
                observer.on_solve_end(fixed_point, operator)
            image = attach_adjoint(_notifying(observers), image)
            fixed_point = replace(fixed_point, state=tree_unflatten(image, solve.structure))
        return fixed_point

    # A trace of the solve would put its data-dependent loop into the graph; the update may itself be compiled.
    _untraced = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]

    def check_max_steps(self, max_steps: int) -> None:
        """Refuses a number of steps that is too small for the estimator.

        Args:
            max_steps: Most applications of F.

        Raises:
            UserError: If it is.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Becomes the module's estimator, and is logged with its hyperparameters.

        Raises:
            UserError: If the Trainer has more than one estimator.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        estimators = [callback for callback in callbacks if isinstance(callback, GradientEstimator)]
        if len(estimators) > 1:
            names = " and ".join(type(estimator).__name__ for estimator in estimators)
            raise UserError(f"The Trainer has {len(estimators)} gradient estimators ({names}): keep one of them.")
        unshare(trainer, pl_module)
        pl_module.estimator = self  # type: ignore[assignment]
        if stage == "fit":
            log_hyperparameters(trainer, pl_module, {"estimator": describe(self)})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps its description in the checkpoint, under ``"estimator"``."""
        checkpoint["estimator"] = describe(self)

    def __repr__(self) -> str:
        """The class with its arguments."""
        return as_call(self)


DRAWS = 8
"""How often an update that draws random numbers is applied again, to see whether they matter."""

# A module that draws dropout masks in training does not in an evaluation.
_taped_checks, _untaped_checks = SpotChecks(), SpotChecks()


@functools.cache
def _keep_saved_tensors() -> None:
    """Has compiled updates keep the tensors that they save, in this process.

    One that was differentiated once without ``retain_graph`` would have given them away, and refuse the products of
    implicit estimators later on, also by way of the disk cache.
    """
    torch._functorch.config.donated_buffer = False


def _refuse_evaluation(vector: Vector) -> Vector:
    """Stands for the update where observers have its Jacobian: evaluating it could change what they are to observe."""
    raise NotImplementedError("observing evaluates no update again")


def _notifying(observers: Sequence[SolveObserver]) -> Callable[[Vector], Vector]:
    def notify(gradient: Vector) -> Vector:
        for observer in observers:
            observer.on_gradient(gradient)
        return gradient

    return notify
