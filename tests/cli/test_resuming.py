"""An interrupted and resumed run equals an uninterrupted one bit by bit."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from rbp_lightning import CGRBP, RBP, GradientEstimator, NeumannRBP, Picard
from rbp_lightning.cli.trainer import RunTrainer
from tests.training import QUIET, Tanh

# The command line ignores these warnings as well.
pytestmark = [
    pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

SOLVER = Picard(20, tol=1e-3)
PRECISIONS = ["32-true", "16-true", "bf16-mixed"]


class Cut(Tanh):
    """A network that creates a layer in ``setup``, and sends its process a signal in one step."""

    def __init__(self, cut_at: int) -> None:
        super().__init__()
        self.cut_at = cut_at

    def setup(self, stage: str) -> None:
        self.late = torch.nn.Linear(4, 4)

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self.cut_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = super().training_step(self.late(inputs.to(self.late.weight.dtype)), batch_idx)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, inputs: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.late(inputs.to(self.late.weight.dtype)).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def fit(folder: str, precision: str, estimator: GradientEstimator, cut_at: int = -1, ckpt: str | None = None) -> Path:
    """Trains for three epochs of four batches; returns the run's folder."""
    seed_everything(0 if ckpt is None else 1, verbose=False)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    sampler: Any = DistributedSampler(inputs, num_replicas=1, rank=0)  # type: ignore[arg-type]
    train = DataLoader(inputs, batch_size=2, sampler=sampler)  # type: ignore[arg-type]
    logger = CSVLogger(folder, name="")
    last = ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    options = {**QUIET, "max_epochs": 3, "log_every_n_steps": 1, "enable_checkpointing": True, "logger": logger}
    trainer = RunTrainer(callbacks=[estimator, last], precision=precision, **options)
    trainer.fit(Cut(cut_at), train, DataLoader(inputs, batch_size=4), ckpt_path=ckpt)  # type: ignore[arg-type]
    return Path(logger.log_dir)


def assert_same(one: Any, other: Any, place: str) -> None:
    """Compares the contents of checkpoints, bit by bit."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_same(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{place}[{number}]")
    else:
        assert one == other, place


def metrics(run: Path) -> dict[tuple[int, str], str]:
    """The metrics that a run logged, by step and name, in full precision."""
    with open(run / "metrics.csv") as file:
        return {(int(row["step"]), name): row[name] for row in csv.DictReader(file) for name in row if row[name]}


FIRST, WITHIN, LAST = 4, 5, 7
"""The first, an inner and the last step of the second epoch."""

NEUMANN = NeumannRBP(5, SOLVER)
CASES: list[tuple[str, GradientEstimator, int]] = [(precision, NEUMANN, WITHIN) for precision in PRECISIONS]
CASES += [("64-true", RBP(9, solver=SOLVER), FIRST), ("64-true", CGRBP(3, solver=SOLVER), LAST)]


@pytest.mark.parametrize(("precision", "estimator", "cut_at"), CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path, precision: str, estimator: GradientEstimator, cut_at: int
) -> None:
    whole = fit(f"{tmp_path}/whole", precision, estimator)
    with pytest.raises(SystemExit) as ended:
        fit(f"{tmp_path}/cut", precision, estimator, cut_at)
    assert ended.value.code == 143
    last = f"{tmp_path}/cut/version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == cut_at + 1
    resumed = fit(f"{tmp_path}/cut", precision, estimator, ckpt=last)
    one, other = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, resumed))
    assert one["global_step"] == 12
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "estimator"):
        assert_same(other[part], one[part], part)
    expected, found = metrics(whole), metrics(resumed)
    assert len(found) > 8
    assert {key: value for key, value in expected.items() if key in found} == found
