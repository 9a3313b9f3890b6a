"""The failure policy: what happens when a fixed point or its gradient is wrong."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rbp_lightning.agreement import agreeing, everywhere, local_part
from rbp_lightning.diagnostics.skipped_steps import SkippedSteps, parameters_of
from rbp_lightning.errors import ConvergenceError, check_choice, check_count, check_number
from rbp_lightning.failures import Failure
from rbp_lightning.reporting import Action, Place, pop_handler, push_handler, report, warn_at

ACTIONS = ("ignore", "warn", "raise", "skip")


class FailurePolicy(Callback):
    """Decides what happens when a fixed point or its gradient is wrong.

    As a callback it covers all estimators and layers that are called while the Trainer runs; the command line always
    has one, set by options such as ``--policy.diverged skip``. Outside a Trainer it is a context manager; threads
    started inside must enter it themselves. Each kind of failure has an action:

    - ``"ignore"``: nothing;
    - ``"warn"``: a warning with the measured value and the remedy, under a Trainer once per kind and epoch;
    - ``"raise"``: a ``ConvergenceError``, at once and before the optimiser step;
    - ``"skip"``: a warning, and all processes skip the step of each optimiser whose parameters get the wrong gradient.
      Skipped steps are counted and logged as ``train/skipped_steps``; learning rate schedules continue. Outside
      training it only warns.

    Args:
        not_converged: Action if a forward solve ends above its tolerance, or its update is random.
        diverged: Action if a forward solve diverges or meets NaN, or a parameter's gradient is not finite (with a loss
            scale, the scaler handles that). To warn, gradients are checked every ``log_every_n_steps``, when logging
            waits for the device anyway; to raise or skip, at every step. The parameters are checked after every epoch.
        adjoint: Action if an adjoint is not solved to the estimator's tolerance.
        spectral_radius: Action if ``EquilibriumMonitor`` finds a spectral radius at or above 1.
        coupled_samples: Action if the samples of a batch depend on each other although ``batch_dims`` says otherwise.
            The gradient is right anyway: the adjoint equation is then solved for the whole batch at once.
        max_skips: Number of skipped steps in a row that is an error, at least 1.
        truncation_tol: For estimators without a tolerance (``NeumannRBP``, ``TBPTT``): the estimated relative
            truncation error above which the adjoint counts as not solved, from 0 to 1; 1 accepts any.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> with FailurePolicy(diverged="raise"):
        ...     NeumannRBP(solver=Picard(max_steps=20))(lambda h: 2 * h + 1, torch.zeros(()))
        Traceback (most recent call last):
        rbp_lightning.errors.ConvergenceError: NeumannRBP: The forward solve applied F ...
    """

    def __init__(
        self,
        not_converged: Action = "warn",
        diverged: Action = "warn",
        adjoint: Action = "warn",
        spectral_radius: Action = "warn",
        coupled_samples: Action = "warn",
        max_skips: int = 10,
        truncation_tol: float = 0.1,
    ) -> None:
        self.not_converged = check_choice(self, "not_converged", not_converged, ACTIONS)
        self.diverged = check_choice(self, "diverged", diverged, ACTIONS)
        self.adjoint = check_choice(self, "adjoint", adjoint, ACTIONS)
        self.spectral_radius = check_choice(self, "spectral_radius", spectral_radius, ACTIONS)
        self.coupled_samples = check_choice(self, "coupled_samples", coupled_samples, ACTIONS)
        self.max_skips = check_count(self, "max_skips", max_skips, 1)
        self.truncation_tol = check_number(self, "truncation_tol", truncation_tol, 0.0, 1.0)
        self.skips = SkippedSteps()
        self.found: list[Failure] = []  # under a Trainer, since its last setup
        self._warned: set[tuple[Failure, Place] | Failure] = set()
        self._in_trainer = self._in_batch = self._set_up = False

    def action(self, failure: Failure) -> Action:
        """Returns the action for a kind of failure."""
        action: Action = getattr(self, failure.policy)
        return action

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        """Acts on a failure.

        Args:
            failure: The kind of failure.
            text: What happened and what to do, in one line.
            place: The line of the user's code.
            parameters: The parameters whose gradient is wrong; ``None`` for all.

        Raises:
            ConvergenceError: If the action is ``"raise"``.
        """
        action = self.action(failure)
        if action == "ignore":
            return
        if action == "raise":
            raise ConvergenceError(text)
        if action == "skip" and self._in_batch:
            self.skips.mark_invalid(failure, parameters)
        self.warn(failure, text, place)

    def warn(self, failure: Failure, text: str, place: Place) -> None:
        """Warns of a failure: under a Trainer once per kind and epoch, elsewhere once per line of code."""
        key = failure if self._in_trainer else (failure, place)
        if key not in self._warned:
            self._warned.add(key)
            warn_at(place, text)
        if self._in_trainer and failure not in self.found:
            self.found.append(failure)

    def __enter__(self) -> "FailurePolicy":
        """Activates the policy."""
        push_handler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        """Restores the previous policy."""
        pop_handler(self)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which is not active."""
        return {**vars(self), "_set_up": False}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Activates the policy."""
        self._warned.clear()
        self.found.clear()
        self._in_trainer = True
        self._set_up = True
        self.__enter__()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the previous policy."""
        self._in_trainer = self._in_batch = False
        self.skips.forget()
        if self._set_up:  # a Trainer can fail before setup
            self._set_up = False
            self.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the previous policy; after an exception the Trainer does not call ``teardown``."""
        self.teardown(trainer, pl_module, "")

    def _warn_again(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allows each kind of failure one more warning."""
        self._warned.clear()

    on_train_epoch_start = on_validation_start = on_test_start = on_predict_start = _warn_again

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the optimisers whose steps may be skipped."""
        self.skips.watch(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on failures can skip a step."""
        self._in_batch = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """From here on, such as in a validation, failures skip no step."""
        self._in_batch = False
        self.skips.end_batch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the parameters, since the loss of a state that is frozen at its last finite iterate may look healthy.

        Raises:
            ConvergenceError: If a parameter is not finite and the action is ``"raise"``.
        """
        if self.action(Failure.PARAMETERS) == "ignore":
            return
        with agreeing(pl_module):  # a process may have only its part of each parameter
            if everywhere(_all_finite(list(pl_module.parameters()))):
                return
            which = _names(pl_module, lambda parameter: not _all_finite([parameter]))
            report(Failure.PARAMETERS, f"{type(pl_module).__name__}: not finite any more after this epoch: {which}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks the gradients if due, and skips the step if the policy says so.

        Raises:
            ConvergenceError: If a gradient is not finite and the action is ``"raise"``, or too many steps in a row were
                skipped.
        """
        parameters = parameters_of(optimizer)
        # Overflow only lowers the loss scale; it is not a failure.
        if trainer.precision != "16-mixed" and self._checks_gradients(trainer):
            with agreeing(pl_module):  # a process may have only its part of each gradient
                self._check_gradients(pl_module, parameters)
        if not any(self.action(failure) == "skip" for failure in Failure):
            return
        invalid = self.skips.has_invalid(parameters)
        if trainer.strategy.reduce_boolean_decision(invalid, all=False):
            self.skips.skip_step(pl_module, optimizer, parameters)
        else:
            self.skips.mark_stepped()
        pl_module.log("train/skipped_steps", float(self.skips.total), batch_size=1)
        if self.skips.in_a_row >= self.max_skips:
            raise ConvergenceError(
                f"The optimiser's steps were skipped {self.skips.in_a_row} times in a row "
                f"(max_skips={self.max_skips}), last because {self.skips.reason}: decrease the learning rate, or "
                "see the warnings above."
            )

    @staticmethod
    def _check_gradients(pl_module: LightningModule, parameters: list[Tensor]) -> None:
        if everywhere(_all_finite(_gradients(parameters))):
            return
        which = _names(pl_module, lambda parameter: not _all_finite(_gradients([parameter])))
        report(Failure.GRADIENT, f"{type(pl_module).__name__}: the gradient of {which} is wrong", parameters)

    def _checks_gradients(self, trainer: Trainer) -> bool:
        action = self.action(Failure.GRADIENT)
        if action == "warn":
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            return every > 0 and trainer.global_step % every == 0  # 0 logs nothing
        return action != "ignore"

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts of skipped steps, for the checkpoint."""
        return {"skipped": self.skips.total, "in_a_row": self.skips.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counts of skipped steps."""
        self.skips.total, self.skips.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _names(module: LightningModule, wrong: Callable[[Tensor], bool]) -> str:
    names = [name for name, parameter in module.named_parameters() if wrong(parameter)]
    return ", ".join(names) or "a parameter, in the part of another process,"


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _all_finite(tensors: list[Tensor]) -> bool:
    local = map(local_part, tensors)
    finite = [(leaf.coalesce().values() if leaf.is_sparse else leaf).isfinite().all() for leaf in local]
    return not finite or bool(torch.stack([one.to(finite[0].device) for one in finite]).all())
