"""Solves, gradients and trainings on a CUDA device agree with those on the CPU."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from benchmarks.host_syncs import syncs_of_rbp
from benchmarks.peers.networks import tanh
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
    FixedPointLayer,
    GradientEstimator,
    Implicit,
    JacobianOperator,
    NeumannRBP,
    Picard,
    held,
    ignoring,
)
from tests.cells import loss_of, tanh_cell
from tests.graphs import RandomGraph
from tests.training import QUIET
from tests.zoo import ALL, contractions, failures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SOLVER = Picard(300, tol=1e-13)


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
def test_gradients_equal_those_on_the_cpu(estimator: GradientEstimator) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        weight, drive = (tensor.detach().to(device).requires_grad_() for tensor in tanh_cell(0).tensors)
        start = torch.zeros_like(drive, requires_grad=False)

        def update(h: torch.Tensor, weight: torch.Tensor = weight, drive: torch.Tensor = drive) -> torch.Tensor:
            return torch.tanh(h @ weight + drive)

        with ignoring():  # RBP draws the same initial z on every device
            loss_of(estimator(update, start, batch_dims=1).state.cpu()).backward()
        found[device] = (weight.grad.cpu(), drive.grad.cpu())
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-9, atol=1e-11)


def test_solves_end_with_the_same_status_as_on_the_cpu() -> None:
    with torch.device("cuda"):
        on_cuda = contractions() + failures()
    for problem, other in zip(ALL, on_cuda, strict=True):
        with torch.no_grad(), ignoring():
            cpu, cuda = (
                NeumannRBP(solver=Picard(3000, 1e-8))(one.update, one.start, batch_dims=1) for one in (problem, other)
            )
        assert cuda.state.is_cuda
        assert cuda.sample_status.tolist() == cpu.sample_status.tolist(), problem.name
        if problem.fixed_point is not None:
            torch.testing.assert_close(cuda.state.cpu(), cpu.state, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_solve_that_stalls_at_rounding_stops(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (0.98 * torch.linalg.qr(torch.randn(64, 64))[0]).cuda().to(dtype)
    inputs = torch.randn(32, 64).cuda().to(dtype)
    with torch.no_grad():  # warnings are errors
        found = NeumannRBP(solver=Picard(5000, 1e-8))(lambda h: h @ weight + inputs, torch.zeros_like(inputs), 1)
    assert found.converged
    assert found.steps < 5000


def test_autocast_does_not_warn_of_convergence_failures() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(HalfNormCell(16), RBP(solver=Picard(60, 1e-2))).cuda()
    inputs = torch.randn(8, 16, device="cuda")
    layer(inputs).square().sum().backward()
    exact = layer.cell.linear.weight.grad.clone()
    for dtype in (torch.float16, torch.bfloat16):
        layer.zero_grad()
        with torch.autocast("cuda", dtype):
            loss = layer(inputs).float().square().sum()
        loss.backward()
        assert float((layer.cell.linear.weight.grad - exact).norm() / exact.norm()) < 0.1


class HalfNormCell(nn.Module):
    """tanh(h W + x) with ||W|| = 0.5."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        with torch.no_grad():
            self.linear.weight.mul_(0.5 / torch.linalg.matrix_norm(self.linear.weight, 2))

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(h) + x)


def test_a_solve_and_its_gradient_synchronise_only_where_a_value_is_read() -> None:
    with torch.device("cuda"):
        case = tanh(0.8)(torch.float32)
    syncs_of_rbp(case)  # allocates the workspaces of matrix products
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps, reads, adjoint_steps, adjoint_reads = syncs_of_rbp(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]
    # The first two residuals of each iteration are read in one transfer, which the count of reads does not include.
    assert reads + adjoint_reads <= len(waits) <= reads + adjoint_reads + 2, waits
    assert len(waits) <= (steps + adjoint_steps) // 10 + 8


@pytest.mark.parametrize("make_cell", [PageRankCell, ContractiveCell, GRUPropagation])
def test_a_citation_network_trains_as_on_the_cpu(make_cell: type[PropagationCell]) -> None:
    found = []
    for accelerator in ("cpu", "gpu"):
        seed_everything(0, verbose=False)
        model = CitationGNN(make_cell(5, 3, 8, dropout=0.0), warm_start=True)
        # In float32 Adam turns the rounding of a gradient near 0 into a difference of 1e-3.
        options = {**QUIET, "accelerator": accelerator, "devices": 1, "precision": "64-true"}
        trainer = Trainer(max_epochs=3, callbacks=[CGRBP(60)], **options)
        trainer.fit(model, CitationGraph(dataset=RandomGraph))
        found.append(torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [BPTT, TBPTT, NeumannRBP, CGRBP])
