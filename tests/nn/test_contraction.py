"""Norm bounds and Jacobian penalties, against dense references in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from rbp_lightning import (
    FrobeniusNormBound,
    InfinityNormBound,
    NeumannRBP,
    Picard,
    SpectralNormBound,
    UserError,
    column_sum_penalty,
    jacobian_penalty,
)
from tests.cells import Cell, cells, tanh_cell

# numpy's name of the norm that each class bounds
NORMS = {SpectralNormBound: 2, FrobeniusNormBound: "fro", InfinityNormBound: np.inf}
BY_NAME = [pytest.param(kind, id=kind.__name__) for kind in NORMS]
PENALTIES = [pytest.param(penalty, id=penalty.__name__) for penalty in (jacobian_penalty, column_sum_penalty)]
SCALES = st.floats(-6, 6).map(lambda exponent: 10**exponent)
BOUNDS = st.floats(-3, 2).map(lambda exponent: 10**exponent)


def norm_of(kind: type, matrix: Tensor) -> float:
    return float(np.linalg.norm(matrix.detach().double().numpy(), NORMS[kind]))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Random matrices, some of low rank, with equal entries or with zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, columns, rank = (draw(st.integers(1, 8)) for _ in range(3))
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    matrix = left @ torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return matrix.round() if draw(st.booleans()) else matrix


# --- bounds


@pytest.mark.parametrize("kind", BY_NAME)
@settings(max_examples=60, deadline=None)
@given(matrix=matrices(), scale=SCALES, bound=BOUNDS)
def test_the_norm_is_reduced_to_the_bound_if_it_exceeds_it(
    kind: type, matrix: Tensor, scale: float, bound: float
) -> None:
    matrix = scale * matrix
    found = norm_of(kind, kind(bound)(matrix))
    assert found <= bound * (1 + 1e-12)
    assert found == pytest.approx(min(bound, norm_of(kind, matrix)), rel=1e-12)


@pytest.mark.parametrize("kind", [SpectralNormBound, FrobeniusNormBound])
@settings(max_examples=20, deadline=None)
@given(matrix=matrices(), scale=SCALES, bound=BOUNDS)
def test_spectral_and_frobenius_bounds_scale_the_whole_matrix(
    kind: type, matrix: Tensor, scale: float, bound: float
) -> None:
    matrix = scale * matrix
    factor = bound / max(bound, norm_of(kind, matrix))
    torch.testing.assert_close(kind(bound)(matrix), factor * matrix, rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(matrix=matrices(), scale=SCALES, bound=BOUNDS)
def test_the_infinity_bound_projects_every_row_onto_the_ball(matrix: Tensor, scale: float, bound: float) -> None:
    matrix = scale * matrix
    projection = InfinityNormBound(bound)(matrix)
    # p is the projection of w onto a convex set if (w - p) . (y - p) <= 0 for all y in the set. Over the ball the
    # product is largest at a corner, where y has one entry, +-bound.
    gap = matrix - projection
    largest = bound * gap.abs().amax(1) - (gap * projection).sum(1)
    assert bool((largest <= 1e-11 * bound * matrix.abs().amax(1)).all())


def test_the_projection_of_an_example() -> None:
    row = torch.tensor([[3.0, -2.0, 0.5, 0.0]], dtype=torch.float64)
    for bound, expected in [(1.0, [1.0, 0.0, 0.0, 0.0]), (4.0, [2.5, -1.5, 0.0, 0.0]), (5.2, [2.9, -1.9, 0.4, 0.0])]:
        found = InfinityNormBound(bound)(row)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", BY_NAME)
@settings(max_examples=40, deadline=None)
@given(matrix=matrices(), scale=SCALES, share=st.floats(0.0, 0.999))
def test_matrices_within_the_bound_and_their_gradients_are_unchanged(
    kind: type, matrix: Tensor, scale: float, share: float
) -> None:
    bound = max(norm_of(kind, matrix), 1e-3) * scale
    matrix = (share * scale * matrix).requires_grad_()
    bounded = kind(bound)(matrix)
    assert torch.equal(bounded, matrix)
    weights = torch.arange(1.0, 1 + matrix.numel(), dtype=matrix.dtype).reshape(matrix.shape)
    assert torch.equal(torch.autograd.grad((weights * bounded).sum(), matrix)[0], weights)


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_matrix_and_its_gradient_are_unchanged(kind: type, dtype: torch.dtype) -> None:
    matrix = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    bounded = kind(0.9)(matrix)
    bounded.sum().backward()
    assert torch.equal(bounded, torch.zeros(3, 4, dtype=dtype))
    assert torch.equal(matrix.grad, torch.ones(3, 4, dtype=dtype))


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("bound", [0.5, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_match_finite_differences(kind: type, bound: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kind(bound), matrix)


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_gradients_are_finite_for_equal_singular_values_and_entries(kind: type, scale: float) -> None:
    # As after orthogonal initialisation; scales below, at and above the bound.
    for matrix in (torch.eye(4), torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5, torch.ones(3, 3)):
        weight = (scale * matrix).requires_grad_()
        weights = torch.arange(1.0, 1 + weight.numel()).reshape(weight.shape)
        (gradient,) = torch.autograd.grad((weights * kind(1.0)(weight)).sum(), weight)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_the_bound_holds_up_to_rounding_in_low_precision(kind: type, dtype: torch.dtype, scale: float) -> None:
    matrix = (scale * torch.randn(48, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    bounded = kind(0.9)(matrix)
    assert bounded.dtype == dtype
    assert norm_of(kind, bounded) <= 0.9 * (1 + 4 * torch.finfo(dtype).eps)


def test_rounding_errors_are_relative_to_the_bound_not_to_the_weight() -> None:
    matrix = 1e6 * torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    matrix[0] = 1e6
    bounded = InfinityNormBound(1e-3)(matrix)
    np.testing.assert_allclose(bounded.abs().double().sum(1), 1e-3, rtol=1e-5)


# --- contractions


def normalized_adjacency(seed: int, nodes: int = 7) -> Tensor:
    """D^-1/2 (A + I) D^-1/2, whose largest eigenvalue, 1, has the eigenvector sqrt(degree)."""
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(nodes, nodes, generator=generator, dtype=torch.float64) < 0.3).double()
    edges[0] = 1  # a hub, which makes absolute column sums exceed 1
    edges = ((edges + edges.T + torch.eye(nodes, dtype=torch.float64)) > 0).double()
    root = edges.sum(1).rsqrt()
    return root[:, None] * edges * root


def distance(kind: type, one: Tensor, other: Tensor, adjacency: Tensor) -> float:
    """Distance of two states in the norm in which the bound makes an update a contraction; one node per row."""
    if kind is not InfinityNormBound:
        return float((one - other).norm())
    values, vectors = torch.linalg.eigh(adjacency)
    assert float(values[-1]) == pytest.approx(1, abs=1e-12)
    return float(((one - other) / vectors[:, -1:]).abs().max())


def bounded_linear(kind: type, bound: float, weight: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight.data = weight.clone()
    return register_parametrization(linear, "weight", kind(bound))


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("sparse", [False, True])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=SCALES,
    bound=st.floats(0.05, 0.9),
    activation=st.sampled_from([torch.tanh, torch.relu, torch.sin, lambda inputs: inputs]),
)
def test_a_bounded_weight_makes_a_contraction(
    kind: type, sparse: bool, seed: int, scale: float, bound: float, activation: Callable[[Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def randn(rows: int) -> Tensor:
        return torch.randn(rows, 4, generator=generator, dtype=torch.float64)

    adjacency = normalized_adjacency(seed)
    propagation = adjacency.to_sparse() if sparse else adjacency
    with torch.no_grad():
        weight = bounded_linear(kind, bound, scale * randn(4)).weight
        drive = randn(7)

        def update(state: Tensor) -> Tensor:
            return activation(propagation @ (state @ weight.T)) + drive

        for _ in range(5):
            one, other = randn(7), randn(7)
            # Iterating turns the difference towards the directions that contract least.
            for _ in range(4):
                before = distance(kind, one, other, adjacency)
                one, other = update(one), update(other)
                assert distance(kind, one, other, adjacency) <= bound * before * (1 + 1e-9) + 1e-13
        found = [NeumannRBP(solver=Picard(500, 1e-13))(update, spread * randn(7)) for spread in (0.0, 10.0)]
    assert all(fixed_point.converged for fixed_point in found)
    torch.testing.assert_close(found[0].state, found[1].state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", BY_NAME)
def test_the_rate_of_contraction_is_attained(kind: type) -> None:
    # So the norms of the test above are the right ones, and no smaller bound holds.
    adjacency = normalized_adjacency(0)
    weight = bounded_linear(kind, 0.7, torch.ones(4, 4, dtype=torch.float64)).weight.detach()
    slowest = torch.linalg.eigh(adjacency)[1][:, -1:] * torch.ones(1, 4, dtype=torch.float64)
    zeros = torch.zeros_like(slowest)
    ratio = distance(kind, adjacency @ slowest @ weight.T, zeros, adjacency) / distance(kind, slowest, zeros, adjacency)
    assert ratio == pytest.approx(0.7, rel=1e-12)


def test_training_a_parametrized_layer_stays_within_the_bound() -> None:
    for kind in NORMS:
        torch.manual_seed(0)
        linear = register_parametrization(nn.Linear(6, 6), "weight", kind(0.8))
        optimizer = torch.optim.SGD(linear.parameters(), lr=1.0)
        inputs, targets = torch.randn(32, 6), 3 * torch.randn(32, 6)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (linear(inputs) - targets).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert norm_of(kind, linear.weight) <= 0.8 * (1 + 1e-6)
        assert losses[-1] < losses[0]
        assert norm_of(kind, linear.parametrizations.weight.original) > 0.8


# --- penalties


def dense_jacobian(update: Callable[[Any], Any], state: Any) -> Tensor:
    """The Jacobian, one row per output, differentiable in the tensors that the update uses."""
    leaves, structure = tree_flatten(state)

    def flat(vector: Tensor) -> Tensor:
        parts = vector.split([leaf.numel() for leaf in leaves])
        pieces = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return torch.cat([leaf.reshape(-1) for leaf in tree_flatten(update(tree_unflatten(pieces, structure)))[0]])

    point = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
    return torch.autograd.functional.jacobian(flat, point, create_graph=True)


def randn_like(state: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype), state)


def gradients(penalty: Tensor, cell: Cell) -> list[Tensor]:
    return list(torch.autograd.grad(penalty, cell.tensors, materialize_grads=True))


@settings(max_examples=8, deadline=None)
@given(cell=cells(), seed=st.integers(0, 1000))
def test_the_jacobian_penalty_estimates_the_squared_frobenius_norm(cell: Cell, seed: int) -> None:
    state = randn_like(cell.start, seed)
    jacobian = dense_jacobian(cell.update, state).detach()
    gram = jacobian @ jacobian.T
    samples = 400
    found = jacobian_penalty(cell.update, state, samples, torch.Generator().manual_seed(seed))
    # For standard normal v, v^T G v has the mean tr G and the variance 2 ||G||_F^2.
    deviation = float(gram.norm()) * (2 / samples) ** 0.5
    assert abs(found.item() * len(jacobian) - float(gram.trace())) < 6 * deviation


def test_the_jacobian_penalty_converges_with_the_samples() -> None:
    # So many samples that no other norm or scaling would pass.
    cell = tanh_cell(0, norm=3.0, batch=1, size=3)
    jacobian = dense_jacobian(cell.update, cell.start).detach()
    gram = jacobian @ jacobian.T
    samples = 20_000
    found = jacobian_penalty(cell.update, cell.start, samples, torch.Generator().manual_seed(0))
    deviation = float(gram.norm()) * (2 / samples) ** 0.5 / 3
    assert deviation < 0.02 * found.item()
    assert found.item() == pytest.approx(float(jacobian.square().sum()) / 3, abs=5 * deviation)


@settings(max_examples=30, deadline=None)
@given(cell=cells(), seed=st.integers(0, 1000), samples=st.integers(1, 3))
def test_the_jacobian_penalty_and_its_gradient_equal_the_dense_ones(cell: Cell, seed: int, samples: int) -> None:
    state = randn_like(cell.start, seed)
    generator, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    jacobian = dense_jacobian(cell.update, state)
    leaves = tree_flatten(state)[0]
    expected = torch.zeros(())
    for _ in range(samples):
        draws = [torch.randn(leaf.shape, generator=same, dtype=leaf.dtype).reshape(-1) for leaf in leaves]
        expected = expected + (torch.cat(draws) @ jacobian).square().sum() / (samples * len(jacobian))
    found = jacobian_penalty(cell.update, state, samples, generator)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(found, cell), gradients(expected, cell), rtol=1e-9, atol=1e-12)


def test_probes_are_new_in_each_call_and_reproducible_by_seed() -> None:
    cell = tanh_cell(0)
    generator = torch.Generator().manual_seed(1)
    first, second = (jacobian_penalty(cell.update, cell.start, 1, generator) for _ in range(2))
    both = jacobian_penalty(cell.update, cell.start, 2, torch.Generator().manual_seed(1))
    assert first != second
    torch.testing.assert_close(both, (first + second) / 2, rtol=1e-12, atol=0)
    torch.manual_seed(1)
    torch.testing.assert_close(jacobian_penalty(cell.update, cell.start), first, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(cell=cells(), seed=st.integers(0, 1000), bound=st.floats(0.0, 1.0))
def test_the_column_sum_penalty_and_its_gradient_equal_the_dense_ones(cell: Cell, seed: int, bound: float) -> None:
    state = randn_like(cell.start, seed)
    sums = dense_jacobian(cell.update, state).sum(0)
    excess = torch.where(sums > bound, sums - bound, 0)
    found = column_sum_penalty(cell.update, state, bound)
    torch.testing.assert_close(found, torch.linalg.vector_norm(excess), rtol=1e-10, atol=1e-14)
    if found.item() > 1e-6:
        expected = gradients(excess.square().sum().sqrt(), cell)
        torch.testing.assert_close(gradients(found, cell), expected, rtol=1e-7, atol=1e-10)


def test_the_column_sum_penalty_sums_columns_not_rows() -> None:
    weight = torch.tensor([[1.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
    # Columns: 1.5 and 1; rows: 2 and 0.5.
    found = column_sum_penalty(lambda state: weight @ state, torch.zeros(2, dtype=torch.float64), bound=0.75)
    assert found.item() == pytest.approx((0.75**2 + 0.25**2) ** 0.5, rel=1e-14)


@pytest.mark.parametrize("slope", [-5.0, 0.0, 0.5])
def test_column_sums_up_to_the_bound_have_no_penalty_and_no_gradient(slope: float) -> None:
    scale = torch.tensor(slope, requires_grad=True)
    penalty = column_sum_penalty(lambda state: scale * state, torch.ones(3), bound=0.5)
    penalty.backward()
    assert penalty.item() == 0
    assert scale.grad.item() == 0
    # Just above the bound there are both.
    scale = torch.tensor(0.51, requires_grad=True)
    penalty = column_sum_penalty(lambda state: scale * state, torch.ones(3), bound=0.5)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.01 * 3**0.5, rel=1e-4)
    assert scale.grad.item() == pytest.approx(3**0.5, rel=1e-4)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_descent_on_a_penalty_lowers_the_dense_quantity(penalty: Callable[..., Tensor]) -> None:
    cell = tanh_cell(3, norm=4.0, batch=2, size=5)
    state = randn_like(cell.start, 0)

    def quantity() -> float:
        jacobian = dense_jacobian(cell.update, state).detach()
        if penalty is jacobian_penalty:
            return float(jacobian.square().sum()) / len(jacobian)
        return float((jacobian.sum(0) - 0.9).clamp_min(0).sum())

    torch.manual_seed(0)
    before = quantity()
    optimizer = torch.optim.SGD(cell.tensors, lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        penalty(cell.update, state).backward()
        optimizer.step()
    assert before > 0.5
    assert quantity() < 0.3 * before


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_treat_the_state_as_a_constant(penalty: Callable[..., Tensor]) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    start = torch.randn(4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    state = 2 * start
    found = penalty(lambda h: weight * h + h**3, state)
    assert torch.autograd.grad(found, start, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(found, weight)[0] != 0
    plain = torch.zeros(4)
    penalty(lambda h: weight * h, plain)
    assert not plain.requires_grad


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_of_updates_that_ignore_part_of_the_state(penalty: Callable[..., Tensor]) -> None:
    state = {"used": torch.ones(2), "unused": torch.ones(3), "constant": torch.ones(1)}

    def update(h: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"used": 2 * h["used"], "unused": torch.ones(3) + 0 * h["used"].sum(), "constant": torch.ones(1)}

    found = penalty(update, state)
    if penalty is column_sum_penalty:
        assert found.item() == pytest.approx(1.1 * 2**0.5)
    else:
        torch.manual_seed(0)
        deviation = (2 * 4**2 * 2 / 2000) ** 0.5 / 6  # J J^T has two eigenvalues of 4
        assert penalty(update, state, samples=2000).item() == pytest.approx(2 * 4 / 6, abs=5 * deviation)
    assert penalty(lambda h: torch.ones(2), torch.ones(2)).item() == 0
    assert penalty(lambda h: h, torch.ones(10_000)).item() == pytest.approx(
        1 if penalty is jacobian_penalty else 10, 0.1
    )


def test_leaves_are_paired_by_name() -> None:
    start = {"a": torch.zeros(1), "b": torch.zeros(1)}
    for swapped in (False, True):

        def update(s: dict[str, Tensor], swapped: bool = swapped) -> dict[str, Tensor]:
            following = {"a": 3 * s["a"] + s["b"], "b": 0.1 * s["b"]}
            return {"b": following["b"], "a": following["a"]} if swapped else following

        # Columns: 3 and 1.1.
        found = column_sum_penalty(update, start, bound=0.9)
        assert found.item() == pytest.approx((2.1**2 + 0.2**2) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_work_without_gradients_enabled(penalty: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    expected = penalty(lambda h: 2 * h, torch.zeros(3))
    torch.manual_seed(0)
    with torch.no_grad():
        found = penalty(lambda h: 2 * h, torch.zeros(3))
    assert found.item() == expected.item() > 0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_low_precision_is_summed_in_float32(penalty: Callable[..., Tensor]) -> None:
    # Summing ones stops at 256 in bfloat16, and overflows beyond 65504 in float16.
    for dtype in (torch.float16, torch.bfloat16):
        found = penalty(lambda h: 2 * h, torch.zeros(100_000, dtype=dtype))
        assert found.dtype == torch.float32
        expected = 4 if penalty is jacobian_penalty else 1.1 * 100_000**0.5
        # 5 standard deviations of the jacobian penalty are 0.022.
        assert found.item() == pytest.approx(expected, rel=0.022 + torch.finfo(dtype).eps)


# --- invalid arguments


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("bound", [0, 0.0, -1.0, float("inf"), float("nan"), "0.9", None, True])
def test_an_invalid_bound_is_refused(kind: type, bound: Any) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}: bound=.* must be a number"):
        kind(bound)


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 1, 1)])
def test_a_weight_that_is_not_a_matrix_is_refused(kind: type, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}: weight has shape .*must be a matrix"):
        kind(0.9)(torch.ones(shape))
    with pytest.raises(UserError, match="weight"):
        register_parametrization(nn.Conv2d(2, 2, 1), "weight", kind(0.9))


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, None])
def test_an_invalid_number_of_samples_is_refused(samples: Any) -> None:
    with pytest.raises(UserError, match=r"samples=.* must be a whole number of at least 1"):
        jacobian_penalty(torch.tanh, torch.zeros(2), samples=samples)


@pytest.mark.parametrize("bound", [-0.1, 1.5, float("nan"), "0.9", None])
def test_an_invalid_bound_of_column_sums_is_refused(bound: Any) -> None:
    with pytest.raises(UserError, match=r"bound=.* must be a number in \[0, 1\]"):
        column_sum_penalty(torch.tanh, torch.zeros(2), bound=bound)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("state", [torch.zeros(2, dtype=torch.long), {"a": 1.0}, ()])
def test_a_state_that_cannot_be_differentiated_is_refused(penalty: Callable[..., Tensor], state: Any) -> None:
    with pytest.raises(UserError, match="state"):
        penalty(lambda h: h, state)
