"""``held`` keeps random numbers, parametrized weights and functional parameters fixed over a solve."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_leaves

from rbp_lightning import (
    BPTT,
    CGRBP,
    ExactAdjoint,
    FixedPointLayer,
    GradientEstimator,
    Implicit,
    JacobianOperator,
    Picard,
    StochasticDepth,
    UserError,
    column_sum_penalty,
    contractive,
    held,
    jacobian_penalty,
)
from tests.cells import Cell, dense, loss_of, relative_error
from tests.contracts.test_estimator_contract import ESTIMATORS, EXACT

EVERY_ESTIMATOR = pytest.mark.parametrize("entry", ESTIMATORS.values(), ids=list(ESTIMATORS))
CG = CGRBP(100, 1e-14, solver=EXACT)
START = torch.zeros(3, 4, dtype=torch.float64)


class OnceDifferentiable(torch.autograd.Function):
    """0.5 sin without a second derivative, so products with J evaluate the update again in forward mode."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.save_for_forward(inputs)
        return 0.5 * inputs.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0.5 * gradient * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 0.5 * tangent * ctx.saved_tensors[0].cos()


class RandomCell(nn.Module):
    """A cell with a dropout module that is used twice, functional dropout, and stochastic depth."""

    def __init__(self, phi: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.linear = contractive(nn.Linear(4, 4), 0.4)
        self.drop = nn.Dropout(0.5)
        self.depth = StochasticDepth(0.3)
        self.phi = phi
        self.double()

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        branch = dropout(self.phi(self.linear(self.drop(h))), 0.2, self.training)
        return 0.5 * self.depth(self.drop(branch)) + x


def with_masks(cell: RandomCell, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The update with constant masks: those that its first application would draw from the current RNG state."""
    ones = torch.ones_like(x)
    before, within, after = (dropout(ones, p) for p in (0.5, 0.2, 0.5))
    kept = dropout(ones[:, :1], 0.3)
    return lambda h: 0.5 * kept * (after * within * cell.phi(cell.linear(before * h))) + x


def inputs(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()


def tensors_of(layer: FixedPointLayer, x: Tensor) -> list[Tensor]:
    return [x, *layer.parameters()]


def gradients(layer: FixedPointLayer, x: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return list(torch.autograd.grad(loss_of(layer(x)), tensors_of(layer, x)))


def exact_gradients(layer: FixedPointLayer, x: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return dense(Cell(with_masks(layer.cell, x), START, tensors_of(layer, x), 1)).gradients


def make_layer(estimator: GradientEstimator, phi: Callable[[Tensor], Tensor] = torch.tanh) -> FixedPointLayer:
    torch.manual_seed(3)
    return FixedPointLayer(RandomCell(phi), estimator)


# --- random numbers


@EVERY_ESTIMATOR
def test_every_estimator_gives_the_gradient_for_one_draw_of_the_masks(entry: Any) -> None:
    layer, x = make_layer(entry.exact), inputs()
    assert relative_error(gradients(layer, x, 0), exact_gradients(layer, x, 0)) < 1e-9


def test_products_that_evaluate_the_update_again_use_the_same_masks() -> None:
    layer, x = make_layer(CG, OnceDifferentiable.apply), inputs()
    assert relative_error(gradients(layer, x, 0), exact_gradients(layer, x, 0)) < 1e-9
    # The adjoint may be right even if products with J use other masks than products with J^T.
    operator = JacobianOperator.at(held(lambda h: layer.cell(h, x), layer.cell), START, batch_dims=1)
    left, right = torch.randn(2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.cell(START, x)  # draws new masks
    transposed, product = operator.vjp([left])[0], operator.jvp([right])[0]
    torch.testing.assert_close((transposed * right).sum(), (left * product).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [CG, BPTT(EXACT), ExactAdjoint(solver=EXACT)], ids=lambda one: type(one).__name__)
def test_two_solves_before_one_backward(estimator: GradientEstimator) -> None:
    layer, x = make_layer(estimator, OnceDifferentiable.apply), inputs()
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(layer(x))
    assert not torch.equal(*states)
    found = torch.autograd.grad(sum(loss_of(state) for state in states), tensors_of(layer, x))
    each = [exact_gradients(layer, x, seed) for seed in (0, 1)]
    assert relative_error(list(found), [one + other for one, other in zip(*each, strict=True)]) < 1e-9


def joint_gradients(inner: Callable[[Tensor, Tensor], Tensor], x: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Gradients of h = 0.3 s + x with s = inner(s, h), by BPTT through the joint iteration until it has converged."""
    h, s = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(200):
        h, s = 0.3 * s + x, inner(s, h)
    return list(torch.autograd.grad(loss_of(h), tensors))


class NestingCell(nn.Module):
    """A cell with dropout that solves an inner fixed point, with dropout as well."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.inner = FixedPointLayer(RandomCell(), ExactAdjoint(solver=EXACT))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.3 * self.inner(self.drop(h) + x) + x


@pytest.mark.parametrize("estimator", [ExactAdjoint(solver=EXACT), BPTT(EXACT)], ids=["ExactAdjoint", "BPTT"])
def test_nested_solves_each_keep_their_masks(estimator: GradientEstimator) -> None:
    torch.manual_seed(3)
    layer, x = FixedPointLayer(NestingCell(), estimator), inputs()
    torch.manual_seed(0)
    mask = dropout(torch.ones_like(x), 0.5)  # the outer update draws first
    after_outer = torch.get_rng_state()

    def inner(s: Tensor, h: Tensor) -> Tensor:
        torch.set_rng_state(after_outer)
        return with_masks(layer.cell.inner.cell, mask * h + x)(s)

    exact = joint_gradients(inner, x, tensors_of(layer, x))
    assert relative_error(gradients(layer, x, 0), exact) < 1e-9


def test_each_solve_draws_once_and_evaluations_do_not_draw() -> None:
    layer, x = make_layer(CG), inputs()
    torch.manual_seed(0)
    layer.cell(START, x)
    following = torch.rand(1)
    torch.manual_seed(0)
    first = layer(x)
    first.sum().backward()
    assert torch.equal(torch.rand(1), following)
    assert not torch.equal(layer(x), first)
    layer.eval()
    before = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_do_not_depend_on_memory_format_or_dtype() -> None:
    image = torch.randn(2, 3, 4, 4)
    update = held(drop := nn.Dropout(0.5), drop)
    first = update(image)
    assert torch.equal(update(image.to(memory_format=torch.channels_last)), first)
    assert torch.equal(update(image.double()), first)
    update = held(drop, drop)
    first = update(image.to(memory_format=torch.channels_last))
    assert torch.equal(update(image), first)


class ImageCell(nn.Module):
    """A channels-last convolution, which changes the memory format of the state, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = contractive(nn.Conv2d(3, 3, 3, padding=1), 0.4).to(memory_format=torch.channels_last)
        self.drop = nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.2))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.convolution(h))) + x


