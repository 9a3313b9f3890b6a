"""What happens when a fixed point or its gradient goes wrong."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rbp_lightning.agreement import agreeing, everywhere, own_part
from rbp_lightning.diagnostics.skipped_steps import SkippedSteps, parameters_of
from rbp_lightning.errors import ConvergenceError, check_choice, check_count, check_number
from rbp_lightning.failures import Failure
from rbp_lightning.reporting import Action, Place, pop_handler, push_handler, report, warn_at

ACTIONS = ("ignore", "warn", "raise", "skip")


class FailurePolicy(Callback):
    """Decides what happens when a fixed point or its gradient goes wrong.

    Given to a Trainer it serves every estimator and layer that is called while the Trainer runs; the command line
    always has one, ``--policy.diverged skip``. Outside a Trainer it is a context manager; threads that are started
    inside have to enter it themselves. Each kind of failure has an action:

    - ``"ignore"``: nothing;
    - ``"warn"``: a warning with the figure and the remedy, under a Trainer once per kind and epoch;
    - ``"raise"``: a ``ConvergenceError``, at once and before the optimiser's step;
    - ``"skip"``: a warning, and the step of each optimiser whose parameters the failed gradient reaches is dropped, by
      every process alike. Skipped steps are counted and logged as ``train/skipped_steps``; learning rate schedules go
      on. Where there is no training it only warns.

    Args:
        not_converged: Action where a forward solve ends above its tolerance, or its update is random.
        diverged: Action where a forward solve diverges or meets NaN, or where the gradient of a parameter is not
            finite (with a loss scale, that is the scaler's to handle). To warn of a gradient, it looks every
            ``log_every_n_steps``, where logging waits for the device anyway; to raise or to skip, at every step.
        adjoint: Action where an adjoint is not solved to the estimator's tolerance.
        spectral_radius: Action where ``EquilibriumMonitor`` finds a spectral radius at or above 1.
        coupled_samples: Action where the samples of a batch act on each other although ``batch_dims`` says that they do
            not. The gradient is right anyway: the adjoint equation is solved for the batch as one.
        max_skips: Most skipped steps in a row, at least 1: that many are an error.
        truncation_tol: For estimators without a tolerance (``NeumannRBP``, ``TBPTT``): the estimated share of the
            adjoint that their series leaves out above which it counts as not solved, 0 to 1; 1 tolerates all of it.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> with FailurePolicy(diverged="raise"):
        ...     NeumannRBP(solver=Picard(max_steps=20))(lambda h: 2 * h + 1, torch.zeros(()))
        Traceback (most recent call last):
        rbp_lightning.errors.ConvergenceError: NeumannRBP: The forward solve took ...
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
        self._warned: set[tuple[Failure, Place] | Failure] = set()
        self._in_trainer = self._in_batch = self._set_up = False

    def action(self, failure: Failure) -> Action:
        """What is done about a kind of failure."""
        action: Action = getattr(self, failure.policy)
        return action

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        """Acts on a failure.

        Args:
            failure: Its kind.
            text: What happened and what to do, in one line.
            place: The line of the user's code.
            parameters: The parameters whose gradient it makes wrong; ``None`` for all.

        Raises:
            ConvergenceError: If that is the policy.
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
        """Warns of a failure, under a Trainer once per kind and epoch, elsewhere once per line."""
        key = failure if self._in_trainer else (failure, place)
        if key not in self._warned:
            self._warned.add(key)
            warn_at(place, text)

    def __enter__(self) -> "FailurePolicy":
        """Comes into force."""
        push_handler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        """Hands back to what was in force before."""
        pop_handler(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a process that is spawned, takes along."""
        return {**vars(self), "_set_up": False}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Comes into force."""
        self._warned.clear()
        self._in_trainer = True
        self._set_up = True
        self.__enter__()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hands back to what was in force before."""
        self._in_trainer = self._in_batch = False
        self.skips.forget()
        if self._set_up:  # a Trainer can fail before that
            self._set_up = False
            self.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hands back as well; the Trainer tears nothing down then."""
        self.teardown(trainer, pl_module, "")

    def _warn_again(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets each kind of failure be warned of again."""
        self._warned.clear()

    on_train_epoch_start = on_validation_start = on_test_start = on_predict_start = _warn_again

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a training."""
        self.skips.watch(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins a batch, whose failures can cost a step."""
        self._in_batch = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a batch: what follows, such as a validation, costs no step."""
        self._in_batch = False
        self.skips.end_batch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at the gradients where the policy needs it, and drops the step where it says so.

        Raises:
            ConvergenceError: If a gradient is not finite and the policy is to raise, or too many steps in a row were
                dropped.
        """
        parameters = parameters_of(optimizer)
        # With a loss scale, overflow is what lowers it.
        if trainer.precision != "16-mixed" and self._looks_at_gradients(trainer):
            with agreeing(pl_module):  # a process has its share of each gradient
                self._look_at_gradients(pl_module, parameters)
        if not any(self.action(failure) == "skip" for failure in Failure):
            return
        invalid = self.skips.has_invalid(parameters)
        if trainer.strategy.reduce_boolean_decision(invalid, all=False):
            self.skips.drop_step(pl_module, optimizer, parameters)
        else:
            self.skips.stepped()
        pl_module.log("train/skipped_steps", float(self.skips.total), batch_size=1)
        if self.skips.in_a_row >= self.max_skips:
            raise ConvergenceError(
                f"The optimiser's steps were skipped {self.skips.in_a_row} times in a row "
                f"(max_skips={self.max_skips}), last because {self.skips.reason}: decrease the learning rate or "
                "look at the warnings before."
            )

    @staticmethod
    def _look_at_gradients(pl_module: LightningModule, parameters: list[Tensor]) -> None:
        if everywhere(_all_finite(parameters)):
            return
        names = [name for name, parameter in pl_module.named_parameters() if not _all_finite([parameter])]
        which = ", ".join(names) or "a parameter, in another process's share,"
        report(Failure.GRADIENT, f"{type(pl_module).__name__}: the gradient of {which} is wrong", parameters)

    def _looks_at_gradients(self, trainer: Trainer) -> bool:
        action = self.action(Failure.GRADIENT)
        if action == "warn":
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            return every > 0 and trainer.global_step % every == 0  # 0 logs nothing
        return action != "ignore"

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: how many steps were skipped."""
        return {"skipped": self.skips.total, "in_a_row": self.skips.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint left it."""
        self.skips.total, self.skips.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _all_finite(parameters: list[Tensor]) -> bool:
    gradients = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    finite = [(leaf.coalesce().values() if leaf.is_sparse else leaf).isfinite().all() for leaf in gradients]
    return not finite or bool(torch.stack([one.to(finite[0].device) for one in finite]).all())
