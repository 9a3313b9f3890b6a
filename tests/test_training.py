"""Estimators under the real Trainer."""

import copy
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import l1_loss

from datamodules import ImagePatterns
from models import HopfieldMemory
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, ConvergenceWarning, GradientEstimator, NeumannRBP, Picard, UserError

ROOT = Path(__file__).parents[1]
SOLVER = Picard(60, tol=0)
ESTIMATORS = [
    BPTT(SOLVER),
    TBPTT(20, SOLVER),
    RBP(60, 1e-4, solver=SOLVER),
    NeumannRBP(20, SOLVER),
    CGRBP(20, 1e-4, solver=SOLVER),
]
BY_NAME = [pytest.param(estimator, id=type(estimator).__name__) for estimator in ESTIMATORS]

# Two epochs take the memory through weights for which the adjoint converges slowly.
pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


def memory() -> HopfieldMemory:
    seed_everything(0, verbose=False)
    return HopfieldMemory(num_hidden=16, weight_scale=0.1)


def patterns(batch_size: int = 20) -> ImagePatterns:
    return ImagePatterns(train_draws=4, eval_draws=1, batch_size=batch_size)


def fit(model: LightningModule, data: ImagePatterns, *callbacks: Callback, **arguments: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **arguments,
    )
    trainer.fit(model, data)
    return trainer


def weights(model: HopfieldMemory) -> torch.Tensor:
    return model.cell.parametrizations.weight.original.detach()


@pytest.mark.parametrize("estimator", BY_NAME)
def test_accumulation_equals_the_whole_batch(estimator: GradientEstimator) -> None:
    whole, halves = memory(), memory()
    fit(whole, patterns(20), copy.deepcopy(estimator), precision="64-true")
    fit(halves, patterns(10), copy.deepcopy(estimator), precision="64-true", accumulate_grad_batches=2)
    # RBP's random start differs from batch to batch, so its gradients agree to its tolerance.
    tolerance = 1e-2 if isinstance(estimator, RBP) else 1e-8
    torch.testing.assert_close(weights(halves), weights(whole), rtol=tolerance, atol=tolerance * 1e-2)


class GradientNorms(Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: HopfieldMemory, optimizer: Any) -> None:
        self.norms.append(float(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()))


@pytest.mark.parametrize("estimator", BY_NAME)
def test_clipping_bounds_the_gradient(estimator: GradientEstimator) -> None:
    free = GradientNorms()
    fit(memory(), patterns(), copy.deepcopy(estimator), free)
    limit = min(free.norms) / 2

    class Check(Callback):
        def __init__(self) -> None:
            self.clipped: list[float] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: HopfieldMemory, *_: Any) -> None:
            self.clipped.append(float(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()))

    check = Check()
    fit(memory(), patterns(), copy.deepcopy(estimator), check, gradient_clip_val=limit)
    assert len(check.clipped) == 4
    assert check.clipped == pytest.approx([limit] * 4, rel=1e-4)


def loss_gradient(model: torch.nn.Module, memory: HopfieldMemory) -> torch.Tensor:
    torch.manual_seed(1)
    images, clean = torch.rand(6, 64), torch.rand(6, 64)
    memory.zero_grad()
    l1_loss(memory.outputs(model(images)), clean).backward()
    return memory.cell.parametrizations.weight.original.grad.clone()


@pytest.mark.parametrize("estimator", BY_NAME)
def test_bf16_mixed_gradients_are_close_to_those_in_float32(estimator: GradientEstimator) -> None:
    model = memory()
    model.estimator = estimator
    exact = loss_gradient(model, model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_gradient(model, model)
    assert rounded.dtype is torch.float32
    assert float(torch.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0)) > 0.99
    assert float(rounded.norm() / exact.norm()) == pytest.approx(1, abs=0.05)
    assert bool(weights(model).isfinite().all())


@pytest.mark.parametrize("estimator", BY_NAME)
def test_bf16_mixed_trains(estimator: GradientEstimator) -> None:
    model = memory()
    before = weights(model).clone()
    fit(model, patterns(), copy.deepcopy(estimator), precision="bf16-mixed")
    assert bool(weights(model).isfinite().all())
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("estimator", BY_NAME)
def test_compiled_module_has_the_same_gradient(estimator: GradientEstimator) -> None:
    model = memory()
    model.estimator = estimator
    start = estimator.state_dict()
    exact = loss_gradient(model, model)
    if start:
        estimator.load_state_dict(start)
    compiled = loss_gradient(torch.compile(model, backend="aot_eager"), model)
    torch.testing.assert_close(compiled, exact)


def test_a_compiled_module_trains_to_the_same_weights() -> None:
    plain, compiled = memory(), memory()
    fit(plain, patterns(), NeumannRBP(20, SOLVER))
    # torch.compile(module) inside a Trainer fails on self.log, whatever the module: this compiles its forward alone.
    compiled.compile(backend="aot_eager")
    fit(compiled, patterns(), NeumannRBP(20, SOLVER))
    torch.testing.assert_close(weights(compiled), weights(plain))


def test_the_module_keeps_its_estimator_after_the_run_and_takes_the_next() -> None:
    model, first, second = memory(), BPTT(SOLVER), NeumannRBP(5, SOLVER)
    fit(model, patterns(), first)
    assert model.estimator is first
    assert model(torch.rand(2, 64)).steps == 60
    fit(model, patterns(), second)
    assert model.estimator is second


