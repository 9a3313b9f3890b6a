"""How an estimator reports failures, and how it lives in a Trainer."""

import inspect
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rbp_lightning.adjoint import AdjointReport
from rbp_lightning.describe import describe
from rbp_lightning.errors import UserError
from rbp_lightning.failures import Failure
from rbp_lightning.policy import FailurePolicy


class ReportingCallback(Callback):
    """What gradient estimators have in common as callbacks: they report failures to a policy.

    Attributes:
        policy: What happens when a solve goes wrong; under a Trainer that of its ``FailurePolicy``.
        adjoint: How the last adjoint was solved, once a backward pass ran; ``None`` before.
    """

    def __init__(self) -> None:
        self.policy = self._own_policy = FailurePolicy()
        self.adjoint: AdjointReport | None = None

    def report(self, failure: Failure, what: str) -> None:
        """Has the policy act on a failure.

        Args:
            failure: Its kind.
            what: What happened, with the figure, in one sentence.

        Raises:
            ConvergenceError: If that is the policy.
        """
        self.policy.report(failure, f"{type(self).__name__}: {what}")

    def report_adjoint(
        self,
        steps: int,
        residual: Tensor,
        tol: float | None = None,
        error_bound: Tensor | None = None,
        error_estimate: Tensor | None = None,
        settled: bool = False,
    ) -> None:
        """Keeps how an adjoint was solved as ``adjoint``, and has the policy act where that is not well enough.

        Args:
            steps: Steps taken.
            residual: Adjoint residual over the norm of g, for each sample.
            tol: The tolerance it was meant to reach; ``None``, or 0 that asks for a number of steps, for what the
                policy tolerates of a truncated series.
            error_bound: Bound on the relative error of the adjoint, for each sample, which is to reach the tolerance
                in place of the residual; NaN for samples that have none.
            error_estimate: Estimate of the relative error, likewise.
            settled: Whether every sample is known to have converged, so that nothing need be read off the device.

        Raises:
            ConvergenceError: If that is the policy.
        """
        truncated = tol is None or tol == 0
        # All of it may be more than g itself.
        tolerated = self.policy.truncation_tol if self.policy.truncation_tol < 1 else torch.finfo(residual.dtype).max
        limit = tol or tolerated
        self.adjoint = AdjointReport(steps, residual, limit, error_bound, error_estimate)
        if not (settled or self.adjoint.converged):
            bound = "a relative residual" if error_bound is None else "a bound on its relative error"
            figure = bound if error_estimate is None else "an estimated relative error"
            option = "truncation_tol" if truncated else "tol"
            self.report(
                Failure.TRUNCATED if truncated else Failure.ADJOINT,
                f"The adjoint solve took {steps} steps to {figure} of {self.adjoint.worst:.2e} ({option}={limit:g}), "
                "so the gradient is wrong by more than asked for",
            )

    def report_truncation(self, steps: int, residual: Tensor, estimate: Tensor) -> None:
        """Does what ``report_adjoint`` does for a series of terms that has no tolerance.

        Args:
            steps: Number of its terms.
            residual: The last term's norm over that of the first, for each sample.
            estimate: Its estimated relative error.

        Raises:
            ConvergenceError: If that is the policy.
        """
        self.report_adjoint(steps, residual, error_estimate=estimate)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Becomes the module's estimator and, unless its constructor takes any keyword, one of its hyperparameters.

        Raises:
            UserError: If the Trainer has more than one estimator.
        """
        estimators = [callback for callback in trainer.callbacks if isinstance(callback, ReportingCallback)]  # type: ignore[attr-defined]
        if len(estimators) > 1:
            names = " and ".join(type(estimator).__name__ for estimator in estimators)
            raise UserError(f"The Trainer has {len(estimators)} gradient estimators ({names}): keep one of them.")
        # Lightning refuses two of them.
        policies = [callback for callback in trainer.callbacks if isinstance(callback, FailurePolicy)]  # type: ignore[attr-defined]
        self._own_policy = self.policy
        self.policy = policies[0] if policies else self.policy
        self.policy.enter_trainer()
        pl_module.estimator = self  # type: ignore[assignment]
        # A constructor that takes any keyword would be given the estimator when a checkpoint is loaded.
        if inspect.getfullargspec(type(pl_module).__init__).varkw is None:
            # The name of a constructor's only argument, where the module saved that one as its hyperparameters.
            name = getattr(pl_module, "_hparams_name", None)
            pl_module.save_hyperparameters({"estimator": describe(self)})
            pl_module._hparams_name = name  # type: ignore[assignment]

    def _tell_again(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets each kind of failure be told again."""
        self.policy.tell_again()

    on_train_epoch_start = on_validation_start = on_test_start = on_predict_start = _tell_again

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins a step, as far as the policy is concerned."""
        self.policy.before_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a step."""
        self.policy.after_batch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Has the policy look at the gradients."""
        self.policy.before_optimizer_step(trainer, pl_module, optimizer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the Trainer; the module keeps the estimator, so that it can be called afterwards."""
        self.policy.leave_trainer()
        self.policy = self._own_policy

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the Trainer, which tears nothing down then."""
        self.teardown(trainer, pl_module, "")
