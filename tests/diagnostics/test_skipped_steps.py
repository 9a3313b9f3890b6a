"""Which optimiser steps are skipped, and that a skipped step has no effect."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import BPTT, RBP, ConvergenceError, FailurePolicy, GradientEstimator, Picard
from tests.training import GOOD, GROWING, SLOW, Rates, fit, fit_rates, neumann

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


def skipping(**arguments: Any) -> FailurePolicy:
    return FailurePolicy(**{"diverged": "skip", **arguments})


@pytest.mark.parametrize(
    ("field", "rate"), [("diverged", GROWING), ("diverged", float("nan")), ("not_converged", SLOW), ("adjoint", SLOW)]
)
def test_a_skipped_step_has_the_effect_of_a_missing_batch(field: str, rate: float, tmp_path: Path) -> None:
    policy, logger = FailurePolicy(**{field: "skip"}), CSVLogger(tmp_path)
    rates = [GOOD, rate, 0.3, rate, rate, 0.4]
    module = fit_rates(rates, neumann(), policy, logger=logger, log_every_n_steps=1)
    assert torch.equal(module.weight, fit_rates([GOOD, 0.3, 0.4], neumann()).weight)
    assert policy.skips.total == 3
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/skipped_steps"]) for row in rows] == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("estimator", [neumann(), BPTT(Picard(100, 1e-5)), RBP(60, solver=Picard(100, 1e-5))])
def test_gradients_of_other_steps_are_clipped(algorithm: str, estimator: GradientEstimator) -> None:
    class Check(Callback):
        def __init__(self) -> None:
            self.largest: list[float] = []

        def on_before_zero_grad(self, trainer: Any, module: Rates, optimizer: Any) -> None:
            if module.weight.grad is not None:
                size = module.weight.grad.norm() if algorithm == "norm" else module.weight.grad.abs().max()
                self.largest.append(float(size))

    limit = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    policy, check = skipping(), Check()
    module = fit_rates([GOOD, GROWING, 0.3, GROWING, 0.4, 0.2], estimator, policy, check, **limit)
    assert policy.skips.total == 2
    assert check.largest == pytest.approx([0.01] * len(check.largest), rel=1e-3)
    assert len(check.largest) >= 2
    assert "configure_gradient_clipping" not in vars(module)
    assert torch.equal(module.weight, fit_rates([GOOD, 0.3, 0.4, 0.2], estimator, **limit).weight)


def test_a_bad_batch_invalidates_an_accumulated_step_and_no_other() -> None:
    policy = skipping()
    rates = [GOOD, 0.3, GOOD, GROWING, 0.2, 0.4]
    module = fit_rates(rates, neumann(), policy, accumulate_grad_batches=2)
    assert torch.equal(module.weight, fit_rates([GOOD, 0.3, 0.2, 0.4], neumann(), accumulate_grad_batches=2).weight)
    assert policy.skips.total == 1
    # Also if the bad batch is the first of the step.
    policy = skipping()
    module = fit_rates([GOOD, 0.3, GROWING, GOOD, 0.2, 0.4], neumann(), policy, accumulate_grad_batches=2)
    assert torch.equal(module.weight, fit_rates([GOOD, 0.3, 0.2, 0.4], neumann(), accumulate_grad_batches=2).weight)
    assert policy.skips.total == 1


def test_too_many_skips_in_a_row_are_an_error() -> None:
    rates, module = [GROWING, GROWING, GOOD, GROWING, GROWING, GROWING, GOOD], Rates()
    with pytest.raises(ConvergenceError, match=r"max_skips=3.*diverged"):
        fit_rates(rates, neumann(), skipping(max_skips=3), module=module)
    assert module.trainer.fit_loop.epoch_loop.batch_idx == 5


def test_the_count_of_skips_continues_in_a_resumed_run(tmp_path: Path) -> None:
    module = fit_rates([GROWING, GOOD, GROWING, GROWING], neumann(), skipping(max_skips=3))
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    policy = skipping(max_skips=3)
    with pytest.raises(ConvergenceError, match="3 times in a row"):
        fit_rates([GROWING], neumann(), policy, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert policy.skips.total == 4


def test_failures_outside_of_a_training_batch_skip_no_step() -> None:
    class Validated(Rates):
        validation_step = Rates.training_step

        def val_dataloader(self) -> DataLoader:
            return DataLoader(torch.tensor([GROWING]))

    used, policy = neumann(), skipping(max_skips=1)
    used(lambda h: 3 * h + 1, torch.zeros(2))  # before the training
    # A sanity check before the training and a validation after each of its batches, which all diverge.
    module = fit_rates([GOOD, 0.3, 0.2], used, policy, module=Validated(), val_check_interval=1)
    assert policy.skips.total == 0
    assert torch.equal(module.weight, fit_rates([GOOD, 0.3, 0.2], neumann()).weight)


class TwoOptimizers(Rates):
    """Two fixed points with one rate each, and with separate parameters and optimisers."""

    def __init__(self, shared: bool = False, every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = torch.nn.Parameter(torch.ones(3))
        self.shared, self.every = shared, every

    def training_step(self, rates: Tensor, batch_idx: int) -> None:
        one, other = self.optimizers()
        if self.shared:  # one fixed point that depends on both parameters
            state = self.solve(rates.max()[None], self.weight + self.other).state
            self.manual_backward(state.square().mean())
        else:
            for rate, parameter in zip(rates.T, (self.weight, self.other), strict=True):
                self.manual_backward(self.solve(rate, parameter).state.square().mean())
        one.step()
        one.zero_grad()
        if (batch_idx + 1) % self.every == 0:
            other.step()
            other.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([parameter], lr=0.01) for parameter in (self.weight, self.other)]


def fit_two(rates: list[list[float]], policy: FailurePolicy | None = None, **arguments: Any) -> TwoOptimizers:
    module = TwoOptimizers(**arguments)
    fit(module, DataLoader(torch.tensor(rates)), neumann(), *([] if policy is None else [policy]))
    return module


def test_a_failing_solve_skips_the_step_of_its_own_optimizer_only() -> None:
    policy = skipping()
    module = fit_two([[GOOD, 0.3], [GROWING, 0.2], [0.1, GROWING], [0.3, 0.4]], policy)
    assert torch.equal(module.weight, fit_two([[GOOD, 0.0], [0.1, 0.0], [0.3, 0.0]]).weight)
    assert torch.equal(module.other, fit_two([[0.0, 0.3], [0.0, 0.2], [0.0, 0.4]]).other)
    assert policy.skips.total == 2


def test_a_failing_shared_solve_skips_both_steps_and_counts_once() -> None:
    policy = skipping()
    module = fit_two([[GOOD, 0.3], [GROWING, 0.2], [0.3, 0.4]], policy, shared=True)
    expected = fit_two([[GOOD, 0.3], [0.3, 0.4]], shared=True)
    assert torch.equal(module.weight, expected.weight)
    assert torch.equal(module.other, expected.other)
    assert policy.skips.total == 1


@pytest.mark.parametrize("shared", [True, False])
def test_an_accumulated_gradient_stays_invalid_after_another_optimizer_s_skip(shared: bool) -> None:
    # The second optimiser steps on every other batch, so its gradient includes that of the failing first batch.
    bad, good = [[GROWING, GROWING], [0.2, 0.3]], [[0.1, 0.2], [0.3, 0.4]]
    policy = skipping()
    module = fit_two([*bad, *good], policy, shared=shared, every=2)
    assert policy.skips.total == 2
    if shared:  # the fixed point depends on both parameters, so there is no training to compare with
        assert not torch.equal(module.other, torch.ones(3))
    else:
        assert torch.equal(module.other, fit_two(good, every=2).other)
        assert torch.equal(module.weight, fit_two([[0.2, 0.0], [0.1, 0.0], [0.3, 0.0]]).weight)


def test_steps_of_several_optimizers_count_as_one() -> None:
    policy = skipping(max_skips=3)
    with pytest.raises(ConvergenceError, match="3 times in a row"):
        fit_two([[0.5, GROWING]] * 6, policy)
    assert policy.skips.total == 3
