"""Nonfinite gradients are reported, with no more synchronisations with the device than the policy needs."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    ConvergenceError,
    EquilibriumMonitor,
    FailurePolicy,
    NeumannRBP,
    Picard,
)
from tests.training import GOOD, Rates, convergence_warnings, fit_rates, neumann


class NotFinite(Rates):
    """tanh saturates at an infinite input, so the state is finite, but the gradient of the input's weight is not."""

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        drive = rates[:, None] * self.weight
        state = self.estimator(lambda h: torch.tanh(0.5 * h + drive), torch.zeros(len(rates), 3), batch_dims=1).state
        return state.square().mean()


@pytest.mark.parametrize("action", ["ignore", "warn", "raise", "skip"])
@pytest.mark.parametrize("kind", [BPTT, NeumannRBP, CGRBP])
def test_a_nonfinite_gradient_is_handled_by_the_policy(kind: type, action: Any) -> None:
    def run() -> NotFinite:
        estimator, policy = kind(solver=Picard(100, tol=1e-5)), FailurePolicy(diverged=action)
        return fit_rates([0.1, float("inf"), 0.2], estimator, policy, module=NotFinite(), log_every_n_steps=1)

    if action == "raise":
        with pytest.raises(ConvergenceError, match=r"gradient of weight.*not finite"):
            run()
    elif action == "ignore":
        assert not convergence_warnings(run)
    else:
        trained: list[NotFinite] = []
        messages = [str(one.message) for one in convergence_warnings(lambda: trained.append(run()))]
        assert sum("gradient is not finite" in text for text in messages) == 1
        assert bool(trained[0].weight.isfinite().all()) == (action == "skip")


@pytest.mark.parametrize("action", ["ignore", "warn", "skip"])
def test_parameters_that_are_not_finite_are_reported_although_the_loss_is(action: Any) -> None:
    def run() -> None:
        # To warn, only the gradient of the first batch is checked.
        rates, policy = [0.1, float("inf"), 0.2], FailurePolicy(diverged=action)
        fit_rates(rates, neumann(), policy, module=NotFinite(), log_every_n_steps=9)

    messages = [str(one.message) for one in convergence_warnings(run)]
    assert sum("parameters are not finite" in text and ": weight" in text for text in messages) == (action == "warn")


def test_a_parameter_without_a_gradient_that_is_not_finite_ends_the_run_if_the_policy_raises() -> None:
    module = Rates()
    module.unused = torch.nn.Parameter(torch.tensor(float("nan")))
    with pytest.raises(ConvergenceError, match="unused; parameters are not finite"):
        fit_rates([0.1], neumann(), FailurePolicy(diverged="raise"), module=module)


def test_sparse_gradients_are_checked() -> None:
    class Embedded(Rates):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(4, 3, sparse=True)

        def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
            drive = rates[:, None] * self.table(torch.tensor([1]))
            return self.estimator(lambda h: torch.tanh(0.5 * h + drive), torch.zeros(1, 3), batch_dims=1).state.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SparseAdam(self.table.parameters())

    fit_rates([0.1, 0.2], neumann(), FailurePolicy(diverged="raise"), module=Embedded())
    with pytest.raises(ConvergenceError, match=r"gradient of table\.weight"):
        fit_rates([0.1, float("inf")], neumann(), FailurePolicy(diverged="raise"), module=Embedded())


class Profile(Callback):
    """Starts a profiler before an optimiser's step, to measure the callbacks up to ``EndOfProfile``."""

    def __init__(self) -> None:
        self.syncs: list[int] = []
        self.profiler: Any = None

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.profiler = torch.autograd.profiler.profile(use_kineto=False)
        self.profiler.__enter__()


class EndOfProfile(Callback):
    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.profile.profiler.__exit__(None, None, None)
        events = self.profile.profiler.function_events
        self.profile.syncs.append(sum(event.name == "aten::_local_scalar_dense" for event in events))


@pytest.mark.parametrize(
    ("arguments", "syncs"),
    [
        ({}, [1, 0, 0, 1, 0, 0]),  # in steps that log, which synchronise anyway
        ({"not_converged": "raise", "adjoint": "raise"}, [1, 0, 0, 1, 0, 0]),
        ({"diverged": "ignore"}, [0] * 6),
        ({"diverged": "raise"}, [1] * 6),
        ({"diverged": "skip"}, [1] * 6),
        (None, [0] * 6),
    ],
)
def test_an_optimizer_step_synchronises_only_if_the_policy_needs_it(arguments: Any, syncs: Any) -> None:
    profile = Profile()
    policy = [] if arguments is None else [FailurePolicy(**arguments)]
    callbacks = (profile, neumann(), *policy, EquilibriumMonitor(2, 0), EndOfProfile(profile))
    fit_rates([GOOD, 0.1, 0.2, 0.3, 0.4, 0.35], *callbacks, log_every_n_steps=3)
    assert profile.syncs == syncs
