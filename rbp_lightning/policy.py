"""What happens when a fixed point or its gradient goes wrong."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rbp_lightning.errors import (
    ConvergenceError,
    ConvergenceWarning,
    UserError,
    check_choice,
    check_count,
    check_number,
)
from rbp_lightning.failures import Failure

Action: TypeAlias = Literal["warn", "raise", "skip"]


class FailurePolicy(Callback):
    """Decides what happens when a fixed point or its gradient goes wrong.

    Given to a Trainer beside an estimator, it becomes that estimator's ``policy``; the command line always has one,
    ``--policy.diverged skip``. Each kind of failure has an action:

    - ``"warn"``: a warning with the figure and the remedy, under a Trainer once per kind and epoch;
    - ``"raise"``: a ``ConvergenceError``, at once and before the optimiser's step;
    - ``"skip"``: a warning, and the optimiser's step is dropped, by every process alike. Skipped steps are counted and
      logged as ``train/skipped_steps``; learning rate schedules go on. Where there is no training it only warns.

    Args:
        not_converged: Action where a forward solve ends above its tolerance, or its update is random.
        diverged: Action where a forward solve diverges or meets NaN, or where the gradient of a parameter is not
            finite (with a loss scale, that is the scaler's to handle).
        adjoint: Action where an adjoint is not solved to the estimator's tolerance.
        spectral_radius: Action where ``EquilibriumMonitor`` finds a spectral radius at or above 1.
        max_skips: Most skipped steps in a row, at least 1: that many are an error.
        truncation_tol: For estimators without a tolerance (``NeumannRBP``, ``TBPTT``): the estimated share of the
            adjoint that their series leaves out above which it counts as not solved, 0 to 1; 1 tolerates all of it.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> estimator = NeumannRBP(solver=Picard(max_steps=20))
        >>> estimator.policy = FailurePolicy(diverged="raise")
        >>> estimator(lambda h: 2 * h + 1, torch.zeros(()))
        Traceback (most recent call last):
        rbp_lightning.errors.ConvergenceError: NeumannRBP: The forward solve took 20 steps ...
    """

    def __init__(
        self,
        not_converged: Action = "warn",
        diverged: Action = "warn",
        adjoint: Action = "warn",
        spectral_radius: Action = "warn",
        max_skips: int = 10,
        truncation_tol: float = 0.1,
    ) -> None:
        actions = {
            "not_converged": not_converged,
            "diverged": diverged,
            "adjoint": adjoint,
            "spectral_radius": spectral_radius,
        }
        for name, action in actions.items():
            check_choice(self, name, action, ("warn", "raise", "skip"))
        self.not_converged, self.diverged = not_converged, diverged
        self.adjoint, self.spectral_radius = adjoint, spectral_radius
        self.max_skips = check_count(self, "max_skips", max_skips, 1)
        self.truncation_tol = check_number(self, "truncation_tol", truncation_tol, 0.0, 1.0)
        self.skipped = 0
        self._in_a_row = 0
        self._skips = "skip" in actions.values()
        self._told: set[Failure] = set()
        self._ignored: set[Failure] = set()
        self._in_trainer = self._in_batch = False
        self._failed: str | None = None
        # Of the optimisers' steps on the last batch: whether there was one, and whether one was dropped.
        self._stepped = self._dropped = False

    def action(self, failure: Failure) -> Action:
        """What is done about a kind of failure."""
        action: Action = getattr(self, failure.policy)
        return action

    def acts_on(self, failure: Failure) -> bool:
        """Whether anything happens when a failure of this kind is reported."""
        if failure in self._ignored:
            return False
        return self.action(failure) != "warn" or not self._in_trainer or failure not in self._told

    def report(self, failure: Failure, what: str) -> None:
        """Acts on a failure.

        Args:
            failure: Its kind.
            what: What happened, with the figure, in one sentence.

        Raises:
            ConvergenceError: If that is the policy.
        """
        if failure in self._ignored:
            return
        action = self.action(failure)
        if action == "raise":
            raise ConvergenceError(f"{what}; {failure.message}.")
        if action == "skip" and self._in_batch:
            self._failed = failure.value
        self.tell(failure, what)

    def tell(self, failure: Failure, what: str) -> None:
        """Warns of a failure, under a Trainer once per kind and epoch, whatever the policy is.

        Args:
            failure: Its kind.
            what: What happened, with the figure, in one sentence.
        """
        if failure not in self._ignored and not (self._in_trainer and failure in self._told):
            self._told.add(failure)
            warnings.warn(f"{what}; {failure.message}.", ConvergenceWarning, stacklevel=5)

    @contextmanager
    def ignoring(self, *failures: Failure) -> Iterator[None]:
        """Context in which some kinds of failure are left to the caller.

        Args:
            failures: The kinds.
        """
        before, self._ignored = self._ignored, self._ignored | set(failures)
        try:
            yield
        finally:
            self._ignored = before

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer in which there is nothing to decide about.

        Raises:
            UserError: If the Trainer has no gradient estimator.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(getattr(callback, "policy", None), FailurePolicy) for callback in callbacks):
            raise UserError("FailurePolicy: the Trainer has no gradient estimator that it could serve: give it one.")

    def enter_trainer(self) -> None:
        """Starts to tell each kind of failure once an epoch."""
        self._in_trainer = True
        self.tell_again()

    def leave_trainer(self) -> None:
        """Starts to tell each failure when it happens."""
        self._in_trainer = self._in_batch = self._stepped = self._dropped = False
        self._failed = None

    def tell_again(self) -> None:
        """Lets each kind of failure be told again."""
        self._told.clear()

    def before_batch(self) -> None:
        """Begins a training batch; failures before a step that is still to come are kept."""
        self._in_batch = True
        if self._dropped:
            self._failed = None
        self._stepped = self._dropped = False

    def after_batch(self) -> None:
        """Ends a training batch: what follows, such as a validation, drops no step."""
        self._in_batch = False
        if self._stepped and not self._dropped:
            self._in_a_row = 0

    def before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops the optimiser's step where the policy says so, by taking its gradients away.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            optimizer: The optimizer that is about to step.

        Raises:
            ConvergenceError: If a gradient is not finite and the policy is to raise, or too many steps in a row were
                dropped.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # With a loss scale, overflow is what lowers it.
        if trainer.precision != "16-mixed" and not _all_finite(parameters):
            names = [name for name, parameter in pl_module.named_parameters() if not _all_finite([parameter])]
            self.report(Failure.GRADIENT, f"{type(pl_module).__name__}: the gradient of {', '.join(names)} is wrong")
        if not self._skips:
            return
        skip = trainer.strategy.reduce_boolean_decision(self._failed is not None, all=False)
        if skip:
            for parameter in parameters:
                parameter.grad = None
        if skip and not self._dropped:  # several optimisers may step on one batch
            self.skipped += 1
            self._in_a_row += 1
        self._stepped, self._dropped = True, self._dropped or skip
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)
        if self._in_a_row >= self.max_skips:
            raise ConvergenceError(
                f"The optimiser's steps were skipped {self._in_a_row} times in a row (max_skips={self.max_skips}), "
                f"last because {self._failed or 'another process failed'}: lower the learning rate or look at the "
                "warnings before."
            )

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: how many steps were skipped."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint left it."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _all_finite(parameters: list[Tensor]) -> bool:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    finite = [(leaf.coalesce().values() if leaf.is_sparse else leaf).isfinite().all() for leaf in gradients]
    return not finite or bool(torch.stack([one.to(finite[0].device) for one in finite]).all())
