"""What the policy does under the real Trainer."""

import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import (
    BPTT,
    CGRBP,
    ConvergenceError,
    ConvergenceWarning,
    EquilibriumMonitor,
    Failure,
    FailurePolicy,
    NeumannRBP,
    Picard,
    UserError,
)

GOOD, GROWING = 0.5, 3.0


class Rates(LightningModule):
    """A fixed point whose convergence each batch decides: the rates are the data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        start = torch.zeros(len(rates), 3)
        state = self.estimator(lambda h: rates[:, None] * torch.sin(h) + self.weight, start, batch_dims=1).state
        return state.square().mean()

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Growing(Rates):
    """The same with a linear update, which diverges where the rate is above 1."""

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        start = torch.zeros(len(rates), 3)
        state = self.estimator(lambda h: rates[:, None] * h + self.weight, start, batch_dims=1).state
        return state.square().mean()

    validation_step = training_step


def fit(rates: list[float], *callbacks: Any, model: Rates | None = None, batch_size: int = 1, **arguments: Any) -> Any:
    seed_everything(0, verbose=False)
    model = model or Growing()
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, **arguments}
    trainer = Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options
    )
    trainer.fit(model, DataLoader(torch.tensor(rates), batch_size=batch_size), ckpt_path=arguments.get("resume"))
    return model, trainer


def estimator() -> NeumannRBP:
    return NeumannRBP(solver=Picard(100, tol=1e-5))


def test_a_warning_comes_once_per_kind_and_epoch_with_figure_and_remedy() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([GROWING, GOOD, GROWING, 0.95], estimator(), max_epochs=2)
    told = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
    for failure in (Failure.DIVERGED, Failure.NOT_CONVERGED, Failure.TRUNCATED):
        assert sum(failure.message in message for message in told) == 2
    assert len(told) == 6
    assert all(re.search(r"(residual|error) of (\d\.\d\de|inf|nan)", message) for message in told)


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize(
    ("field", "rate"), [("diverged", GROWING), ("diverged", float("nan")), ("not_converged", 0.95), ("adjoint", 0.95)]
)
def test_each_failure_can_raise(field: str, rate: float) -> None:
    model = Growing()
    with pytest.raises(ConvergenceError, match="NeumannRBP"):
        fit([GOOD, rate, GOOD], estimator(), FailurePolicy(**{field: "raise"}), model=model)
    assert model.trainer.global_step == 1  # the good batch before it


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize(
    ("field", "rate"),
    [("diverged", GROWING), ("diverged", float("nan")), ("not_converged", 0.95), ("adjoint", 0.95)],
)
def test_a_skipped_step_is_as_if_the_batch_had_not_been(field: str, rate: float, tmp_path: Path) -> None:
    policy = FailurePolicy(**{field: "skip"})
    logger = CSVLogger(tmp_path)
    model, _ = fit([GOOD, rate, 0.3, rate, rate, 0.4], estimator(), policy, logger=logger, log_every_n_steps=1)
    expected, _ = fit([GOOD, 0.3, 0.4], estimator())
    assert torch.equal(model.weight, expected.weight)
    assert policy.skipped == 3
    logged = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("train/skipped_steps")
    assert [float(line.split(",")[column]) for line in logged[1:]] == [0, 1, 1, 2, 3, 3]


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_a_bad_batch_spoils_an_accumulated_step_and_no_other() -> None:
    policy = FailurePolicy(diverged="skip")
    rates = [GOOD, 0.3, GOOD, GROWING, 0.2, 0.4]
    model, _ = fit(rates, estimator(), policy, accumulate_grad_batches=2)
    expected, _ = fit([GOOD, 0.3, 0.2, 0.4], estimator(), accumulate_grad_batches=2)
    assert torch.equal(model.weight, expected.weight)
    assert policy.skipped == 1


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_too_many_skips_in_a_row_are_an_error() -> None:
    rates = [GROWING, GROWING, GOOD, GROWING, GROWING, GROWING, GOOD]
    model = Growing()
    with pytest.raises(ConvergenceError, match=r"skipped 3 times in a row \(max_skips=3\).*diverged"):
        fit(rates, estimator(), FailurePolicy(diverged="skip", max_skips=3), model=model)
    assert model.trainer.fit_loop.epoch_loop.batch_idx == 5


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_skips_are_counted_on_after_a_resume(tmp_path: Path) -> None:
    first = FailurePolicy(diverged="skip", max_skips=3)
    _, trainer = fit([GROWING, GOOD, GROWING, GROWING], estimator(), first)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = FailurePolicy(diverged="skip", max_skips=3)
    seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    again = Trainer(accelerator="cpu", max_epochs=2, callbacks=[estimator(), second], **quiet)
    with pytest.raises(ConvergenceError, match="3 times in a row"):
        again.fit(Growing(), DataLoader(torch.tensor([GROWING])), ckpt_path=tmp_path / "last.ckpt")
    assert second.skipped == 4


class NotFinite(Rates):
    """Saturates at an infinite input: the state is finite, the gradient of what the input is multiplied by is not."""

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        drive = rates[:, None] * self.weight
        state = self.estimator(lambda h: torch.tanh(0.5 * h + drive), torch.zeros(len(rates), 3), batch_dims=1).state
        return state.square().mean()


@pytest.mark.parametrize("action", ["warn", "raise", "skip"])
@pytest.mark.parametrize("kind", [BPTT, NeumannRBP, CGRBP])
def test_a_gradient_that_is_not_finite_is_told(kind: type, action: str) -> None:
    def run() -> NotFinite:
        policy = FailurePolicy(diverged=action)
        solver = Picard(100, tol=1e-5)
        return fit([0.1, float("inf"), 0.2], kind(solver=solver), policy, model=NotFinite())[0]

    if action == "raise":
        with pytest.raises(ConvergenceError, match=r"the gradient of weight is wrong.*not finite"):
            run()
        return
    with pytest.warns(ConvergenceWarning, match="gradient is not finite"):
        model = run()
    assert bool(model.weight.isfinite().all()) == (action == "skip")


def test_a_spectral_radius_at_or_above_1_is_the_policy_s() -> None:
    class Turning(Rates):
        def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
            turn = rates[0] * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
            return self.estimator(lambda h: h @ turn + self.weight[:2], torch.zeros(2)).state.square().mean()

    for rate in (0.8, 1.0, 1.2):
        policy = FailurePolicy(spectral_radius="raise")
        callbacks = (NeumannRBP(100, Picard(100, tol=0)), policy, EquilibriumMonitor(1, 0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if rate < 1:
                fit([rate], *callbacks, model=Turning())
                continue
            with pytest.raises(
                ConvergenceError, match=r"spectral radius of the Jacobian at the fixed point is 1(\.2)? "
            ):
                fit([rate], *callbacks, model=Turning())


def test_a_policy_acts_in_evaluation_too() -> None:
    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[estimator(), FailurePolicy(diverged="raise")], **options)
    with pytest.raises(ConvergenceError, match="diverged"):
        trainer.validate(Growing(), DataLoader(torch.tensor([GROWING])), verbose=False)
    # There is no step to skip there.
    trainer = Trainer(callbacks=[estimator(), FailurePolicy(diverged="skip", max_skips=1)], **options)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        trainer.validate(Growing(), DataLoader(torch.tensor([GROWING, GROWING])), verbose=False)


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_failures_outside_of_a_training_batch_drop_no_step() -> None:
    class Validated(Growing):
        def val_dataloader(self) -> DataLoader:
            return DataLoader(torch.tensor([GROWING]))

    used = estimator()
    used(lambda h: 3 * h + 1, torch.zeros(2))  # before the training
    policy = FailurePolicy(diverged="skip", max_skips=1)
    # A sanity check before the training and a validation after each of its batches, all of which diverge.
    model, _ = fit([GOOD, 0.3, 0.2], used, policy, model=Validated(), val_check_interval=1)
    expected, _ = fit([GOOD, 0.3, 0.2], estimator())
    assert policy.skipped == 0
    assert torch.equal(model.weight, expected.weight)


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_steps_of_several_optimizers_count_as_one() -> None:
    class Two(Growing):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = torch.nn.Parameter(torch.ones(3))

        def training_step(self, rates: Tensor, batch_idx: int) -> None:
            one, other = self.optimizers()
            one.zero_grad()
            self.manual_backward(self.other.sum())
            one.step()
            other.zero_grad()
            self.manual_backward(super().training_step(rates, batch_idx))
            other.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD([parameter], lr=0.1) for parameter in (self.other, self.weight)]

    policy = FailurePolicy(diverged="skip", max_skips=3)
    model = Two()
    with pytest.raises(ConvergenceError, match="3 times in a row"):
        fit([GROWING] * 6, estimator(), policy, model=model)
    assert policy.skipped == 3
    assert torch.equal(model.weight, torch.ones(3))
    assert float(model.other[0].detach()) == pytest.approx(1 - 0.1 * 3)  # its own steps were fine


def test_sparse_gradients_are_looked_at() -> None:
    class Embedded(Rates):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(4, 3, sparse=True)

        def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
            drive = rates[:, None] * self.table(torch.tensor([1]))
            return self.estimator(lambda h: torch.tanh(0.5 * h + drive), torch.zeros(1, 3), batch_dims=1).state.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SparseAdam(self.table.parameters())

    fit([0.1, 0.2], estimator(), model=Embedded())
    with pytest.raises(ConvergenceError, match=r"the gradient of table\.weight is wrong"):
        fit([0.1, float("inf")], estimator(), FailurePolicy(diverged="raise"), model=Embedded())


def test_a_policy_needs_an_estimator_and_serves_its_own_trainer() -> None:
    with pytest.raises(UserError, match="no gradient estimator"):
        fit([GOOD], FailurePolicy())
    used = estimator()
    strict = FailurePolicy(diverged="raise")
    fit([GOOD], used, strict)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        fit([GROWING], used)
    fit([GOOD], used, strict)
    with pytest.raises(ConvergenceError):
        fit([GROWING], used, strict)
    # An exception tears nothing down: the estimator goes on by itself all the same.
    for _ in range(2):
        with pytest.warns(ConvergenceWarning, match="diverged"):
            used(lambda h: 3 * h + 1, torch.zeros(2))


def test_a_random_update_is_told_of_as_that_alone() -> None:
    class Dropping(Rates):
        def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
            update = lambda h: torch.nn.functional.dropout(0.5 * h + self.weight, 0.5)  # noqa: E731
            return self.estimator(update, torch.zeros(20, 3)).state.sum()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([GOOD] * 4, estimator(), model=Dropping())
    told = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
    assert [Failure.RANDOM.message in message for message in told if "forward solve" in message] == [True]


@pytest.mark.parametrize(
    "arguments",
    [{"diverged": "ignore"}, {"adjoint": None}, {"max_skips": 0}, {"truncation_tol": -1.0}, {"truncation_tol": 1.1}],
)
def test_arguments_are_checked_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"FailurePolicy: \w+="):
        FailurePolicy(**arguments)


def test_what_is_tolerated_of_a_truncated_series() -> None:
    weight = torch.tensor(0.8, requires_grad=True)
    for tolerated in (True, False):
        neumann = NeumannRBP(steps=5)
        neumann.policy = FailurePolicy(truncation_tol=0.8**6 + (1e-3 if tolerated else -1e-3), adjoint="raise")
        state = neumann(lambda h: weight * h + 1, torch.zeros(())).state
        if tolerated:
            state.backward()
        else:
            with pytest.raises(ConvergenceError, match="cut off early"):
                state.backward()


SCRIPT = """
    import sys, torch
    from lightning.pytorch import Trainer, seed_everything
    from torch.utils.data import DataLoader
    from rbp_lightning import FailurePolicy
    from tests.test_policy import GOOD, GROWING, Growing, estimator

    if __name__ == "__main__":
        action, path = sys.argv[1:]
        seed_everything(0)
        model = Growing()
        # Every other sample is the second process's, whose second and third are bad.
        rates = torch.tensor([GOOD, 0.3, 0.2, GROWING, 0.1, GROWING, 0.4, 0.35])
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, callbacks=[estimator(), FailurePolicy(diverged=action)],
            use_distributed_sampler=False,  # which would shuffle
        )

        class Rates(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(rates[trainer.global_rank :: 2])

        trainer.fit(model, DataLoader(Rates(), batch_size=1))
        torch.save(model.weight.detach(), f"{path}/{trainer.global_rank}.pt")
        torch.distributed.destroy_process_group()
"""


def run_two_processes(action: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, str(script), action, str(folder)],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_skip_the_same_steps(tmp_path: Path) -> None:
    finished = run_two_processes("skip", tmp_path)
    assert finished.returncode == 0, finished.stderr[-2000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(one, other)
    # One process on the batches of both that went well.
    expected, _ = fit([GOOD, 0.3, 0.4, 0.35], estimator(), batch_size=2)
    torch.testing.assert_close(one, expected.weight.detach())


def test_an_error_in_one_process_ends_both(tmp_path: Path) -> None:
    finished = run_two_processes("raise", tmp_path)
    assert finished.returncode != 0
    assert "ConvergenceError" in finished.stderr
    assert not list(tmp_path.glob("*.pt"))