def test_two_estimators_are_refused() -> None:
    with pytest.raises(UserError, match="2 gradient estimators \\(BPTT and NeumannRBP\\): keep one"):
        fit(memory(), patterns(), BPTT(), NeumannRBP())


class Recorder(Callback):
    """Keeps what the batches held and what was made of them."""

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


def test_the_trainer_sees_each_stage_s_own_corruptions_and_metrics_against_the_clean_images() -> None:
    model, data, recorder = memory(), patterns(10), Recorder()
    trainer = fit(model, data, NeumannRBP(5, SOLVER), recorder)
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
        assert result[f"{stage}/steps"] == fixed_point.steps
        assert result[f"{stage}/residual"] == pytest.approx(float(fixed_point.residual.mean()), rel=1e-3)


def test_a_continued_run_goes_on_along_its_new_schedule(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    trainer = fit(memory(), patterns(), NeumannRBP(5, SOLVER), first)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    longer = Trainer(accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, callbacks=[second])
    longer.fit(memory(), patterns(), ckpt_path=tmp_path / "two.ckpt")
    for rates in (first.rates, second.rates):
        assert rates == sorted(rates, reverse=True)
    assert second.rates[0] > first.rates[-1]  # half-way down the longer one
    assert second.rates[-1] < 0.2 * second.rates[0]


def test_each_kind_of_warning_comes_once_an_epoch() -> None:
    class Failing(HopfieldMemory):
        def forward(self, images: torch.Tensor) -> Any:
            rate = {0: 0.999, 1: 1.2, 2: float("nan")}[self.trainer.fit_loop.epoch_loop.batch_idx % 3]
            return self.estimator(lambda h: rate * h + 1, torch.zeros(len(images), self.cell.num_free), batch_dims=1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch["corrupted"]).state.sum() * 0 + sum(p.sum() * 0 for p in self.parameters())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = ImagePatterns(train_draws=6, eval_draws=1, batch_size=10)
        fit(Failing(num_hidden=4), data, BPTT(Picard(20, 1e-6)), limit_val_batches=0)
    told = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
    for status in ("max_steps", "diverged", "nan"):
        assert sum(f"status '{status}'" in message for message in told) == 2  # two epochs of two batches each


class Small(LightningModule):
    def build(self, size: int) -> None:
        self.layer = torch.nn.Linear(size, size)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs = batch["clean"].flatten(1)[:, : self.layer.in_features]
        return self.estimator(lambda h: 0.1 * self.layer(h) + inputs, torch.zeros_like(inputs)).state.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OfOneDict(Small):
    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.build(config["size"])


class OfKeywords(Small):
    def __init__(self, size: int = 4, **others: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build(size + others["more"])


@pytest.mark.parametrize("model", [OfOneDict({"size": 3}), OfKeywords(size=3, more=2)], ids=["dict", "keywords"])
def test_modules_of_other_constructors_load_from_checkpoints(model: Small, tmp_path: Path) -> None:
    fit(model, patterns(), NeumannRBP(5, SOLVER), limit_val_batches=0).save_checkpoint(tmp_path / "one.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "one.ckpt")
    assert torch.equal(loaded.layer.weight, model.layer.weight)


def test_pictures_reach_every_tensorboard_logger(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    trainer = Trainer(accelerator="cpu", logger=loggers, enable_progress_bar=False)
    trainer.validate(memory(), patterns(), verbose=False)
    assert EventAccumulator(loggers[1].log_dir).Reload().Tags()["images"] == ["val/recall"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments]


TINY = [
    "fit",
    f"--config={ROOT}/configs/hopfield.yaml",
    "--model.num_hidden=16",
    "--data.train_draws=2",
    "--data.eval_draws=1",
    "--data.batch_size=20",
    "--trainer.accelerator=cpu",
    "--trainer.check_val_every_n_epoch=1",
]


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command line and returns the last checkpoint."""
    finished = subprocess.run(
        command(*TINY, f"--trainer.logger.save_dir={folder}", *arguments), capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    last = max(folder.glob("hopfield/*/checkpoints/last.ckpt"), key=os.path.getmtime)
    return torch.load(last, weights_only=True)


def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    same = ["--trainer.max_epochs=3", "--trainer.precision=64-true", "--estimator.solver.tol=0"]
    one = run(tmp_path / "one", *same, "--trainer.devices=1")
    two = run(tmp_path / "two", *same, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=10")
    assert two["global_step"] == one["global_step"] == 3
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-9, atol=1e-12)


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path: Path) -> None:
    # RBP, so that its random starts have to be resumed as well.
    same = ["--estimator=RBP", "--trainer.max_epochs=40", "--trainer.devices=1"]
    whole = run(tmp_path / "whole", *same)

    killed = tmp_path / "killed"
    arguments = command(*TINY, *same, f"--trainer.logger.save_dir={killed}")
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = killed / "hopfield/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(last, weights_only=True)["epoch"]
    assert reached < 39, "the run ended before it could be killed"

    resumed = run(killed, *same, f"--ckpt_path={last}")
    assert resumed["global_step"] == whole["global_step"] == 40
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name
    assert torch.equal(resumed["callbacks"]["RBP"]["generator"], whole["callbacks"]["RBP"]["generator"])
