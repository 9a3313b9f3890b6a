"""Derivatives of every order and in every mode, through every gradient estimator."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad, functional
from torch.utils._pytree import tree_leaves

from rbp_lightning import (
    BPTT,
    CGRBP,
    GMRES,
    TBPTT,
    Anderson,
    Auto,
    BiCGSTAB,
    Broyden,
    CheckpointedBPTT,
    ConjugateGradient,
    ConvergenceWarning,
    Damped,
    Dense,
    EquilibriumPropagation,
    ExactAdjoint,
    FixedPointAdjoint,
    FixedPointLayer,
    GradientEstimator,
    Implicit,
    LinearSolver,
    NeumannRBP,
    NormalCG,
    NudgedAdjoint,
    Nystrom,
    PhantomGradient,
    Picard,
    Richardson,
    SolveObserver,
    UserError,
    WarmStart,
    ignoring,
    jacobian_penalty,
    observing,
)
from rbp_lightning.linear import AdaptiveNeumannSeries, Direct
from tests.cells import Cell, cells, loss_of, pytree_cell, relative_error, tanh_cell
from tests.contracts.test_estimator_contract import ESTIMATORS, EXACT, Entry
from tests.contracts.test_solver_contract import SOLVERS

STEPS = 70
"""Number of steps after which a cell of norm 0.6 has converged to rounding."""

FASTER = {
    TBPTT: TBPTT(STEPS, EXACT),
    NeumannRBP: NeumannRBP(STEPS, EXACT),
    PhantomGradient: PhantomGradient(STEPS, 0.9, EXACT),
}
"""Estimators with fewer steps, which are enough for the cell of norm 0.6."""

ENTRIES = {name: replace(entry, exact=FASTER.get(entry.kind, entry.exact)) for name, entry in ESTIMATORS.items()}
EVERY_ESTIMATOR = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))

IN_EVERY_MODE = ("BPTT", "TBPTT", "ExactAdjoint")
"""Estimators that are tested in every mode; the others are built like one of these."""

ONE_OF_EACH_KIND = pytest.mark.parametrize("entry", [ENTRIES[name] for name in IN_EVERY_MODE], ids=IN_EVERY_MODE)

INPUTS = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WEIGHT = 0.6 * torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
TANGENT = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(2, 2)
WEIGHTS = torch.stack([WEIGHT, WEIGHT.T, 0.5 * WEIGHT])
SCALES = torch.tensor([0.5, 0.9], dtype=torch.float64)


def step(h: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    return torch.tanh(h @ weight + inputs)


def unrolled(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
    h = torch.zeros_like(inputs)
    for _ in range(STEPS):
        h = step(h, weight, inputs)
    return h


Solve = Callable[..., Tensor]


def solved_by(estimator: GradientEstimator, order: int = 1) -> Solve:
    def solve(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
        return estimator(
            lambda h: step(h, weight, inputs), torch.zeros_like(inputs), batch_dims=inputs.dim() - 1, order=order
        ).state

    return solve


def scalar(solve: Solve) -> Solve:
    return lambda *arguments: loss_of(solve(*arguments))


def gradient_of_the_gradient_norm(solve: Solve) -> Tensor:
    """The gradient of the squared norm of a gradient, by backpropagation through the backward pass."""
    weight = WEIGHT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(solve)(weight), weight, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), weight)[0]


def tangent_of_dual_level(solve: Solve) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(solve(forward_ad.make_dual(WEIGHT, TANGENT))).tangent


def tangent_without_gradients(solve: Solve) -> Tensor:
    with torch.no_grad():
        return tangent_of_dual_level(solve)


func = torch.func
FIRST: dict[str, Callable[[Solve], Tensor]] = {
    "grad": lambda f: func.grad(scalar(f))(WEIGHT),
    "vjp": lambda f: func.vjp(f, WEIGHT)[1](INPUTS)[0],
    "jvp": lambda f: func.jvp(f, (WEIGHT,), (TANGENT,))[1],
    "dual level": tangent_of_dual_level,
    "dual level without gradients": tangent_without_gradients,
    "jacrev": lambda f: func.jacrev(f)(WEIGHT),
    "jacfwd": lambda f: func.jacfwd(f)(WEIGHT),
    "jacobian": lambda f: functional.jacobian(f, WEIGHT),
    "is_grads_batched": lambda f: functional.jacobian(f, WEIGHT, vectorize=True),
    "vmap over parameters": lambda f: func.vmap(f)(WEIGHTS),
    "vmap over inputs": lambda f: func.vmap(f, (None, 0))(WEIGHT, INPUTS),
    "vmap over both": lambda f: func.vmap(func.vmap(f, (None, 0)), (0, None))(WEIGHTS, INPUTS),
    "vmap with other dimensions": lambda f: func.vmap(f, -1, out_dims=1)(WEIGHTS.movedim(0, -1)),
    "gradient of each sample": lambda f: func.vmap(func.grad(scalar(f)), (None, 0))(WEIGHT, INPUTS),
    "gradient through vmap": lambda f: func.grad(lambda w: func.vmap(lambda s: f(s * w))(SCALES).pow(2).sum())(WEIGHT),
    "jacrev through vmap": lambda f: func.jacrev(lambda w: func.vmap(lambda s: f(s * w))(SCALES))(WEIGHT),
    "vmap of jacrev": lambda f: func.vmap(func.jacrev(f))(WEIGHTS),
    "vmap of jacfwd": lambda f: func.vmap(func.jacfwd(f))(WEIGHTS),
    "jvp through vmap": lambda f: func.jvp(func.vmap(f), (WEIGHTS,), (WEIGHTS.sin(),))[1],
}
SECOND: dict[str, Callable[[Solve], Tensor]] = {
    "create_graph": gradient_of_the_gradient_norm,
    "hessian": lambda f: func.hessian(scalar(f))(WEIGHT),
    "reverse over reverse": lambda f: func.jacrev(func.jacrev(scalar(f)))(WEIGHT),
    "forward over forward": lambda f: func.jacfwd(func.jacfwd(scalar(f)))(WEIGHT),
    "reverse over forward": lambda f: func.grad(lambda w: func.jvp(scalar(f), (w,), (TANGENT,))[1])(WEIGHT),
    "functional.hessian": lambda f: functional.hessian(scalar(f), WEIGHT),
    "vectorized functional.hessian": lambda f: functional.hessian(scalar(f), WEIGHT, vectorize=True),
    "functional.jvp": lambda f: functional.jvp(f, WEIGHT, TANGENT)[1],
    "functional.hvp": lambda f: functional.hvp(scalar(f), WEIGHT, TANGENT)[1],
    "vmap of hessian": lambda f: func.vmap(func.hessian(scalar(f)))(WEIGHTS),
    "mixed": lambda f: func.jacfwd(func.jacrev(f, 0), 1)(WEIGHT, INPUTS[:1]),
}
COMMON_MODES = ("jvp", "gradient of each sample", "vmap of jacrev", "create_graph", "mixed")
"""Modes in which all estimators are tested."""


def each_mode(modes: dict[str, Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by estimator and mode."""
    cases = [(name, mode) for name in ENTRIES for mode in modes if name in IN_EVERY_MODE or mode in COMMON_MODES]
    return pytest.mark.parametrize(
        ("entry", "mode"), [pytest.param(ENTRIES[name], mode, id=f"{name}-{mode}") for name, mode in cases]
    )


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@each_mode(FIRST)
def test_first_derivatives_equal_those_of_bptt(entry: Entry, mode: str) -> None:
    with ignoring():
        assert error(FIRST[mode](solved_by(entry.exact)), FIRST[mode](unrolled)) < 1e-10


