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
from rbp_lightning.estimators.state_form import StateForm, first_of_pair
from rbp_lightning.estimators.traced_solve import traced_solve
from rbp_lightning.estimators.unshared import unshare
from rbp_lightning.estimators.warm_start import WarmStart
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Auto, FixedPointSolver, Solve, Update
from rbp_lightning.solvers.fixed_steps import FixedSteps
from rbp_lightning.tracing import is_traced

# A trace of the solve would put its data-dependent loop into the graph; the update may itself be compiled.
_untraced: Callable[..., FixedPoint] = torch.compiler.disable(run_solve)  # type: ignore[no-untyped-call]


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

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Finds the fixed point where derivatives of order 2 or more, or transforms of torch.func, are asked for.

        The solve runs outside the transforms; what is returned is called inside them, with F on leaves and the leaves
        of the initial state as they are there.

        Args:
            solve: The solve.
            record: Takes how the adjoint is solved.
            request: What is asked for.

        Raises:
            NotImplementedError: If the estimator has neither.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has first derivatives in reverse mode alone: use Implicit, or another estimator of "
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
            update: The map F, from a state to the next one. Gradients reach every tensor it uses: parameters, injected
                inputs, anything it closes over.
            initial_state: Where to start: a floating-point or complex tensor, or a pytree of them, in which dataclasses
                and ``None`` may occur. Only ``BPTT`` and ``CheckpointedBPTT`` pass a gradient on to it; a fixed point
                does not depend on where it was started.
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
            order: The highest order of derivatives that is wanted, at least 1; a higher one is refused where it is
                asked for. An order k from 2 on takes k more applications of F and, in every derivative, k linear
                solves; ``BPTT`` and ``TBPTT`` take their steps on the tape once more, and do not report what they leave
                out.
            states_at: Numbers of steps after which the states are wanted as well, in ``FixedPoint.states``, for losses
                along the way. Each is differentiable as if it were the fixed point, and takes the memory of one; where
                the solve has ended before, it is the fixed point.
            has_aux: Whether the update returns a pair, of the next state and anything else. F is applied once more, to
                the fixed point, for ``FixedPoint.aux``, which is differentiable.

        Returns:
            The fixed point, and how the solve ended. Within ``torch.func.vmap`` its counts and status are those of the
            whole batch.

        Raises:
            UserError: If an argument or the update is not as described.
            NotImplementedError: If the estimator has no such derivatives.
            ConvergenceError: If the solve fails and the policy is to raise.
        """
        options = Options.checked(self, batch_dims, warm_start, max_steps, history, progress, order, states_at)
        step = first_of_pair(update) if has_aux else update
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
        # The compiler prints the next line where fullgraph=True keeps it from leaving the solve out of its graph.
        return _untraced(self, update, initial_state, options)  # fullgraph=True: give the solvers tol=0

    def taped_steps(self, step: int) -> int:
        """How many steps are taped for a state on the way.

        Args:
            step: Number of the step that the state comes after.
        """
        return 1

    def differentiate_traced(self, solve: FixedSteps) -> Vector | None:
        """Does what ``differentiate`` does where a solver's tolerance is 0, within a graph: reads no values.

        A class that has a ``differentiate`` of its own and none of this is left out of graphs.

        Args:
            solve: The steps.

        Returns:
            The differentiable leaves of the fixed point; ``None`` if that cannot be done, before any step is taken.
        """
        return None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "differentiate" in vars(cls) and "differentiate_traced" not in vars(cls):
            cls.differentiate_traced = GradientEstimator.differentiate_traced  # type: ignore[method-assign]

    def check_max_steps(self, max_steps: int) -> None:
        """Refuses a number of steps that is too small for the estimator.

        Args:
            max_steps: Most applications of F.

        Raises:
            UserError: If it is.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Becomes the estimator of the module, and of layers in it that were given none; is logged as hyperparameters.

        Raises:
            UserError: If the Trainer has more than one estimator.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        estimators = [callback for callback in callbacks if isinstance(callback, GradientEstimator)]
        if len(estimators) > 1:
            names = " and ".join(type(estimator).__name__ for estimator in estimators)
            raise UserError(f"The Trainer has {len(estimators)} gradient estimators ({names}): keep one of them.")
        unshare(trainer, pl_module)
        self._serve(pl_module)
        if stage == "fit":
            log_hyperparameters(trainer, pl_module, {"estimator": describe(self)})

    def _serve(self, pl_module: LightningModule) -> None:
        pl_module.estimator = self  # type: ignore[assignment]
        for module in pl_module.modules():
            if getattr(module, "takes_estimator", False):  # a FixedPointLayer
                module.estimator = self  # type: ignore[assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serves what ``configure_model`` has made since ``setup``, with the processes that share it."""
        self._serve(pl_module)
        begin_agreeing(pl_module)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does so for a validation that is not part of a training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_fit_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends what it began."""
        end_agreeing(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends it as well; the Trainer tears nothing down then."""
        end_agreeing(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps its description in the checkpoint, under ``"estimator"``."""
        checkpoint["estimator"] = describe(self)

    def __repr__(self) -> str:
        """The class with its arguments."""
        return as_call(self)
