"""The estimators on a CUDA device."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks.host_syncs import syncs_of_rbp
from benchmarks.peers.cases import tanh
from datamodules import CitationGraph, ImagePatterns, MNISTSplits
from models import (
    MLP,
    CitationGNN,
    ContractiveCell,
    ExampleWeights,
    GRUPropagation,
    HopfieldMemory,
    HyperparameterOptimizer,
    LabelSmoothing,
    PageRankCell,
    PropagationCell,
    WeightDecay,
)
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    AuditTrainer,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    GradientEstimator,
    NeumannRBP,
    Picard,
)
from tests.cells import loss_of, tanh_cell
from tests.graphs import RandomGraph

SOLVER = Picard(300, tol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize(
    "estimator",
    [
        BPTT(SOLVER),
        TBPTT(20, SOLVER),
        RBP(20, tol=0, solver=SOLVER),
        NeumannRBP(20, SOLVER),
        CGRBP(20, solver=SOLVER),
        AdaptiveNeumann(1e-12, solver=SOLVER),
        ExactAdjoint(solver=SOLVER),
        ExactAdjoint(dense_size=0, solver=SOLVER),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_gradients_are_those_of_the_cpu(estimator: GradientEstimator) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        weight, drive = (tensor.detach().to(device).requires_grad_() for tensor in tanh_cell(0).tensors)
        start = torch.zeros_like(drive, requires_grad=False)
        # RBP draws the same start on every device.
        own = copy.deepcopy(estimator)

        def update(h: torch.Tensor, weight: torch.Tensor = weight, drive: torch.Tensor = drive) -> torch.Tensor:
            return torch.tanh(h @ weight + drive)

        loss_of(own(update, start, batch_dims=1).state.cpu()).backward()
        found[device] = (weight.grad.cpu(), drive.grad.cpu())
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_solve_and_its_gradient_wait_for_the_device_where_a_value_is_read_and_nowhere_else() -> None:
    with torch.device("cuda"):
        case = tanh(0.8)(torch.float32)
    syncs_of_rbp(case)  # makes the workspaces of products
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps, reads, adjoint_steps, adjoint_reads = syncs_of_rbp(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]
    assert len(waits) == reads + adjoint_reads, waits
    assert len(waits) <= (steps + adjoint_steps) // 10 + 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make_cell", [PageRankCell, ContractiveCell, GRUPropagation])
def test_a_citation_network_trains_as_on_the_cpu(make_cell: type[PropagationCell]) -> None:
    found = []
    for accelerator in ("cpu", "gpu"):
        seed_everything(0, verbose=False)
        model = CitationGNN(make_cell(5, 3, 8, dropout=0.0), warm_start=True)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        # In float32 Adam turns the rounding of a gradient near 0 into a difference of 1e-3.
        quiet["precision"] = "64-true"
        trainer = Trainer(accelerator=accelerator, devices=1, max_epochs=3, callbacks=[CGRBP(60)], **quiet)
        trainer.fit(model, CitationGraph(dataset=RandomGraph))
        found.append(torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize("kind", [BPTT, TBPTT, NeumannRBP, CGRBP])
def test_hyperparameters_are_learned_as_on_the_cpu(kind: type) -> None:
    found = []
    for accelerator in ("cpu", "gpu"):
        seed_everything(0, verbose=False)
        hyperparameters = [WeightDecay(1e-3), LabelSmoothing(0.1), ExampleWeights(60)]
        model = HyperparameterOptimizer(MLP([64, 12, 10], log_scale=-1.5), hyperparameters, batch_size=20)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        estimator = kind(solver=Picard(30, tol=0))
        trainer = Trainer(accelerator=accelerator, devices=1, max_epochs=3, callbacks=[estimator], **quiet)
        trainer.fit(model, MNISTSplits(num_train=60, num_val=80, num_test=100))
        found.append(torch.cat([leaf.detach().cpu().flatten() for leaf in model.parameters() if leaf.requires_grad]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_monitored_training_and_an_audit_are_those_of_the_cpu() -> None:
    figures, errors = [], []
    for accelerator in ("cpu", "gpu"):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        callbacks = [NeumannRBP(), FailurePolicy(adjoint="skip"), EquilibriumMonitor(1, 1)]
        trainer = AuditTrainer(accelerator=accelerator, devices=1, max_epochs=2, callbacks=callbacks, **quiet)
        seed_everything(0, verbose=False)
        model, data = HopfieldMemory(num_hidden=16), ImagePatterns(train_draws=2, eval_draws=1)
        trainer.fit(model, data)
        figures.append({name: float(one) for name, one in trainer.callback_metrics.items() if "monitor" in name})
        audit = AuditTrainer(accelerator=accelerator, devices=1, callbacks=[NeumannRBP()], **quiet)
        found = audit.audit(model, data, steps=[1, 10])
        errors.append({row.gradient: row.relative_error for row in found.measurements})
    assert figures[1] == pytest.approx(figures[0], rel=1e-2, abs=1e-5)
    assert errors[1] == pytest.approx(errors[0], rel=1e-2, abs=1e-3)