@each_mode(SECOND)
def test_second_derivatives_equal_those_of_bptt(entry: Entry, mode: str) -> None:
    with ignoring():
        assert error(SECOND[mode](solved_by(entry.exact, order=2)), SECOND[mode](unrolled)) < 1e-10


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("ExactAdjoint", mode) for mode in SECOND),
        # In other modes, taped steps have derivatives of any order.
        *(("BPTT", mode) for mode in SECOND if mode == "create_graph" or "functional" in mode),
    ],
)
def test_a_second_derivative_without_order_2_is_refused(name: str, mode: str) -> None:
    with ignoring(), pytest.raises(NotImplementedError, match="pass order=2") as refused:
        SECOND[mode](solved_by(ENTRIES[name].exact))
    assert "\n" not in str(refused.value)


def test_a_gradient_within_forward_mode_has_a_tangent_of_one_order_more() -> None:
    """PyTorch computes it with the gradient, so the error names the other remedy."""

    def dual(order: int) -> tuple[Tensor, Tensor]:
        weight, solve = WEIGHT.clone().requires_grad_(), solved_by(Implicit(GMRES(20, 1e-14), EXACT), order)
        return weight, scalar(solve)(forward_ad.make_dual(weight, TANGENT))

    with forward_ad.dual_level():
        weight, loss = dual(1)
        with pytest.raises(NotImplementedError, match=r"pass order=2 .* or .* outside of forward_ad\.dual_level"):
            torch.autograd.grad(loss, weight, retain_graph=True)
        other, deeper = dual(2)
        gradient = forward_ad.unpack_dual(torch.autograd.grad(deeper, other)[0])
        primal = forward_ad.unpack_dual(loss).primal
    exact = func.grad(scalar(unrolled))
    for found in (gradient.primal, torch.autograd.grad(primal, weight)[0]):
        assert error(found, exact(WEIGHT)) < 1e-10
    assert error(gradient.tangent, func.jvp(exact, (WEIGHT,), (TANGENT,))[1]) < 1e-10


