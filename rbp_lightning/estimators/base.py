"""The interface of gradient estimators."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.estimators.replace_gradient import replace_gradient
from rbp_lightning.estimators.reporting import ReportingCallback
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import ConvergenceTest, FixedPoint, Status
from rbp_lightning.pytree import State, Vector, leaves_of
from rbp_lightning.samples import BestIterates, draws_anew, holding
from rbp_lightning.solvers import FixedPointSolver, Picard, Update
from rbp_lightning.warm_start import WarmStart


class GradientEstimator(ReportingCallback, ABC):
    """Finds fixed points and decides how gradients flow through them.

    Given to a Trainer as a callback it becomes ``pl_module.estimator``; a module calls it wherever it needs the fixed
    point of an update. It works as well without a Trainer.

    Args:
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Attributes:
        policy: What happens when a solve goes wrong; under a Trainer that of its ``FailurePolicy``.
        adjoint: How the last adjoint was solved, once a backward pass ran; ``None`` before.
        observers: Each makes a ``SolveObserver`` for each solve whose gradient may be taken.

    Example:
        >>> class LastStep(GradientEstimator):
        ...     "Differentiates the last step alone."
        ...     def solve_with_gradient(self, update, state, test, warm_start):
        ...         state, steps = self.iterate_untaped(update, state, 1, test)
        ...         return self.taped_step(update, state, test), steps + 1
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> LastStep()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 2 of the true 4
        tensor(2.0000)
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        super().__init__()
        if not isinstance(solver, FixedPointSolver | None):
            raise UserError(
                f"{type(self).__name__}: solver={solver!r} is no FixedPointSolver: give it one, such as Picard()."
            )
        self.solver = Picard() if solver is None else solver
        self.observers: list[Callable[[], SolveObserver]] = []
        self._observers_of_solve: list[SolveObserver] = []

    @abstractmethod
    def solve_with_gradient(
        self, update: Update, state: State, test: ConvergenceTest, warm_start: WarmStart | None
    ) -> tuple[State, int]:
        """Finds the fixed point with gradients enabled.

        Args:
            update: The map F.
            state: The initial state.
            test: Observes the iterates.
            warm_start: Keeps the adjoint for the next solve; the initial state is taken from it already.

        Returns:
            The differentiable fixed point and how many times ``update`` was applied.
        """

    # A trace of the solve would put its data-dependent loop into the graph; the update may itself be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self, update: Update, initial_state: State, batch_dims: int = 0, warm_start: WarmStart | None = None
    ) -> FixedPoint:
        """Iterates an update to its fixed point.

        Args:
            update: The map F, from a state to the next one. Gradients reach every tensor it uses: parameters, injected
                inputs, anything it closes over.
            initial_state: Where to start: a floating-point tensor or a pytree of them. Only ``BPTT`` passes a
                gradient on to it; a fixed point does not depend on where it was started.
            batch_dims: How many leading dimensions of every leaf index samples that do not act on each other.
                Convergence is judged, and adjoint equations are solved, for each of them apart. The default treats
                the state as one vector, which is right for nodes of one graph.
            warm_start: Holds the results of the last solve of the same problem, which this one starts from and
                replaces by its own.

        Returns:
            The fixed point, the steps taken, the relative residual and the status.

        Raises:
            UserError: If the state or ``batch_dims`` is not as described.
        """
        leaves = leaves_of(initial_state, check_count(self, "batch_dims", batch_dims, 0))
        if warm_start is not None:
            initial_state = warm_start.state_like(initial_state)
            leaves = tree_leaves(initial_state)
        observers = [make() for make in self.observers] if torch.is_grad_enabled() else []
        for observer in observers:
            update = observer.on_solve_start(update)
        versions = [leaf._version for leaf in leaves if not leaf.is_inference()]
        result = self._solve(update, initial_state, batch_dims, warm_start, observers)
        if versions != [leaf._version for leaf in leaves if not leaf.is_inference()]:
            raise UserError("The update changes its argument in place: it must return a new state.")
        self._report_solve(update, result)
        if batch_dims and (failed := self._failed(result)) is not None:
            best = BestIterates(self.solver.tol, batch_dims)
            with torch.no_grad():
                state, _ = self.solver.iterate(update, initial_state, self.solver.max_steps - 1, best)
                self.taped_step(update, state, best)  # observed, whatever the solver has observed
            held = holding(update, failed, best.previous)
            others = self._solve(held, initial_state, batch_dims, warm_start, observers, failed)
            residual = torch.where(failed, best.residuals, others.residual)
            verdicts = torch.where(failed, result.verdicts, others.verdicts)
            result = replace(result, state=others.state, residual=residual, verdicts=verdicts)
        if warm_start is not None:
            warm_start.keep_state(result)
        for observer in observers:
            observer.on_solve_end(update, initial_state, batch_dims, result)
        if observers:
            result = replace(result, state=self._observed(result.state, observers))
        return result

    def _solve(
        self,
        update: Update,
        initial_state: State,
        batch_dims: int,
        warm_start: WarmStart | None,
        observers: list[SolveObserver],
        held: Tensor | None = None,
    ) -> FixedPoint:
        test = ConvergenceTest(self.solver.tol, batch_dims, held)
        self._observers_of_solve = observers
        if torch.is_grad_enabled():
            state, steps = self.solve_with_gradient(update, initial_state, test, warm_start)
        else:
            state, steps = self.solver.iterate(update, initial_state, self.solver.max_steps, test)
        return test.result(state, steps)

    def _report_solve(self, update: Update, result: FixedPoint) -> None:
        """Has the policy act on a solve that did not end as it was meant to."""
        # A tolerance of 0 asks for a number of steps, not for convergence.
        expected = {Status.CONVERGED} if self.solver.tol > 0 else {Status.CONVERGED, Status.MAX_STEPS}
        failure = result.status.failure
        if failure is None or result.status in expected:
            return
        # The steps of a training on minibatches differ too; whoever asks for a number of steps knows.
        looks = self.solver.tol > 0 and (self.policy.acts_on(failure) or self.policy.acts_on(Failure.RANDOM))
        if looks and draws_anew(update, result.state):
            failure = Failure.RANDOM
        samples = result.verdicts.numel()
        count = int((~result.samples(*expected)).sum())
        whose = f" ({count} of {samples} samples)" if samples > 1 else ""
        self.report(
            failure,
            f"The forward solve took {result.steps} steps to a relative residual of "
            f"{float(result.residual.max()):.2e} (tol={self.solver.tol:g}), status {result.status.value!r}{whose}",
        )

    def _failed(self, result: FixedPoint) -> Tensor | None:
        """The samples that would spoil the others' gradients, if there are any: not finite, or growing."""
        growing = [Status.DIVERGED] if self.solver.tol > 0 else []
        if result.status not in (Status.DIVERGED, Status.NAN):
            return None
        failed = result.samples(Status.NAN, *growing) | ~result.residual.isfinite()
        return failed if bool(failed.any()) else None

    def _observed(self, state: State, observers: list[SolveObserver]) -> State:
        def tell(gradients: Vector) -> Vector:
            for observer in observers:
                observer.on_gradient(gradients)
            return gradients

        return replace_gradient(tell, state)

    def iterate_untaped(
        self, update: Update, state: State, taped_steps: int, test: ConvergenceTest
    ) -> tuple[State, int]:
        """Runs the solver without a tape.

        Args:
            update: The map F.
            state: The initial state.
            taped_steps: How many of the solver's ``max_steps`` are left to the caller, who has the last one observed.
            test: Observes the iterates.

        Returns:
            The last iterate and how many times ``update`` was applied.
        """
        test.followed = taped_steps > 0
        with torch.no_grad():
            state, steps = self.solver.iterate(update, state, self.solver.max_steps - taped_steps, test)
        if taped_steps > 1:  # what has converged may yet be left: an unstable mode takes time to grow
            test.settled = False
        return state, steps

    def taped_step(self, update: Update, state: State, test: ConvergenceTest) -> State:
        """Applies the update once, and has the change observed unless every sample is known to have converged.

        Args:
            update: The map F.
            state: The state to apply it to.
            test: Observes the change.

        Returns:
            The next state.
        """
        following = update(state)
        if not test.settled:
            test.observe(tree_leaves(state), tree_leaves(following))
        return following
