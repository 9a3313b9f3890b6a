"""The audit of a user's module, against its exact gradient."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.data import DataLoader
from torch_geometric.data import Data as Graph

from rbp_lightning import (
    BPTT,
    CGRBP,
    AuditTrainer,
    Auto,
    Damped,
    FixedPointSolver,
    Implicit,
    LinearSolution,
    LinearSolver,
    NeumannRBP,
    Picard,
    UserError,
)
from rbp_lightning.diagnostics.audit.forward import SOLVERS
from rbp_lightning.diagnostics.audit.gradient_audit import DENSE_SIZE
from tests.cells import loss_of
from tests.diagnostics.audit.audited import Exact, audit

SOLVER = Picard(500, 1e-7)


def test_a_user_s_module_is_compared_with_the_exact_gradient() -> None:
    module = Exact()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = audit(module, NeumannRBP(20, SOLVER), batches=2, steps=[1, 5, 20])
    assert len(found.references) == 2
    for reference in found.references:
        assert reference.kind == "exact adjoint"
        assert reference.settled
        assert reference.adjoint_residual < 1e-12
        torch.testing.assert_close(reference.gradient, module.exact(), rtol=1e-9, atol=1e-12)
    rows = {row.gradient: row for row in found.measurements if row.batch == 1}
    assert list(rows) == [
        "BPTT",
        *(f"TBPTT(steps={steps})" for steps in (1, 5, 20)),
        "JFB",
        *(
            f"{kind}(steps={steps})"
            for kind in ("PhantomGradient", "RBP", "NeumannRBP", "CGRBP")
            for steps in (1, 5, 20)
        ),
        *(f"Implicit({kind}(steps={steps}))" for kind in ("GMRES", "BiCGSTAB") for steps in (1, 5, 20)),
        "Implicit(Dense())",
        *(f"SHINE(steps={steps})" for steps in (1, 5, 20)),
        *(f"Implicit({kind}(tol=0.01))" for kind in ("Auto", "Anderson", "ReducedRankExtrapolation", "Broyden")),
        "AdaptiveNeumann(tol=0.01)",
        "NeumannRBP as configured",
    ]
    forward = [row.solver for row in found.solvers if row.batch == 1]
    assert forward == [*(kind.__name__ for kind in SOLVERS), "Damped(Picard)", "Picard as configured"]
    assert all(row.converged and row.residual <= 1e-7 for row in found.solvers)
    steps_of = {row.solver: row.steps for row in found.solvers}
    assert steps_of["Picard"] == steps_of["Picard as configured"] > 1.5 * steps_of["ReducedRankExtrapolation"]
    assert f"with solver={min(forward, key=lambda name: steps_of[name])}" in found.advice
    # More steps cost more products and reduce the error.
    assert [rows[f"TBPTT(steps={steps})"].products for steps in (1, 5, 20)] == [1, 5, 20]
    assert [rows[f"NeumannRBP(steps={steps})"].products for steps in (1, 5, 20)] == [2, 6, 21]
    assert [rows[f"RBP(steps={steps})"].products for steps in (1, 5, 20)] == [2, 6, 21]
    assert [rows[f"CGRBP(steps={steps})"].products for steps in (1, 5, 20)] == [4, 12, 42]
    assert rows["Implicit(GMRES(steps=5))"].relative_error < 1e-4  # a sample has 4 unknowns
    for kind in ("Auto", "Anderson", "ReducedRankExtrapolation", "Broyden"):
        assert rows[f"Implicit({kind}(tol=0.01))"].relative_error < 0.05
    assert rows["Implicit(Dense())"].relative_error < 1e-5
    assert rows["Implicit(Dense())"].products == 6  # a sample has 4 unknowns
    assert [rows[f"PhantomGradient(steps={steps})"].products for steps in (1, 5, 20)] == [1, 5, 20]
    assert [rows[f"SHINE(steps={steps})"].products for steps in (1, 5, 20)] == [2, 6, 21]
    assert rows["JFB"].products == 1
    assert rows["JFB"].relative_error > rows["NeumannRBP(steps=1)"].relative_error
    for kind in ("TBPTT", "PhantomGradient", "SHINE", "RBP", "NeumannRBP", "CGRBP"):
        errors = [rows[f"{kind}(steps={steps})"].relative_error for steps in (1, 5, 20)]
        assert errors[0] > errors[1] >= errors[2]  # conjugate gradients need 4 steps for 4 unknowns
    assert rows["NeumannRBP(steps=20)"].relative_error == rows["NeumannRBP as configured"].relative_error
    assert rows["BPTT"].relative_error < 1e-5
    assert rows["BPTT"].cosine == pytest.approx(1)
    assert rows["BPTT"].sign_agreement == 1
    assert rows["AdaptiveNeumann(tol=0.01)"].relative_error < 0.01
    assert rows["BPTT"].saved_bytes > 2 * rows["NeumannRBP(steps=20)"].saved_bytes > 0
    # Nothing was trained, and the module is unchanged.
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.weight.dtype == torch.float32
    assert not {"training_step", "configure_callbacks", "configure_optimizers"} & set(vars(module))


class Symmetric(Exact):
    """A linear map with a symmetric Jacobian."""

    def training_step(self, batch: Any) -> Tensor:
        matrix = (self.weight + self.weight.T) / 2
        start = torch.zeros_like(self.drive)
        return loss_of(self.estimator(lambda h: h @ matrix + self.drive, start, batch_dims=1).state)


class SymmetricOverTheBatch(Symmetric):
    """A Jacobian that is symmetric only for the whole batch, whose samples act on each other."""

    def training_step(self, batch: Any) -> Tensor:
        matrix = (self.weight + self.weight.T) / 2
        mixing = matrix[:3, :3]
        start = torch.zeros_like(self.drive)
        return loss_of(self.estimator(lambda h: mixing @ h @ matrix + self.drive, start, batch_dims=1).state)


def test_a_checkpoint_is_not_loaded_with_code() -> None:
    trainer = AuditTrainer(accelerator="cpu", callbacks=[NeumannRBP()], logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="weights_only=False would run code"):
        trainer.audit(Exact(), weights_only=False)


@pytest.mark.parametrize("module", [Symmetric, SymmetricOverTheBatch])
def test_conjugate_gradients_are_compared_if_the_jacobian_is_symmetric(module: type[Exact]) -> None:
    found = audit(module(), NeumannRBP(20, SOLVER), steps=[1, 12])
    assert found.references[0].symmetric
    errors = {row.gradient: row.relative_error for row in found.measurements}
    assert errors["Implicit(ConjugateGradient(steps=12))"] < 1e-5 < errors["Implicit(ConjugateGradient(steps=1))"]
    asymmetric = audit(Exact(), NeumannRBP(20, SOLVER), steps=[1])
    assert not asymmetric.references[0].symmetric
    assert not any("ConjugateGradient" in row.gradient for row in asymmetric.measurements)


class Once(torch.autograd.Function):
    """A tanh that has neither a second nor a forward derivative."""

    @staticmethod
    def forward(context: Any, state: Tensor) -> Tensor:
        image = state.tanh()
        context.save_for_backward(image)
        return image

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (image,) = context.saved_tensors
        return gradient * (1 - image.square())


class DifferentiableOnce(Exact):
    def training_step(self, batch: Any) -> Tensor:
        start = torch.zeros_like(self.drive)
        return loss_of(self.estimator(lambda h: Once.apply(h @ self.weight + self.drive), start, batch_dims=1).state)


def test_an_estimator_that_cannot_be_applied_is_left_out_with_the_reason(tmp_path: Path, capsys) -> None:
    found = audit(DifferentiableOnce(), NeumannRBP(20, SOLVER), CSVLogger(tmp_path), batches=2, steps=[1])
    names = {"CGRBP(steps=1)", "AdaptiveNeumann(tol=0.01)"}
    assert set(found.left_out) == names
    assert not names & {row.gradient for row in found.measurements}
    printed = capsys.readouterr().out
    assert printed.count("no products J v") == 1
    assert all(name in printed for name in names)
    (file,) = tmp_path.rglob("audit.json")
    assert json.loads(file.read_text())["left_out"] == found.left_out
    with pytest.raises(UserError, match="no products J v"):
        audit(DifferentiableOnce(), CGRBP(20, solver=SOLVER), steps=[1])


def test_a_dense_matrix_is_formed_only_for_small_samples() -> None:
    class Large(Exact):
        def training_step(self, batch: Any) -> Tensor:
            start = torch.zeros(3, DENSE_SIZE + 1, dtype=self.drive.dtype)
            return loss_of(self.estimator(lambda h: 0.5 * torch.cos(h) + self.drive[0, 0], start, batch_dims=1).state)

    found = audit(Large(), NeumannRBP(20, SOLVER), steps=[1])
    assert list(found.left_out) == ["Implicit(Dense())"]


def test_errors_are_relative_to_the_dense_gradient() -> None:
    module = Exact()
    found = audit(module, NeumannRBP(3, SOLVER), steps=[3])
    (row,) = [row for row in found.measurements if row.gradient == "NeumannRBP as configured"]
    state = NeumannRBP(3, SOLVER)(module.cell.update, module.cell.start, batch_dims=1).state
    gradient = torch.cat([leaf.flatten() for leaf in torch.autograd.grad(loss_of(state), module.cell.tensors)])
    exact = module.exact()
    assert row.relative_error == pytest.approx(float((gradient - exact).norm() / exact.norm()), rel=1e-3)
    assert row.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(gradient, exact, dim=0)), rel=1e-5)
    assert row.sign_agreement == pytest.approx(float((gradient.sign() == exact.sign()).double().mean()))


@pytest.mark.parametrize("solver", [Picard(500, 1e-7, atol=1e-2), Damped(Auto(500, 1e-7), 0.9)], ids=["atol", "damped"])
def test_the_reference_is_solved_more_accurately_than_the_estimator(solver: FixedPointSolver) -> None:
    found = audit(Exact(), NeumannRBP(20, solver), steps=[2])
    (reference,) = found.references
    assert reference.settled
    assert reference.residual <= 1e-12
    (unrolled,) = [row for row in found.measurements if row.gradient == "BPTT"]
    assert unrolled.relative_error < 0.1  # BPTT takes Picard steps even if the solver accelerates


def test_a_map_that_does_not_converge_is_reported() -> None:
    class Rotating(Exact):
        def training_step(self, batch: Any) -> Tensor:
            turn = torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=self.weight.dtype)
            start = torch.full((3, 2), 0.5, dtype=self.weight.dtype)
            update = lambda h: torch.tanh(h @ (turn * self.weight[0, 0] / self.weight[0, 0].detach()))  # noqa: E731
            return loss_of(self.estimator(update, start, batch_dims=1).state)

    found = audit(Rotating(), NeumannRBP(solver=Picard(30, 1e-6)), steps=[1, 10])
    (reference,) = found.references
    assert reference.kind == "BPTT"
    assert not reference.settled
    assert found.advice.startswith("The map does not converge")
    assert "rbp_lightning.nn" in found.advice
    assert re.search(r"until then T?BPTT.* gives the gradient of the steps taken", found.advice)
    (row,) = [row for row in found.measurements if row.gradient == "BPTT"]
    assert row.relative_error < 1e-3


def test_with_tolerance_zero_the_reference_is_bptt_of_the_same_steps() -> None:
    found = audit(Exact(), NeumannRBP(5, solver=Picard(4, tol=0)), steps=[1, 20])
    (reference,) = found.references
    assert reference.kind == "BPTT"
    assert reference.steps == 4
    assert "TBPTT(steps=20)" not in {row.gradient for row in found.measurements}
    assert "give it more steps" in found.advice


def test_every_estimator_sees_the_same_random_numbers() -> None:
    class Dropping(Exact):
        def training_step(self, batch: Any) -> Tensor:
            kept = torch.nn.functional.dropout(self.drive, 0.5)
            start = torch.zeros_like(self.drive)
            return loss_of(self.estimator(lambda h: torch.tanh(h @ self.weight + kept), start, batch_dims=1).state)

    found = audit(Dropping(), BPTT(SOLVER), steps=[50])
    errors = {row.gradient: row.relative_error for row in found.measurements}
    assert errors["BPTT"] < 1e-5
    assert errors["CGRBP(steps=50)"] < 1e-5


def test_a_zero_gradient_has_zero_errors() -> None:
    class Flat(Exact):
        def training_step(self, batch: Any) -> Tensor:
            return 0 * super().training_step(batch)

    found = audit(Flat(), NeumannRBP(), steps=[1])
    assert {row.relative_error for row in found.measurements} == {0.0}


class HalfTerm(LinearSolver):
    """z = g + J^T g / 2."""

    def solve(self, operator, gradient, start=None):
        vector = [g + 0.5 * v for g, v in zip(gradient, operator.vjp(gradient), strict=True)]
        return LinearSolution(vector, 1, 1, operator.adjoint_residual(gradient, vector))


def test_a_user_s_linear_solver_is_audited() -> None:
    found = audit(Exact(), Implicit(HalfTerm(), SOLVER), steps=[1])
    (row,) = [row for row in found.measurements if row.gradient == "Implicit as configured"]
    assert 0.05 < row.relative_error < 1
    assert row.products == 2  # one of the solver, and one into the parameters


def test_saved_bytes_do_not_include_the_weights() -> None:
    class Wide(Exact):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(400) * 0.5)
            self.drive = torch.nn.Parameter(torch.ones(1, 400))

        def training_step(self, batch: Any) -> Tensor:
            start = torch.zeros_like(self.drive)
            return self.estimator(lambda h: torch.tanh(h @ self.weight + self.drive), start, batch_dims=1).state.sum()

    rows = audit(Wide(), NeumannRBP(), steps=[1]).measurements
    (row,) = [one for one in rows if one.gradient == "NeumannRBP(steps=1)"]
    assert 0 < row.saved_bytes < 20 * 400 * 4


def test_graphs_within_a_batch_are_converted_to_float64() -> None:
    class OnGraphs(Exact):
        def training_step(self, batch: Any) -> Tensor:
            features = batch["graphs"][0].x
            start = torch.zeros_like(features)
            return self.estimator(lambda h: 0.5 * torch.tanh(h @ self.weight) + features, start).state.square().sum()

    graph = Graph(x=torch.rand(3, 4), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    loader = DataLoader([graph], batch_size=1, collate_fn=lambda graphs: {"graphs": graphs})
    found = audit(OnGraphs(), NeumannRBP(), data=loader, steps=[50])
    assert {row.gradient: row.relative_error for row in found.measurements}["CGRBP(steps=50)"] < 1e-5
    assert graph.x.dtype == torch.float32
