"""The estimators' gradients against the dense solution, converged BPTT and each other, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, GradientEstimator, NeumannRBP, Picard, UserError
from rbp_lightning.conjugate_gradient import conjugate_gradient
from rbp_lightning.linalg import Linearization
from tests.cells import Cell, cells, dense, gru_cell, hopfield_cell, loss_of, relative_error, settle, tanh_cell

EXACT = Picard(max_steps=1000, tol=1e-15)
ESTIMATORS = [
    BPTT(EXACT),
    TBPTT(900, EXACT),
    RBP(1000, 1e-14, solver=EXACT),
    NeumannRBP(900, EXACT),
    CGRBP(100, 1e-14, solver=EXACT),
]
BY_NAME = [pytest.param(estimator, id=type(estimator).__name__) for estimator in ESTIMATORS]

# Rounding keeps a tolerance of 1e-15 out of reach at times, and the estimators say so.
pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


def gradients(estimator: GradientEstimator, cell: Cell, scale: float = 1.0) -> list[torch.Tensor]:
    state = estimator(cell.update, cell.start, batch_dims=cell.batch_dims).state
    return list(torch.autograd.grad(scale * loss_of(state), cell.tensors))


@pytest.mark.parametrize("estimator", BY_NAME)
@settings(max_examples=15, deadline=None)
@given(cell=cells())
def test_equals_the_dense_solution(estimator: GradientEstimator, cell: Cell) -> None:
    assert relative_error(gradients(estimator, cell), dense(cell).gradients) < 1e-10


@pytest.mark.parametrize("estimator", BY_NAME[1:])
@settings(max_examples=10, deadline=None)
@given(cell=cells())
def test_equals_converged_bptt(estimator: GradientEstimator, cell: Cell) -> None:
    assert relative_error(gradients(estimator, cell), gradients(BPTT(EXACT), cell)) < 1e-10


@settings(max_examples=20, deadline=None)
@given(cell=cells(), steps=st.integers(1, 12))
def test_neumann_is_truncation_is_rbp_from_the_gradient(cell: Cell, steps: int) -> None:
    fixed = Picard(max_steps=1000, tol=0)
    neumann = gradients(NeumannRBP(steps, fixed), cell)
    assert relative_error(gradients(TBPTT(steps + 1, fixed), cell), neumann) < 1e-12
    assert relative_error(gradients(RBP(steps, tol=0, start="gradient", solver=fixed), cell), neumann) < 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.floats(0.1, 0.95), steps=st.integers(0, 30))
def test_neumann_error_bound(seed: int, norm: float, steps: int) -> None:
    cell = tanh_cell(seed, norm)
    # The gradient of an added input is z itself.
    added = torch.zeros_like(cell.start, requires_grad=True)
    state = NeumannRBP(steps, EXACT)(lambda h: cell.update(h) + added, cell.start, batch_dims=1).state
    adjoint = torch.autograd.grad(loss_of(state), added)[0].reshape(-1)
    exact = dense(cell)
    identity = torch.eye(len(exact.jacobian), dtype=torch.float64)
    inverse_norm = torch.linalg.matrix_norm(torch.linalg.inv(identity - exact.jacobian), 2)
    jacobian_norm = torch.linalg.matrix_norm(exact.jacobian, 2)
    bound = inverse_norm * jacobian_norm ** (steps + 1) * exact.gradient.norm()
    assert (adjoint - exact.adjoint).norm() <= bound + 1e-12


@pytest.mark.parametrize(
    "estimator",
    [TBPTT(3, EXACT), RBP(25, 1e-3, solver=EXACT), NeumannRBP(3, EXACT), CGRBP(2, 1e-3, check_every=1, solver=EXACT)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_scaling_the_loss_leaves_the_relative_error(estimator: GradientEstimator) -> None:
    cell = tanh_cell(0, norm=0.9)
    exact = dense(cell).gradients
    start = estimator.state_dict()
    error = relative_error(gradients(estimator, cell), exact)
    if start:
        estimator.load_state_dict(start)  # RBP's random start, drawn again
    small = [gradient / 1e-6 for gradient in gradients(estimator, cell, scale=1e-6)]
    assert error > 1e-6  # the estimator stopped early, or there is nothing to compare
    assert relative_error(small, exact) == pytest.approx(error, rel=1e-6)


def test_adjoint_tolerance_is_reached_at_any_scale() -> None:
    cell = tanh_cell(1, norm=0.95)
    exact = dense(cell).gradients
    for estimator in (RBP(1000, 1e-8, solver=EXACT), CGRBP(100, 1e-8, check_every=1, solver=EXACT)):
        for scale in (1.0, 1e-6, 1e6):
            found = [gradient / scale for gradient in gradients(estimator, cell, scale)]
            assert relative_error(found, exact) < 1e-6


def linearization(cell: Cell) -> tuple[Linearization, torch.Tensor]:
    state = settle(cell).requires_grad_()
    return Linearization(cell.update, state, [cell.update(state)], cell.batch_dims), state


@pytest.mark.parametrize("maker", [tanh_cell, gru_cell, hopfield_cell])
def test_products_with_the_jacobian_are_the_dense_ones(maker) -> None:
    cell = maker(0)
    operator, state = linearization(cell)
    vector = torch.randn_like(state)
    jacobian = dense(cell).jacobian
    for product, matrix in ((operator.vjp, jacobian.T), (operator.jvp_function(), jacobian)):
        torch.testing.assert_close(product([vector])[0].reshape(-1), matrix @ vector.reshape(-1))
    torch.testing.assert_close(operator._jvp_forward_mode([vector]), operator.jvp_function()([vector]))


class OnceDifferentiableTanh(torch.autograd.Function):
    """An operator with a forward-mode formula and no second derivative."""

    @staticmethod
    def forward(ctx, inputs):
        outputs = torch.tanh(inputs)
        ctx.save_for_backward(outputs)
        ctx.save_for_forward(outputs)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * (1 - ctx.saved_tensors[0] ** 2)


def test_conjugate_gradients_through_an_operator_without_a_second_derivative() -> None:
    cell = tanh_cell(0)
    weight, drive = cell.tensors
    exact = dense(cell).gradients
    cell.update = lambda h: (
        0.5 * torch.tanh(h @ weight + drive) + 0.5 * OnceDifferentiableTanh.apply(h @ weight + drive)
    )
    assert relative_error(gradients(CGRBP(50, 1e-14, solver=EXACT), cell), exact) < 1e-10


def test_forward_mode_keeps_to_the_autocast_of_the_forward_pass() -> None:
    weight, drive = (tensor.detach().float().requires_grad_() for tensor in tanh_cell(0, norm=0.4).tensors)
    with torch.autocast("cpu", torch.bfloat16):
        state = CGRBP(20, tol=0, solver=Picard(30, 0))(
            lambda h: OnceDifferentiableTanh.apply(h @ weight) + drive.bfloat16(), torch.zeros(3, 4).bfloat16()
        ).state
    state.sum().backward()
    assert bool(weight.grad.isfinite().all())
    assert float(weight.grad.norm()) > 0


class OnceDifferentiableOnly(OnceDifferentiableTanh):
    jvp = torch.autograd.Function.jvp


def test_an_operator_without_jvp_is_told() -> None:
    weight, drive = tanh_cell(0).tensors
    state = CGRBP()(lambda h: OnceDifferentiableOnly.apply(h @ weight + drive), torch.zeros_like(drive)).state
    with pytest.raises(UserError, match=r"neither twice nor in forward mode.*NeumannRBP"):
        state.sum().backward()


@pytest.mark.parametrize("estimator", BY_NAME)
def test_a_compiled_update(estimator: GradientEstimator) -> None:
    cell = tanh_cell(0)
    exact = dense(cell).gradients
    weight, drive = cell.tensors
    compiled = torch.compile(lambda h, weight, drive: torch.tanh(h @ weight + drive), backend="aot_eager")
    cell.update = lambda h: compiled(h, weight, drive)
    assert relative_error(gradients(estimator, cell), exact) < 1e-10


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.floats(0.1, 0.95), batched=st.booleans())
def test_conjugate_gradient_residual_falls_and_is_true(seed: int, norm: float, batched: bool) -> None:
    cell = tanh_cell(seed, norm)
    cell.batch_dims = int(batched)
    operator, state = linearization(cell)
    exact = dense(cell)
    gradient = exact.gradient.reshape(state.shape)
    size = gradient.norm() if not batched else gradient.norm(dim=1)
    last = torch.full_like(size, 1.0)
    for steps in range(1, 9):
        solution = conjugate_gradient(operator, [gradient], steps, tol=0.0, check_every=10)
        assert solution.steps == steps
        left = gradient - solution.vector[0] + operator.vjp(solution.vector)[0]
        residual = (left.norm() if not batched else left.norm(dim=1)) / size
        torch.testing.assert_close(solution.residual, residual, atol=1e-9, rtol=1e-6)  # the newest iterate's
        assert bool((residual <= last + 1e-12).all())
        last = residual
    if batched:  # as many steps as unknowns of a sample solve it
        assert float(last.max()) < 1e-6


def test_conjugate_gradient_stops_at_the_iterate_that_met_the_tolerance() -> None:
    cell = tanh_cell(0, norm=0.5)
    operator, state = linearization(cell)
    gradient = dense(cell).gradient.reshape(state.shape)
    solution = conjugate_gradient(operator, [gradient], steps=50, tol=1e-4, check_every=1)
    before = conjugate_gradient(operator, [gradient], steps=solution.steps - 1, tol=0.0, check_every=1)
    left = gradient - solution.vector[0] + operator.vjp(solution.vector)[0]
    assert float((left.norm(dim=1) / gradient.norm(dim=1)).max()) <= 1e-4 < float(before.residual.max())


def test_samples_without_gradient_stay_without() -> None:
    for estimator in (RBP(50, 1e-6, solver=EXACT), NeumannRBP(5, EXACT), CGRBP(5, 1e-6, solver=EXACT)):
        cell = tanh_cell(0)
        state = estimator(cell.update, cell.start, batch_dims=1).state
        drive_gradient = torch.autograd.grad(state[0].sum(), cell.tensors[1])[0]
        assert float(drive_gradient[0].norm()) > 0
        assert torch.equal(drive_gradient[1:], torch.zeros_like(drive_gradient[1:]))


def test_hopfield_jvp_is_the_update_s_own() -> None:
    cell = hopfield_cell(0)
    operator, state = linearization(cell)
    vector = torch.randn_like(state)
    found = operator.jvp_function()([vector])[0]
    step = 1e-6
    with torch.no_grad():
        difference = (cell.update(state + step * vector) - cell.update(state - step * vector)) / (2 * step)
    torch.testing.assert_close(found, difference, atol=1e-8, rtol=1e-6)
    # W (b sigma'(b h) * v), and not sigma'(W h) * (W v).
    original = cell.tensors[1]
    weight = (original.triu(1) + original.triu(1).T)[2:, 2:]
    slope = 1.5 * torch.sigmoid(1.5 * state) * (1 - torch.sigmoid(1.5 * state))
    torch.testing.assert_close(found, 0.3 * vector + (slope * vector) @ weight)


@pytest.mark.parametrize("estimator", BY_NAME)
def test_gradcheck(estimator: GradientEstimator) -> None:
    def fixed_point(weight: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        return estimator(lambda h: torch.tanh(h @ weight + drive), torch.zeros_like(drive), batch_dims=1).state

    weight, drive = (tensor.detach().requires_grad_() for tensor in tanh_cell(3, norm=0.5, batch=2, size=3).tensors)
    assert torch.autograd.gradcheck(fixed_point, (weight, drive), nondet_tol=1e-10)


def test_conjugate_gradients_rest_at_rounding() -> None:
    """Far beyond it they would divide by what has vanished."""
    torch.manual_seed(0)
    weight = (torch.full((64, 64), 0.8 / 64) + 0.01 * torch.randn(64, 64) / 8).requires_grad_()
    drive = torch.randn(20, 64)

    def gradient(steps: int) -> torch.Tensor:
        estimator = CGRBP(steps, tol=0.0, solver=Picard(300, 1e-6))
        state = estimator(lambda h: h @ weight + drive, torch.zeros(20, 64), batch_dims=1).state
        return torch.autograd.grad(state.square().sum(), weight)[0]

    torch.testing.assert_close(gradient(600), gradient(60), rtol=1e-4, atol=1e-5)