@pytest.mark.parametrize("linear", ["exact", "gmres"])
def test_third_and_fourth_derivatives_of_a_scalar_match_the_closed_form(linear: str) -> None:
    """For h = w h^2 / 2 + 1/4."""
    solver = {"exact": Dense(), "gmres": GMRES(5, 1e-14)}[linear]

    def solve(weight: Tensor, order: int) -> Tensor:
        return Implicit(solver, EXACT)(
            lambda h: weight * h * h / 2 + 0.25, torch.zeros(1, dtype=torch.float64), order=order
        ).state[0]

    def closed(weight: Tensor) -> Tensor:
        return (1 - (1 - weight / 2).sqrt()) / weight

    for order in (1, 2, 3, 4):
        found = expected = None
        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        found, expected = solve(weight, order), closed(weight)
        for _ in range(order):
            (found,) = torch.autograd.grad(found, weight, create_graph=order > 1)
            (expected,) = torch.autograd.grad(expected, weight, create_graph=True)
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
        if order > 1:  # with order 1, create_graph itself is refused
            with pytest.raises(NotImplementedError, match=f"pass order={order + 1}"):
                torch.autograd.grad(found, weight)


@ONE_OF_EACH_KIND
def test_gradgradcheck(entry: Entry) -> None:
    def fixed_point(weight: Tensor, drive: Tensor) -> Tensor:
        return solved_by(entry.exact, order=2)(weight, drive)

    weight, drive = (tensor.detach().requires_grad_() for tensor in tanh_cell(3, norm=0.4, batch=1, size=2).tensors)
    with ignoring():
        assert torch.autograd.gradcheck(fixed_point, (weight, drive), nondet_tol=1e-10, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(fixed_point, (weight, drive), nondet_tol=1e-10, check_fwd_over_rev=True)


@settings(max_examples=15, deadline=None)
@given(cell=cells())
def test_second_derivatives_are_exact_for_any_cell(cell: Cell) -> None:
    def found(estimator: GradientEstimator) -> list[Tensor]:
        state = estimator(cell.update, cell.start, batch_dims=cell.batch_dims, order=2).state
        first = torch.autograd.grad(loss_of(state), cell.tensors, create_graph=True)
        return list(torch.autograd.grad(sum(one.square().sum() for one in first), cell.tensors))

    exact = found(BPTT(Picard(1000, 1e-15)))
    assert relative_error(found(ExactAdjoint(solver=EXACT)), exact) < 1e-9


@settings(max_examples=10, deadline=None)
@given(terms=st.integers(0, 8))
def test_the_error_of_derivatives_of_a_truncated_series_is_known(terms: int) -> None:
    """Each chord step with K terms multiplies the error by J^(K + 1), so two steps leave its square."""
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with ignoring():
        state = NeumannRBP(terms, EXACT)(lambda h: weight * h + 1, torch.zeros((), dtype=torch.float64), order=2).state
        (first,) = torch.autograd.grad(state, weight, create_graph=True)
        (second,) = torch.autograd.grad(first, weight)
    left = 0.5 ** (terms + 1)
    assert float(first.detach()) == pytest.approx(4 * (1 - left**2), rel=1e-9)
    assert abs(float(second) / 16 - 1) <= 2 * left + 1e-9


@pytest.mark.parametrize("tol", [0.0, 1e-12])
def test_bptt_differentiates_the_steps_of_its_solver(tol: float) -> None:
    estimator = BPTT(Damped(Picard(300 if tol else 20, tol), 0.4))
    weight = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def solve(weight: Tensor, order: int = 1) -> Tensor:
        return estimator(lambda h: weight * h + 1, torch.zeros((), dtype=torch.float64), order=order).state

    exact = torch.autograd.grad(solve(weight), weight)[0]
    (first,) = torch.autograd.grad(solve(weight, order=2), weight, create_graph=True)
    torch.testing.assert_close(first.detach(), exact)
    torch.testing.assert_close(func.grad(solve)(weight.detach()), exact)
    if tol:
        torch.testing.assert_close(torch.autograd.grad(first, weight)[0], 2 / (1 - weight.detach()) ** 3)


@pytest.mark.parametrize(
    "entry",
    [ENTRIES[name] for name in (*IN_EVERY_MODE, "CheckpointedBPTT", "CGRBP", "SHINE")],
    ids=lambda one: one.kind.__name__,
)
@pytest.mark.parametrize("mode", ["grad", "jvp", "dual level", "dual level without gradients", "vmap of jacfwd"])
def test_a_value_that_an_update_caches_is_differentiated(entry: Entry, mode: str) -> None:
    def solve(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
        kept: list[Tensor] = []

        def update(h: Tensor) -> Tensor:
            if not kept:
                kept.append(weight.sin())
            return step(h, kept[0], inputs)

        return entry.exact(update, torch.zeros_like(inputs), batch_dims=1).state

    def exact(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
        return unrolled(weight.sin(), inputs)

    with ignoring():
        assert error(FIRST[mode](solve), FIRST[mode](exact)) < 1e-10


@ONE_OF_EACH_KIND
def test_attention_has_second_derivatives(entry: Entry) -> None:
    weight = WEIGHT.clone().requires_grad_()

    def attend(h: Tensor) -> Tensor:
        tokens = (h @ weight)[:, None]
        return 0.5 * nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0] + 0.1 * h.tanh() + INPUTS

    def curvature(state: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(loss_of(state), weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    h = torch.zeros_like(INPUTS)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        for _ in range(STEPS):
            h = attend(h)
    with ignoring():
        found = entry.exact(attend, torch.zeros_like(INPUTS), order=2).state
        assert error(curvature(found), curvature(h)) < 1e-10


@pytest.mark.parametrize("estimator", [CGRBP(60, 1e-13, solver=EXACT), Implicit(GMRES(20, 1e-14), EXACT), BPTT(EXACT)])
@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_attention_works_within_transforms(estimator: GradientEstimator, mode: str) -> None:
    def attend(h: Tensor, weight: Tensor) -> Tensor:
        tokens = (h @ weight)[None, None]
        return 0.5 * nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[0, 0] + INPUTS

    def solve(weight: Tensor) -> Tensor:
        return estimator(lambda h: attend(h, weight) + 0.1 * h.tanh(), torch.zeros_like(INPUTS)).state

    def exact(weight: Tensor) -> Tensor:
        h = torch.zeros_like(INPUTS)
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            for _ in range(STEPS):
                h = attend(h, weight) + 0.1 * h.tanh()
        return h

    with ignoring():
        assert error(FIRST[mode](solve), FIRST[mode](exact)) < 1e-10


# --- the result


@EVERY_ESTIMATOR
def test_the_state_does_not_depend_on_the_order(entry: Entry) -> None:
    cell = pytree_cell(0)
    with ignoring():
        one, two = (entry.exact(cell.update, cell.start, batch_dims=1, order=order) for order in (1, 2))
    for leaf, other in zip(tree_leaves(one.state), tree_leaves(two.state), strict=True):
        torch.testing.assert_close(leaf, other, rtol=1e-14, atol=1e-15)
    assert two.status is one.status
    assert torch.equal(one.sample_status, two.sample_status)
    taken = {TBPTT: STEPS, BPTT: one.steps - 1, CheckpointedBPTT: one.steps - 1}.get(entry.kind, 2)
    assert two.steps - one.steps == taken


@EVERY_ESTIMATOR
def test_a_failing_sample_does_not_change_second_derivatives_of_others(entry: Entry) -> None:
    drive = torch.tensor([[0.1], [float("nan")], [-0.3]], dtype=torch.float64)

    def hessian(estimator: GradientEstimator, drive: Tensor) -> Tensor:
        weight = torch.full((len(drive), 1), 0.5, dtype=torch.float64, requires_grad=True)
        state = estimator(
            lambda h: torch.tanh(weight * h + drive), torch.zeros_like(drive), batch_dims=1, order=2
        ).state
        (first,) = torch.autograd.grad(state.sum(), weight, create_graph=True)
        return torch.autograd.grad(first.sum(), weight)[0]

    with ignoring():
        found, alone = hessian(entry.exact, drive), hessian(entry.exact, drive[[0, 2]])
    torch.testing.assert_close(found[[0, 2]], alone, rtol=1e-9, atol=0)


def test_the_results_of_a_solve_within_vmap_are_batched() -> None:
    seen: list[Any] = []

    def solve(weight: Tensor) -> Tensor:
        fixed_point = Implicit()(lambda h: step(h, weight, INPUTS), torch.zeros_like(INPUTS), batch_dims=1)
        seen.append(fixed_point.status)
        return fixed_point.residual + 0 * fixed_point.sample_steps

    residuals = func.vmap(solve)(WEIGHTS)
    assert residuals.shape == (3, 3)
    assert bool((residuals <= 1e-6).all())
    assert [status.value for status in seen] == ["converged"]


def test_failures_within_transforms_are_reported() -> None:
    def solve(weight: Tensor) -> Tensor:
        return NeumannRBP(2, Picard(8, 1e-9))(lambda h: weight * h + 1, torch.zeros(2)).state.sum()

    with pytest.warns(ConvergenceWarning) as caught:
        func.vmap(func.grad(solve))(torch.tensor([0.9, 0.5]))
    assert {"forward solve" in str(one.message) for one in caught} == {True, False}
    assert {one.filename for one in caught} == {__file__}


def test_the_adjoint_within_transforms_is_recorded() -> None:
    def loss(weight: Tensor) -> tuple[Tensor, Any]:
        fixed_point = Implicit(GMRES(10))(lambda h: step(h, weight, INPUTS), torch.zeros_like(INPUTS), batch_dims=1)
        return loss_of(fixed_point.state), fixed_point

    fixed_points = []

    def kept(weight: Tensor) -> Tensor:
        value, fixed_point = loss(weight)
        fixed_points.append(fixed_point)
        return value

    func.grad(kept)(WEIGHT)
    assert fixed_points[0].adjoint.converged


@EVERY_ESTIMATOR
def test_observers_see_solves_of_order_2_and_within_transforms(entry: Entry) -> None:
    radii = []

    class Radius(SolveObserver):
        def on_solve_end(self, fixed_point: Any, operator: Any) -> None:
            eigenvalues = torch.linalg.eigvals(operator.dense())
            radii.append(float(eigenvalues.abs().max()))

    def slope(value: Tensor) -> Tensor:
        return entry.exact(lambda h: value * h + 1, torch.zeros(1, dtype=torch.float64), order=2).state.sum()

    with ignoring(), observing(Radius):
        half = torch.tensor(0.5, dtype=torch.float64)
        func.grad(slope)(half)
        slope(half.clone().requires_grad_()).backward()
    assert radii == pytest.approx([0.5, 0.5])


# --- modules


class Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.4 * self.linear(h) + x)


@pytest.mark.parametrize("estimator", [Implicit(Dense(), EXACT), BPTT(EXACT)])
def test_an_ensemble_of_layers_by_functional_call_gets_each_layer_s_gradients(estimator: GradientEstimator) -> None:
    torch.manual_seed(0)
    layers = [FixedPointLayer(Tanh(), estimator) for _ in range(3)]
    parameters, buffers = func.stack_module_state(layers)

    def loss(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return loss_of(func.functional_call(layers[0], (parameters, buffers), (x,)))

    found = func.vmap(func.grad(loss), (0, 0, None))(parameters, buffers, INPUTS)
    for index, layer in enumerate(layers):
        exact = torch.autograd.grad(loss_of(layer(INPUTS)), list(layer.parameters()))
        assert relative_error([found[name][index].detach() for name in found], list(exact)) < 1e-10


def test_a_layer_passes_its_order_on() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(Tanh(), ExactAdjoint(solver=EXACT), order=2)
    x = INPUTS.clone().requires_grad_()

    def penalty(output: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), layer.cell.linear.weight)[0]

    h = torch.zeros_like(x)
    for _ in range(STEPS):
        h = layer.cell(h, x)
    assert error(penalty(layer(x)), penalty(h)) < 1e-10


def test_products_with_j_of_an_update_that_solves_are_right() -> None:
    """They need a second derivative of the inner solve, or forward mode."""

    def gradient(outer: GradientEstimator, order: int) -> Tensor:
        weight = WEIGHT.clone().requires_grad_()

        def update(h: Tensor) -> Tensor:
            return 0.5 * solved_by(ExactAdjoint(solver=EXACT), order)(weight, INPUTS + 0.5 * h)

        state = outer(update, torch.zeros_like(INPUTS), batch_dims=1).state
        return torch.autograd.grad(loss_of(state), weight)[0]

    exact = gradient(BPTT(Picard(STEPS, 1e-15)), 1)
    for order in (1, 2):
        assert error(gradient(CGRBP(60, 1e-13, solver=EXACT), order), exact) < 1e-9


# --- refused derivatives


def test_warm_starts_are_refused_within_transforms() -> None:
    with pytest.raises(UserError, match="warm_start"):
        func.grad(lambda w: Implicit()(lambda h: w * h, torch.zeros(2), warm_start=WarmStart()).state.sum())(
            torch.tensor(0.5)
        )


def test_an_update_needed_after_its_transform_has_ended_is_refused() -> None:
    cotangent = torch.ones_like(INPUTS)
    pull = func.vjp(solved_by(EquilibriumPropagation(solver=EXACT)), WEIGHT)[1]
    with ignoring(), pytest.raises(UserError, match="after the transform has ended"):
        pull(cotangent)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # raised by PyTorch
def test_tracing_a_solve_with_a_tolerance_is_refused() -> None:
    with pytest.raises(UserError, match="tol=0"):
        func.linearize(solved_by(Implicit()), WEIGHT)
    found = func.linearize(solved_by(BPTT(Picard(STEPS, tol=0))), WEIGHT)[1](TANGENT)
    assert error(found, FIRST["jvp"](unrolled)) < 1e-10


def test_a_penalty_is_refused_within_transforms() -> None:
    with pytest.raises(UserError, match=r"outside of torch\.func"):
        func.grad(lambda w: jacobian_penalty(lambda h: step(h, w, INPUTS), torch.zeros_like(INPUTS)))(WEIGHT)


def test_a_user_s_estimator_without_second_derivatives_refuses_order_2() -> None:
    class LastStep(GradientEstimator):
        def differentiate(self, solve: Any, record: Any) -> Any:
            vector = solve.without_tape(steps_after=1)
            return solve.freezing_failures(lambda: solve.last_steps(vector, 1))

    with pytest.raises(NotImplementedError, match="LastStep has only first derivatives"):
        solved_by(LastStep(), order=2)(WEIGHT.clone().requires_grad_())


@pytest.mark.parametrize("order", [0, -1, 1.5, "2"])
def test_an_invalid_order_is_refused(order: Any) -> None:
    with pytest.raises(UserError, match="order="):
        solved_by(Implicit(), order)(WEIGHT)


# --- every solver


@pytest.mark.parametrize("solver", SOLVERS)
def test_second_derivatives_are_right_with_every_forward_solver(solver: str) -> None:
    made = SOLVERS[solver].make(max_steps=1000, tol=1e-13)

    def solve(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
        return solved_by(Implicit(Dense(), made), order=2)(weight, inputs)

    with ignoring():
        assert error(SECOND["hessian"](solve), SECOND["hessian"](unrolled)) < 1e-9
        assert error(SECOND["create_graph"](solve), SECOND["create_graph"](unrolled)) < 1e-9


@pytest.mark.parametrize(
    "linear_solver",
    [
        Richardson(200, 1e-14),
        GMRES(20, 1e-14),
        BiCGSTAB(20, 1e-14),
        NormalCG(40, 1e-14),
        ConjugateGradient(20, 1e-14),
        Dense(),
        Direct(),
        AdaptiveNeumannSeries(1e-12, 400),
        FixedPointAdjoint(Auto(200, 1e-14)),
        FixedPointAdjoint(Anderson(200, 1e-14)),
        FixedPointAdjoint(Broyden(200, 1e-14)),
        Nystrom(2, 1e-12),
        NudgedAdjoint(1e-4, solver=Picard(1000, 1e-13)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_second_derivatives_are_right_with_every_linear_solver(linear_solver: LinearSolver) -> None:
    """For a cell with a symmetric Jacobian, which some solvers require."""

    def energetic(h: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
        return 0.5 * (h @ (weight + weight.T)) @ (weight + weight.T).T / 3 + 0.1 * h.tanh() + inputs

    def solve(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
        start = torch.zeros_like(inputs)
        return Implicit(linear_solver, EXACT)(
            lambda h: energetic(h, weight, inputs), start, inputs.dim() - 1, order=2
        ).state

    def plain(weight: Tensor, inputs: Tensor = INPUTS) -> Tensor:
        h = torch.zeros_like(inputs)
        for _ in range(300):
            h = energetic(h, weight, inputs)
        return h

    allowed = 1e-5 if isinstance(linear_solver, NudgedAdjoint) else 1e-9  # finite differences
    with ignoring():
        for mode in (FIRST["jvp"], FIRST["gradient of each sample"]):
            assert error(mode(solve), mode(plain)) < allowed
        assert error(SECOND["create_graph"](solve), SECOND["create_graph"](plain)) < allowed
