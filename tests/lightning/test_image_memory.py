"""The associative memory in a Trainer: its batches, metrics, pictures and resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import ImagePatterns
from models import HopfieldMemory
from rbp_lightning import NeumannRBP, Picard
from tests.training import fit, make_trainer

# In the first two epochs the adjoint converges slowly.
pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


def memory() -> HopfieldMemory:
    seed_everything(0, verbose=False)
    return HopfieldMemory(num_hidden=16, weight_scale=0.1)


def patterns() -> ImagePatterns:
    return ImagePatterns(train_draws=4, eval_draws=1, batch_size=10)


class Recorder(Callback):
    """Records batches, outputs and learning rates."""

    def __init__(self) -> None:
        self.batches: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches["train", trainer.current_epoch] = batch
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.batches["val", 0], self.outputs["val"] = batch, outputs

    def on_test_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.batches["test", 0], self.outputs["test"] = batch, outputs


def test_each_stage_has_its_own_corruptions_and_metrics_against_the_clean_images() -> None:
    model, data, recorder = memory(), patterns(), Recorder()
    trainer = fit(model, data, NeumannRBP(5, Picard(60, tol=0)), recorder, max_epochs=2)
    results = {
        "val": trainer.validate(model, data, verbose=False)[0],
        "test": trainer.test(model, data, verbose=False)[0],
    }
    for (stage, epoch), batch in recorder.batches.items():
        plain = {"clean": batch["clean"], "draw": batch["draw"]}
        assert torch.equal(batch["corrupted"], data.corrupt(plain, stage, epoch)["corrupted"]), (stage, epoch)
    assert set(recorder.batches) == {("train", 0), ("train", 1), ("val", 0), ("test", 0)}
    for stage, result in results.items():
        batch, recalled = recorder.batches[stage, 0], recorder.outputs[stage]
        wrong = (recalled != batch["clean"]).flatten(1).float()
        assert result[f"{stage}/pixel_error"] == pytest.approx(float(wrong.mean()))
        assert result[f"{stage}/exact_recall"] == pytest.approx(float((wrong.sum(1) == 0).float().mean()))
        assert float(wrong.mean()) != pytest.approx(float((recalled != batch["corrupted"]).float().mean()))
        fixed_point = model(batch["corrupted"])
        assert abs(result[f"{stage}/steps"] - fixed_point.steps) <= 1  # a taped step is one more
        assert result[f"{stage}/residual"] == pytest.approx(float(fixed_point.residual.mean()), rel=1e-2)


def test_a_resumed_run_follows_its_new_schedule(tmp_path: Path) -> None:
    first, second, estimator = Recorder(), Recorder(), NeumannRBP(5, Picard(60, tol=0))
    fit(memory(), patterns(), estimator, first, max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    fit(memory(), patterns(), estimator, second, max_epochs=4, ckpt_path=tmp_path / "two.ckpt")
    for rates in (first.rates, second.rates):
        assert rates == sorted(rates, reverse=True)
    assert second.rates[0] > first.rates[-1]  # half-way through the longer schedule
    assert second.rates[-1] < 0.2 * second.rates[0]


def test_pictures_reach_every_tensorboard_logger(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    make_trainer(logger=loggers).validate(memory(), patterns(), verbose=False)
    assert EventAccumulator(loggers[1].log_dir).Reload().Tags()["images"] == ["val/recall"]