def test_hyperparameters_are_learned_as_on_the_cpu(kind: type) -> None:
    found = []
    for accelerator in ("cpu", "gpu"):
        seed_everything(0, verbose=False)
        hyperparameters = [WeightDecay(1e-3), LabelSmoothing(0.1), ExampleWeights(60)]
        model = HyperparameterOptimizer(MLP([64, 12, 10], log_scale=-1.5), hyperparameters, batch_size=20)
        estimator = kind(solver=Picard(30, tol=0))
        options = {**QUIET, "accelerator": accelerator, "devices": 1}
        policy = FailurePolicy(adjoint="ignore")  # a fixed number of steps does not converge
        trainer = Trainer(max_epochs=3, callbacks=[estimator, policy], **options)
        trainer.fit(model, MNISTSplits(num_train=60, num_val=80, num_test=100))
        found.append(torch.cat([leaf.detach().cpu().flatten() for leaf in model.parameters() if leaf.requires_grad]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_a_monitored_training_and_an_audit_agree_with_the_cpu() -> None:
    monitored, errors = [], []
    for accelerator in ("cpu", "gpu"):
        callbacks = [NeumannRBP(), FailurePolicy(adjoint="skip"), EquilibriumMonitor(1, 1)]
        options = {**QUIET, "accelerator": accelerator, "devices": 1}
        trainer = AuditTrainer(max_epochs=2, callbacks=callbacks, **options)
        seed_everything(0, verbose=False)
        model, data = HopfieldMemory(num_hidden=16), ImagePatterns(train_draws=2, eval_draws=1)
        trainer.fit(model, data)
        monitored.append({name: float(one) for name, one in trainer.callback_metrics.items() if "monitor" in name})
        audit = AuditTrainer(callbacks=[NeumannRBP()], **options)
        found = audit.audit(model, data, steps=[1, 10])
        errors.append({row.gradient: row.relative_error for row in found.measurements})
    assert monitored[1] == pytest.approx(monitored[0], rel=1e-2, abs=1e-5)
    assert errors[1] == pytest.approx(errors[0], rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # each uses another kernel
def test_products_through_attention_with_j_and_its_transpose_agree(dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4, dropout, batch_first=True, device="cuda", dtype=dtype)
    update = held(lambda h: attention(h, h, h, need_weights=False)[0], attention)
    left, right, state = torch.randn(3, 2, 16, 64, device="cuda", dtype=dtype)
    operator = JacobianOperator.at(update, state, batch_dims=1)
    transposed, product = operator.vjp([left])[0], operator.jvp([right])[0]
    one, other = (transposed * right).double(), (left * product).double()
    scale = float((one.square().sum() + other.square().sum()).sqrt())
    assert float(one.sum()) == pytest.approx(float(other.sum()), abs=200 * torch.finfo(dtype).eps * scale)


def test_steps_in_cuda_graphs_equal_single_steps() -> None:
    found = []
    for graph_steps in (0, 10):
        weight, drive = (tensor.detach().cuda().requires_grad_() for tensor in tanh_cell(0).tensors)
        estimator = Implicit(Picard(300, 1e-10, graph_steps=graph_steps), Picard(300, 1e-10, graph_steps=graph_steps))

        def update(h: torch.Tensor, weight: torch.Tensor = weight, drive: torch.Tensor = drive) -> torch.Tensor:
            return torch.tanh(h @ weight + drive)

        fixed_point = estimator(update, torch.zeros_like(drive), batch_dims=1)
        loss_of(fixed_point.state.cpu()).backward()
        found.append((fixed_point.steps, fixed_point.adjoint.products, weight.grad, drive.grad))
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[1][2:], found[0][2:], rtol=1e-9, atol=1e-11)


def test_an_update_that_synchronises_is_not_captured() -> None:
    def update(h: torch.Tensor) -> torch.Tensor:
        return torch.cos(h) if float(h.sum()) >= 0 else h

    with torch.no_grad(), pytest.warns(UserWarning, match="cannot be captured"):
        state = Implicit(solver=Picard(100, tol=0, graph_steps=10))(update, torch.zeros(2, device="cuda")).state
    torch.testing.assert_close(state.cpu(), torch.full((2,), 0.7390851))
