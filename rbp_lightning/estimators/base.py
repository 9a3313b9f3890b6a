"""The interface of gradient estimators."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from rbp_lightning.agreement import begin_agreeing, end_agreeing
from rbp_lightning.errors import UserError, check_instance
from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.estimators.describe import as_call, describe
from rbp_lightning.estimators.log_hyperparameters import log_hyperparameters
from rbp_lightning.estimators.options import Options
from rbp_lightning.estimators.run_solve import run_solve
from rbp_lightning.estimators.state_form import StateForm, without_aux
from rbp_lightning.estimators.traced_solve import traced_solve
from rbp_lightning.estimators.unshare import unshare
from rbp_lightning.estimators.warm_start import WarmStart
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Auto, FixedPointSolver, Solve, Update
from rbp_lightning.solvers.fixed_steps import FixedSteps
from rbp_lightning.tracing import is_traced

# The solve has a data-dependent loop, so it is not compiled; the update itself may be.
_untraced: Callable[..., FixedPoint] = torch.compiler.disable(run_solve)  # type: ignore[no-untyped-call]


class GradientEstimator(Callback, ABC):
    """Finds fixed points and computes their gradients.

    As a callback of a Trainer it becomes ``pl_module.estimator``, which the module calls wherever it needs the fixed
    point of an update. It also works without a Trainer. An estimator is stateless: everything that belongs to one solve
    is in its ``FixedPoint``, so nested solves, threads and several solves before a backward pass can share it.

    Args:
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Example:
        >>> class LastStep(GradientEstimator):
        ...     "Differentiates only the last step."
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
            record: Where the backward pass stores how the adjoint was solved.

        Returns:
            The differentiable leaves of the fixed point. If they are those of ``solve.last_steps``, they get the values
            of the iterate whose residual is reported.
        """

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Finds the fixed point for derivatives of order 2 or more, or within transforms of torch.func.

        The solve runs outside the transforms. The function that is returned is called inside them, with F on leaves and
        the leaves of the initial state.

        Args:
            solve: The solve.
            record: Where the backward pass stores how the adjoint was solved.
            request: The requested derivatives.

        Raises:
            NotImplementedError: If the estimator supports neither.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has only first derivatives in reverse mode: use Implicit, or another estimator of "
            "this package, for derivatives of order 2, forward mode and transforms of torch.func."
        )

    def __call__(
        self,
        update: Update,
        initial_state: State,
        batch_dims: int = 0,
        warm_start: WarmStart | None = None,
        max_steps: int | None = None,
        history: bool = False,
        progress: bool = False,
        order: int = 1,
        states_at: Sequence[int] = (),
        has_aux: bool = False,
    ) -> FixedPoint:
        """Iterates an update to its fixed point.

        Args:
            update: The function F that maps a state to the next one. Gradients reach every tensor it closes over, such
                as parameters and injected inputs.
            initial_state: The initial state: a floating-point or complex tensor, or a pytree of such tensors, which may
                contain dataclasses and ``None``. Only ``BPTT`` and ``CheckpointedBPTT`` propagate a gradient to it; the
                fixed point itself does not depend on it.
            batch_dims: Number of leading dimensions of every leaf that index independent samples. Convergence is
                tested, and the adjoint equation solved, for each sample separately. The default treats the state as one
                vector, which is right for the nodes of one graph.
            warm_start: Holds the results of the last solve of the same problem; this solve starts from them and
                replaces them.
            max_steps: Maximum number of applications of F in this solve; ``None`` is the solver's. An evaluation may
                use more steps than training.
            history: Whether to compute the residuals of all steps for ``FixedPoint.history``, instead of only those of
                the convergence checks.
            progress: Whether to show the residual in a progress bar.
            order: The highest order of derivatives, at least 1; computing a higher one raises an error. An order k >= 2
                takes k more applications of F and, in every derivative, k linear solves; ``BPTT`` and ``TBPTT`` instead
                repeat their steps, and do not report their truncation error.
            states_at: Numbers of steps whose states are returned as well, in ``FixedPoint.states``, for losses on
                intermediate states. Each is differentiable like the fixed point, with the same memory. If the solve
                ends before a step, its state is the fixed point.
            has_aux: Whether the update returns a pair of the next state and auxiliary output. F is applied once more,
                to the fixed point, for ``FixedPoint.aux``, which is differentiable.

        Returns:
            The fixed point, and how the solve ended. Within ``torch.func.vmap``, its counts and status are those of the
            whole batch.

        Raises:
            UserError: If an argument or the update is invalid.
            NotImplementedError: If the estimator does not support these derivatives.
            ConvergenceError: If the solve fails and the policy is to raise.
        """
        options = Options.checked(self, batch_dims, warm_start, max_steps, history, progress, order, states_at)
        step = without_aux(update) if has_aux else update
        form = StateForm.if_needed(initial_state, options.batch_dims)
        if form is None:
            fixed_point = self._solved(step, initial_state, options)
        else:
            plain = self._solved(form.plain_update(step), form.plain(initial_state), options)
            fixed_point = form.original_result(plain)
        return replace(fixed_point, aux=update(fixed_point.state)[1]) if has_aux else fixed_point

    def _solved(self, update: Update, initial_state: State, options: Options) -> FixedPoint:
        if not is_traced():
            return run_solve(self, update, initial_state, options)
        traced = traced_solve(self, update, initial_state, options)
        if traced is not None:
            return traced
        # With fullgraph=True, the compiler's error shows the next line, with the remedy.
        return _untraced(self, update, initial_state, options)  # fullgraph=True: give the solvers tol=0

    def taped_steps(self, step: int) -> int:
        """Number of steps through which an intermediate state of ``states_at`` is differentiated.

        Args:
            step: Number of the step whose state it is.
        """
        return 1

    def differentiate_traced(self, solve: FixedSteps) -> Vector | None:
        """Does the same as ``differentiate`` within ``torch.compile``, for a solver with tolerance 0.

        It must not read values of tensors. A class that overrides ``differentiate`` but not this method is not
        compiled.

        Args:
            solve: The solve.

        Returns:
            The differentiable leaves of the fixed point; ``None``, before any step is taken, if it is not supported.
        """
        return None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "differentiate" in vars(cls) and "differentiate_traced" not in vars(cls):
            cls.differentiate_traced = GradientEstimator.differentiate_traced  # type: ignore[method-assign]

    def check_max_steps(self, max_steps: int) -> None:
        """Checks that the number of steps is large enough for the estimator.

        Args:
            max_steps: Maximum number of applications of F.

        Raises:
            UserError: If it is too small.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Becomes the estimator of the module and of its layers without one, and is logged as a hyperparameter.

        Raises:
            UserError: If the Trainer has more than one estimator.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        estimators = [callback for callback in callbacks if isinstance(callback, GradientEstimator)]
        if len(estimators) > 1:
            names = " and ".join(type(estimator).__name__ for estimator in estimators)
            raise UserError(f"The Trainer has {len(estimators)} gradient estimators ({names}): keep one of them.")
        unshare(trainer, pl_module)
        self.serve(pl_module)
        if stage == "fit":
            log_hyperparameters(trainer, pl_module, {"estimator": describe(self)})

    def serve(self, pl_module: LightningModule) -> None:
        """Becomes the estimator of a module and of its layers without one of their own.

        Args:
            pl_module: The module.
        """
        pl_module.estimator = self  # type: ignore[assignment]
        for module in pl_module.modules():
            if getattr(module, "takes_estimator", False):  # a FixedPointLayer
                module.estimator = self  # type: ignore[assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeats ``setup`` for layers created in ``configure_model``, and lets processes that share them agree."""
        self.serve(pl_module)
        begin_agreeing(pl_module)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does the same for a validation outside of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_fit_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the agreement of the processes."""
        end_agreeing(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the agreement as well, since the Trainer does not call ``teardown`` then."""
        end_agreeing(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the estimator's description in the checkpoint, under ``"estimator"``."""
        checkpoint["estimator"] = describe(self)

    def __repr__(self) -> str:
        """The class with its arguments."""
        return as_call(self)
