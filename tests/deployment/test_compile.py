"""Solves in torch.compile: no graph break with a fixed number of steps, and none within F in any case."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

from rbp_lightning import (
    BPTT,
    GMRES,
    RBP,
    TBPTT,
    Damped,
    FixedPointSolver,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
    ignoring,
)
from tests.cells import Cell, dense, loss_of, pytree_cell, relative_error, tanh_cell
from tests.deployment.networks import SOLVERS, inputs, layer, name

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by the compiler


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Clears compiled code; ignores failures, since a few steps do not converge."""
    torch._dynamo.reset()
    with ignoring():
        yield


def gradients(estimator: GradientEstimator, cell: Cell, **options: object) -> list[torch.Tensor]:
    """The gradients of the loss at a fixed point, compiled if there are options for it."""

    def loss() -> torch.Tensor:
        return loss_of(estimator(cell.update, cell.start, cell.batch_dims).state)

    run = torch.compile(loss, backend="aot_eager", **options) if options else loss
    return list(torch.autograd.grad(run(), cell.tensors))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_every_solver_takes_the_same_steps_in_one_graph(solver: FixedPointSolver) -> None:
    module, x = layer(solver), inputs(3)
    with torch.no_grad():
        expected, found = module.solve(x), torch.compile(module.solve, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found.state, expected.state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.sample_status, expected.sample_status)
    assert found.steps == expected.steps == solver.max_steps


@pytest.mark.parametrize(
    "estimator",
    [
        BPTT(Damped(Picard(3, tol=0))),
        TBPTT(2, Picard(4, tol=0)),
        RBP(3, tol=0, solver=Picard(4, tol=0)),
    ],
    ids=name,
)
def test_gradients_in_one_graph_equal_eager_ones(estimator: GradientEstimator) -> None:
    cell = pytree_cell(0)
    assert relative_error(gradients(estimator, cell, fullgraph=True), gradients(estimator, cell)) < 1e-13


@pytest.mark.parametrize("estimator", [BPTT(Picard(12, tol=0)), NeumannRBP(12, Picard(12, tol=0))], ids=name)
def test_gradients_in_one_graph_are_exact_with_enough_steps(estimator: GradientEstimator) -> None:
    cell = tanh_cell(0, norm=0.2)
    assert relative_error(gradients(estimator, cell, fullgraph=True), dense(cell).gradients) < 1e-7


@pytest.mark.parametrize(
    "estimator",
    [
        NeumannRBP(3, Picard(20)),
        Implicit(GMRES(), Picard(20, tol=0)),
        RBP(20, tol=1e-4, solver=Picard(20, tol=0)),
    ],
    ids=name,
)
def test_a_number_of_steps_that_depends_on_data_breaks_the_graph(estimator: GradientEstimator) -> None:
    cell = tanh_cell(0)
    with pytest.raises(Unsupported, match=r"fullgraph=True: give the solvers tol=0"):
        gradients(estimator, cell, fullgraph=True)
    assert relative_error(gradients(estimator, cell, fullgraph=False), gradients(estimator, cell)) < 1e-13


def test_the_update_of_a_solve_with_a_tolerance_is_one_graph() -> None:
    module, x = layer(Picard(40, tol=1e-6)), inputs(3)
    expected = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    counter = CompileCounterWithBackend("aot_eager")
    module.cell.compile(backend=counter, fullgraph=True)
    found = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    assert relative_error(list(found), list(expected)) < 1e-12
    assert counter.frame_count <= 3  # with a tape, without one, and for a state that needs no gradient


class LastStep(TBPTT):
    """Differentiates only the last step, for any number of steps."""

    def differentiate(self, solve, record):
        return solve.last_steps(solve.without_tape(steps_after=1), 1)


def test_a_user_s_subclass_is_not_compiled_as_its_base_class() -> None:
    cell = tanh_cell(0)
    own, last = LastStep(3, Picard(4, tol=0)), gradients(NeumannRBP(0, Picard(4, tol=0)), cell)
    assert relative_error(gradients(own, cell, fullgraph=False), last) < 1e-13


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_code_generated_by_inductor_has_the_same_gradient(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    estimator = NeumannRBP(1, Picard(2, tol=0))
    module, x = layer(estimator.solver), inputs(3)
    module.estimator = estimator
    expected = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    compiled = torch.compile(module, fullgraph=True)
    found = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
    assert relative_error(list(found), list(expected)) < 1e-12
