"""The interface of gradient estimators."""

import inspect
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves

from rbp_lightning.errors import ConvergenceWarning, UserError, check_count
from rbp_lightning.fixed_point import ConvergenceTest, FixedPoint, Status
from rbp_lightning.pytree import State, leaves_of
from rbp_lightning.solvers import FixedPointSolver, Picard, Update
from rbp_lightning.warm_start import WarmStart


class GradientEstimator(Callback, ABC):
    """Finds fixed points and decides how gradients flow through them.

    Given to a Trainer as a callback it becomes ``pl_module.estimator``; a module calls it wherever it needs the fixed
    point of an update. It works as well without a Trainer.

    Args:
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

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
        self.solver = Picard() if solver is None else solver
        self._warned: set[str] = set()
        self._in_trainer = False

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
        versions = [leaf._version for leaf in leaves if not leaf.is_inference()]
        test = ConvergenceTest(self.solver.tol, batch_dims)
        if torch.is_grad_enabled():
            state, steps = self.solve_with_gradient(update, initial_state, test, warm_start)
        else:
            state, steps = self.solver.iterate(update, initial_state, self.solver.max_steps, test)
        if versions != [leaf._version for leaf in leaves if not leaf.is_inference()]:
            raise UserError("The update changes its argument in place: it must return a new state.")
        result = test.result(state, steps)
        if warm_start is not None:
            warm_start.keep_state(result)
        # A tolerance of 0 asks for a number of steps, not for convergence.
        expected = {Status.CONVERGED} if self.solver.tol > 0 else {Status.CONVERGED, Status.MAX_STEPS}
        if result.status not in expected:
            self._warn(
                result.status.value,
                f"The forward solve took {steps} steps to a relative residual of {float(result.residual.max()):.2e} "
                f"(tol={self.solver.tol:g}). Status {result.status.value!r}: {result.status.message}.",
            )
        return result

    def iterate_untaped(
        self, update: Update, state: State, taped_steps: int, test: ConvergenceTest
    ) -> tuple[State, int]:
        """Runs the solver without a tape.

        Args:
            update: The map F.
            state: The initial state.
            taped_steps: How many of the solver's ``max_steps`` are left to the caller.
            test: Observes the iterates.

        Returns:
            The last iterate and how many times ``update`` was applied.
        """
        with torch.no_grad():
            return self.solver.iterate(update, state, self.solver.max_steps - taped_steps, test)

    def taped_step(self, update: Update, state: State, test: ConvergenceTest) -> State:
        """Applies the update once, and has the change observed.

        Args:
            update: The map F.
            state: The state to apply it to.
            test: Observes the change.

        Returns:
            The next state.
        """
        following = update(state)
        test.observe(tree_leaves(state), tree_leaves(following))
        return following

    def _warn(self, kind: str, message: str) -> None:
        """Warns, under a Trainer once an epoch for each kind of message."""
        if not self._in_trainer or kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{type(self).__name__}: {message}", ConvergenceWarning, stacklevel=4)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Becomes the module's estimator and, unless its constructor takes any keyword, one of its hyperparameters.

        Raises:
            UserError: If the Trainer has more than one estimator.
        """
        estimators = [callback for callback in trainer.callbacks if isinstance(callback, GradientEstimator)]  # type: ignore[attr-defined]
        if len(estimators) > 1:
            names = " and ".join(type(estimator).__name__ for estimator in estimators)
            raise UserError(f"The Trainer has {len(estimators)} gradient estimators ({names}): keep one of them.")
        pl_module.estimator = self  # type: ignore[assignment]
        self._in_trainer = True
        # A constructor that takes any keyword would be given the estimator when a checkpoint is loaded.
        if inspect.getfullargspec(type(pl_module).__init__).varkw is None:
            # The name of a constructor's only argument, where the module saved that one as its hyperparameters.
            name = getattr(pl_module, "_hparams_name", None)
            pl_module.save_hyperparameters({"estimator": describe(self)})
            pl_module._hparams_name = name  # type: ignore[assignment]

    def _warn_again(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets each kind of warning be given again."""
        self._warned.clear()

    on_train_epoch_start = on_validation_start = on_test_start = on_predict_start = _warn_again

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the Trainer; the module keeps the estimator, so that it can be called afterwards."""
        self._in_trainer = False


def describe(configured: object) -> dict[str, Any]:
    """Describes an object by its class and the arguments it was made with, in plain types.

    Args:
        configured: An object; constructor arguments that it does not keep in attributes of the same name are left out.

    Returns:
        ``class_path`` and ``init_args``, as in a YAML config.

    Example:
        >>> describe(Picard(max_steps=20))["init_args"]
        {'max_steps': 20, 'tol': 1e-06, 'check_every': 10}
    """
    init_args = {}
    for name in inspect.signature(type(configured)).parameters:
        if hasattr(configured, name):
            value = getattr(configured, name)
            plain = value is None or isinstance(value, bool | int | float | str)
            nested = describe(value) if isinstance(value, FixedPointSolver) else repr(value)
            init_args[name] = value if plain else nested
    return {"class_path": f"{type(configured).__module__}.{type(configured).__qualname__}", "init_args": init_args}