def test_a_cell_may_change_the_memory_format() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(ImageCell(), CGRBP(solver=Picard(200, 1e-6)))
    solved = layer.solve(torch.randn(2, 3, 6, 6))
    assert solved.converged
    solved.state.sum().backward()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_layer_with_dropout_can_be_copied_and_pickled(again: Callable[[Any], Any]) -> None:
    cell = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), StochasticDepth(0.5), nn.Tanh())
    nn.init.normal_(cell[0].weight, std=0.02)
    layer, start = FixedPointLayer(cell), torch.zeros(3, 4)
    layer(initial_state=start).sum().backward()
    other = again(layer)
    torch.manual_seed(0)
    expected = layer(initial_state=start)
    torch.manual_seed(0)
    assert torch.equal(other(initial_state=start), expected)


@pytest.mark.parametrize("penalty", [jacobian_penalty, column_sum_penalty])
def test_penalties_use_the_masks_of_the_solve(penalty: Callable[..., Tensor]) -> None:
    layer, x = make_layer(CG), inputs()
    torch.manual_seed(0)
    update = held(lambda h: layer.cell(h, x), layer.cell)
    state = CG(update, START, batch_dims=1).state
    torch.manual_seed(0)
    reference = with_masks(layer.cell, x)
    found = []
    for one in (update, reference):
        torch.manual_seed(1)  # for the probes
        value = penalty(one, state)
        found.append([value, *torch.autograd.grad(value, list(layer.parameters()), allow_unused=True)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# --- parametrized weights


class Counting(nn.Module):
    """A parametrization that counts how often it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.count += 1
        return 0.5 * weight / torch.linalg.matrix_norm(weight)


class CountedCell(nn.Module):
    def __init__(self, phi: Callable[[Tensor], Tensor] = OnceDifferentiable.apply) -> None:
        super().__init__()
        self.phi = phi
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.counting = Counting()
        register_parametrization(self.linear, "weight", self.counting)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.sum()  # the first access may be without gradients
        return self.phi(self.linear(h)) + x


def test_parametrized_weights_are_evaluated_once_per_solve() -> None:
    layer, x = FixedPointLayer(CountedCell(), CG), inputs()
    tensors = [x, *layer.parameters()]
    for _ in range(2):
        exact = dense(Cell(lambda h: layer.cell(h, x), START, tensors, 1)).gradients
        layer.cell.counting.count = 0
        found = torch.autograd.grad(loss_of(layer(x)), tensors)
        assert layer.cell.counting.count == 1
        assert relative_error(list(found), exact) < 1e-9
        with torch.no_grad():  # the next solve must see the change
            layer.cell.linear.parametrizations.weight.original.normal_()
    with torch.no_grad():
        layer.cell.counting.count = 0
        layer(x)
        assert layer.cell.counting.count == 1
    before = layer.cell.linear.weight
    assert layer.cell.counting.count == 2  # outside a solve each access evaluates it, as always
    torch.testing.assert_close(copy.deepcopy(layer).cell.linear.weight, before)


@pytest.mark.parametrize("order", [1, 2])
def test_held_weights_support_forward_mode(order: int) -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = contractive(nn.Linear(4, 4).double(), 0.5)

        def forward(self, h: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(h) + x)

    torch.manual_seed(0)
    layer, x = FixedPointLayer(Bounded(), ExactAdjoint(solver=EXACT), order=order), torch.randn(3, 4).double()
    parameters = {name: 9 * one.detach() for name, one in layer.named_parameters()}

    def state(parameters: Any) -> Tensor:
        return functional_call(layer, parameters, (x,))

    backward = torch.func.jacrev(state)(parameters)
    for name, jacobian in torch.func.jacfwd(state)(parameters).items():
        torch.testing.assert_close(jacobian, backward[name], rtol=1e-9, atol=1e-12)
    if order == 2:
        reverse, forward = (
            transform(torch.func.grad(lambda p: loss_of(state(p))))(parameters)
            for transform in (torch.func.jacrev, torch.func.jacfwd)
        )
        for left, right in zip(tree_leaves(reverse), tree_leaves(forward), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_weights_of_an_inner_solve_are_evaluated_once_per_outer_solve() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = FixedPointLayer(CountedCell(torch.tanh), ExactAdjoint(solver=EXACT))

        def forward(self, h: Tensor, x: Tensor) -> Tensor:
            return 0.3 * self.inner(h) + x

    layer, x = FixedPointLayer(Outer(), ExactAdjoint(solver=EXACT)), inputs()
    counted = layer.cell.inner.cell
    counted.counting.count = 0
    found = torch.autograd.grad(loss_of(layer(x)), tensors_of(layer, x))
    assert counted.counting.count == 1
    assert relative_error(list(found), joint_gradients(counted, x, tensors_of(layer, x))) < 1e-9


def test_pytorch_s_spectral_norm_takes_one_power_iteration_per_solve() -> None:
    torch.manual_seed(0)
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, dtype=torch.float64))
    start = torch.randn(3, 4, dtype=torch.float64)
    before = linear.parametrizations.weight[0]._u.clone()
    solved = FixedPointLayer(nn.Sequential(linear, nn.Tanh()), Implicit(solver=Picard(5, 0))).solve(initial_state=start)
    once = linear.parametrizations.weight[0]._u.clone()
    assert solved.steps == 5
    # One power iteration from the earlier vector.
    weight = linear.parametrizations.weight.original.detach()
    moved = nn.functional.normalize(weight @ nn.functional.normalize(weight.T @ before, dim=0), dim=0)
    torch.testing.assert_close(once, moved, rtol=1e-9, atol=1e-9)


def test_threads_hold_their_weights_separately() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(CountedCell(torch.tanh), CG)
    cases = [inputs(seed) for seed in range(8)]

    def gradient(x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss_of(layer(x)), tensors_of(layer, x)))

    one_by_one = [gradient(x) for x in cases]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(gradient, cases))
    for found, expected in zip(at_once, one_by_one, strict=True):
        assert relative_error(found, expected) < 1e-12


# --- parameters


def test_a_held_update_keeps_the_parameters_of_functional_call() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = CountedCell()

        def forward(self, x: Tensor) -> Callable[[Tensor], Tensor]:
            return held(lambda h: self.cell(h, x), self.cell)

    torch.manual_seed(0)
    module, x = Holding(), inputs()
    other = {name: torch.randn_like(one).requires_grad_() for name, one in module.named_parameters()}
    update = functional_call(module, other, (x,))
    expected = functional_call(module.cell, {name.removeprefix("cell."): one for name, one in other.items()}, (x, x))
    found = update(x)  # functional_call has restored the module's parameters
    assert torch.equal(found, expected)
    assert all(one is not None for one in torch.autograd.grad(found.sum(), list(other.values()), allow_unused=True))


# --- stochastic depth and invalid arguments


def test_stochastic_depth_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = StochasticDepth(0.3)
    branch = torch.randn(20_000, 2, 3)
    dropped = drop(branch)
    kept = dropped.flatten(1).norm(dim=1) > 0
    torch.testing.assert_close(dropped, branch / 0.7 * kept[:, None, None])
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=6 * (0.3 * 0.7 / 20_000) ** 0.5)
    assert torch.equal(drop.eval()(branch), branch)
    assert repr(drop) == "StochasticDepth(p=0.3)"
    assert torch.equal(StochasticDepth(1.0)(branch), torch.zeros_like(branch))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: StochasticDepth(1.5), "p=1.5"),
        (lambda: held(0.5, nn.Tanh()), "update=0.5 is not a function"),
        (lambda: held(torch.tanh, torch.tanh), "module=.* is not of type Module"),
        (lambda: CG(held(lambda h, x: h, nn.Tanh()), START), "does not take a state as its only argument"),
    ],
)
def test_invalid_arguments_are_refused(make: Callable[[], Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        make()
