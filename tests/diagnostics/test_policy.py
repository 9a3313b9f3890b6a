"""What the policy does about each kind of failure, in a Trainer and outside of one."""

import re
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import (
    CGRBP,
    ConvergenceError,
    ConvergenceWarning,
    EquilibriumMonitor,
    Failure,
    FailurePolicy,
    FixedPointLayer,
    NeumannRBP,
    Picard,
    UserError,
)
from tests.training import (
    GOOD,
    GROWING,
    SLOW,
    Rates,
    convergence_warnings,
    fit,
    fit_rates,
    make_trainer,
    neumann,
    vectors,
)

ignored = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
FAILING = pytest.mark.parametrize(
    ("field", "rate"), [("diverged", GROWING), ("diverged", float("nan")), ("not_converged", SLOW), ("adjoint", SLOW)]
)


class Evaluated(Rates):
    validation_step = Rates.training_step


def test_warnings_come_once_per_kind_and_epoch_with_value_and_remedy() -> None:
    found = convergence_warnings(
        lambda: fit_rates([GROWING, GOOD, GROWING, SLOW], neumann(), FailurePolicy(), max_epochs=2)
    )
    messages = [str(one.message) for one in found]
    for failure in (Failure.DIVERGED, Failure.NOT_CONVERGED, Failure.TRUNCATED):
        assert sum(failure.message in message for message in messages) == 2
    assert len(messages) == 6
    assert all(re.search(r"(residual|error) of (\d\.\d\de|inf|nan)", message) for message in messages)


@ignored
@FAILING
def test_each_failure_can_raise(field: str, rate: float) -> None:
    module = Rates()
    with pytest.raises(ConvergenceError, match="NeumannRBP"):
        fit_rates([GOOD, rate, GOOD], neumann(), FailurePolicy(**{field: "raise"}), module=module)
    assert module.trainer.global_step == 1  # the good batch before the failure


@FAILING
def test_ignored_failures_are_trained_on_without_a_warning(field: str, rate: float) -> None:
    ignoring = FailurePolicy("ignore", "ignore", "ignore", "ignore", "ignore")
    trained = []
    assert not convergence_warnings(lambda: trained.append(fit_rates([GOOD, rate, GOOD], neumann(), ignoring)))
    assert convergence_warnings(lambda: trained.append(fit_rates([GOOD, rate, GOOD], neumann(), FailurePolicy())))
    assert torch.equal(trained[0].weight.nan_to_num(7), trained[1].weight.nan_to_num(7))
    # Other failures are still reported.
    assert convergence_warnings(lambda: fit_rates([GROWING], neumann(), FailurePolicy(not_converged="ignore")))


def test_a_policy_is_a_context_manager_outside_of_a_trainer() -> None:
    def solve() -> None:
        neumann()(lambda h: GROWING * h + 1, torch.zeros(2))

    with FailurePolicy(diverged="raise"):
        with FailurePolicy(diverged="ignore"):
            assert not convergence_warnings(solve)
        with pytest.raises(ConvergenceError, match="diverged"):
            solve()
    assert len(convergence_warnings(solve)) == 1
    with FailurePolicy(diverged="skip"):  # without a Trainer there is no step to skip
        assert len(convergence_warnings(solve)) == 1


def test_the_policy_of_the_forward_solve_applies_to_its_backward_pass() -> None:
    weight = torch.tensor(0.95, requires_grad=True)
    with FailurePolicy(adjoint="raise"):
        state = NeumannRBP(5, Picard(1000))(lambda h: weight * h + 1, torch.zeros(())).state
    with FailurePolicy(adjoint="ignore"), pytest.raises(ConvergenceError, match="truncated early"):
        state.backward()


