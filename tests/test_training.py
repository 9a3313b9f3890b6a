"""Estimators under the real Trainer."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.nn.functional import l1_loss

from datamodules import ImagePatterns
from models import HopfieldMemory
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, GradientEstimator, NeumannRBP, Picard, UserError

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


def fit(model: HopfieldMemory, data: ImagePatterns, *callbacks: Callback, **arguments: Any) -> Trainer:
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