class TwoKinds(LightningModule):
    """Fixed points by two of the module's own estimators and by a layer, with a rate for each."""

    def __init__(self, rates: tuple[float, float, float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.first, self.second = CGRBP(), NeumannRBP(solver=Picard(20, 1e-5))
        self.layer = FixedPointLayer(Scaled(rates[2]), CGRBP(), batch_dims=0)
        self.rates = rates

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        one = self.first(lambda h: self.rates[0] * h + self.weight, torch.zeros(2)).state
        other = self.second(lambda h: self.rates[1] * h + one, torch.zeros(2)).state
        return self.layer(other).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Scaled(torch.nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, state: Tensor, inputs: Tensor) -> Tensor:
        return self.rate * state + inputs


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("own", [[], [neumann()]], ids=["module's", "Trainer's too"])
def test_a_policy_applies_to_every_estimator_and_layer_of_a_module(failing: int, own: list[Any]) -> None:
    rates = [0.2, 0.2, 0.2]
    fit(TwoKinds(tuple(rates)), vectors(), *own, FailurePolicy(diverged="raise"))
    rates[failing] = 2.0
    with pytest.raises(ConvergenceError, match="diverged"):
        fit(TwoKinds(tuple(rates)), vectors(), *own, FailurePolicy(diverged="raise"))


def test_a_spectral_radius_of_1_or_more_is_handled_by_the_policy() -> None:
    class Rotating(Rates):
        def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
            turn = rates[0] * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
            return self.estimator(lambda h: h @ turn + self.weight[:2], torch.zeros(2)).state.square().mean()

    for rate in (0.8, 1.0, 1.2):
        policy = FailurePolicy(spectral_radius="raise", not_converged="ignore", diverged="ignore", adjoint="ignore")
        callbacks = (NeumannRBP(100, Picard(100, tol=0)), policy, EquilibriumMonitor(1, 0))
        if rate < 1:
            fit_rates([rate], *callbacks, module=Rotating())
            continue
        with pytest.raises(ConvergenceError, match=r"spectral radius .* 1(\.2)? "):
            fit_rates([rate], *callbacks, module=Rotating())


def test_a_policy_acts_in_evaluation_too() -> None:
    bad = DataLoader(torch.tensor([GROWING, GROWING]))
    with pytest.raises(ConvergenceError, match="diverged"):
        make_trainer(neumann(), FailurePolicy(diverged="raise")).validate(Evaluated(), bad, verbose=False)
    # An evaluation has no step to skip.
    policy = FailurePolicy(diverged="skip", max_skips=1)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        make_trainer(neumann(), policy).validate(Evaluated(), bad, verbose=False)
    assert policy.skips.total == 0


def test_a_policy_applies_to_its_own_trainer_only() -> None:
    used, strict = neumann(), FailurePolicy(diverged="raise")
    fit_rates([GOOD], used, strict)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        fit_rates([GROWING], used)
    with pytest.raises(ConvergenceError):
        fit_rates([GROWING], used, strict)
    # The exception prevented Lightning's teardown, but later solves must not use the policy.
    for _ in range(2):
        with pytest.warns(ConvergenceWarning, match="diverged"):
            used(lambda h: 3 * h + 1, torch.zeros(2))


def test_a_random_update_is_reported_as_random_only() -> None:
    class Dropping(Rates):
        def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
            update = lambda h: torch.nn.functional.dropout(0.5 * h + self.weight, 0.5)  # noqa: E731
            return self.estimator(update, torch.zeros(20, 3)).state.sum()

    found = convergence_warnings(lambda: fit_rates([GOOD] * 4, neumann(), FailurePolicy(), module=Dropping()))
    messages = [str(one.message) for one in found]
    assert [Failure.RANDOM.message in message for message in messages if "forward solve" in message] == [True]


def test_truncation_tol_is_the_tolerated_truncation_error() -> None:
    weight = torch.tensor(0.8, requires_grad=True)
    for tolerated in (True, False):
        policy = FailurePolicy(truncation_tol=0.8**6 + (1e-3 if tolerated else -1e-3), adjoint="raise")
        with policy:
            state = NeumannRBP(steps=5)(lambda h: weight * h + 1, torch.zeros(())).state
        if tolerated:
            state.backward()
        else:
            with pytest.raises(ConvergenceError, match="truncated early"):
                state.backward()


@pytest.mark.parametrize(
    "arguments",
    [{"diverged": "skp"}, {"adjoint": None}, {"max_skips": 0}, {"truncation_tol": -1.0}, {"truncation_tol": 1.1}],
)
def test_arguments_are_checked_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"FailurePolicy: \w+="):
        FailurePolicy(**arguments)
