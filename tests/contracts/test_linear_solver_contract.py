"""What every solver of the adjoint equation does. A new solver is a line in ``SOLVERS``."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten

from rbp_lightning import (
    Anderson,
    Auto,
    Broyden,
    Failure,
    FixedPointAdjoint,
    JacobianOperator,
    LinearSolution,
    LinearSolver,
    NudgedAdjoint,
    Picard,
    ReducedRankExtrapolation,
    Status,
    UserError,
    ignoring,
)
from rbp_lightning.estimators.describe import as_call, describe, from_description
from rbp_lightning.linear import (
    GMRES,
    AdaptiveNeumannSeries,
    BiCGSTAB,
    ConjugateGradient,
    DampedNeumannSeries,
    Dense,
    Direct,
    NeumannSeries,
    NormalCG,
    Nystrom,
    Richardson,
    StochasticNeumannSeries,
)
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers.shared_inverse import SharedInverse
from tests.cells import cells, dense, settle
from tests.recorded_failures import recorded_failures
from tests.zoo import BATCH, CONTRACTIONS, SIZE, Problem, named, rotation, solve_dense, symmetric


@dataclass
class Entry:
    """A solver to test.

    Attributes:
        exact: A solver that is accurate to rounding, or nearly.
        short: Makes a solver with a number of steps; ``None`` if it has no such argument.
        uses_start: Whether it uses the initial z that it is given.
        has_tol: Whether it has a tolerance.
        symmetric: Whether it requires a symmetric Jacobian, and reports others.
        slow: An accurate solver up to a spectral radius of 0.99, if ``exact`` has a fixed number of steps for 0.95.
    """

    exact: LinearSolver
    short: Callable[[int], LinearSolver] | None = None
    uses_start: bool = False
    has_tol: bool = True
    symmetric: bool = False
    slow: LinearSolver | None = None


SOLVERS = {
    "Richardson from g": Entry(
        Richardson(4000, 1e-13, "gradient"), lambda steps: Richardson(steps, 0.0, "gradient"), uses_start=True
    ),
    "Richardson from U[0, 1]": Entry(
        Richardson(4000, 1e-13, "uniform"), lambda steps: Richardson(steps, 0.0, "uniform"), uses_start=True
    ),
    "NeumannSeries": Entry(NeumannSeries(500), NeumannSeries, has_tol=False, slow=NeumannSeries(2100)),
    "DampedNeumannSeries": Entry(
        DampedNeumannSeries(550, 0.9),
        lambda steps: DampedNeumannSeries(steps, 0.9),
        has_tol=False,
        slow=DampedNeumannSeries(2300, 0.9),
    ),
    "SharedInverse": Entry(
        SharedInverse(300, 1e-13, 10.0, 10), lambda steps: SharedInverse(steps, 0.0, 10.0, 10), uses_start=True
    ),
    "NormalCG": Entry(NormalCG(300, 1e-13), lambda steps: NormalCG(steps, 0.0), uses_start=True),
    "ConjugateGradient": Entry(
        ConjugateGradient(300, 1e-13), lambda steps: ConjugateGradient(steps, 0.0), uses_start=True, symmetric=True
    ),
    "BiCGSTAB": Entry(BiCGSTAB(300, 1e-13), lambda steps: BiCGSTAB(steps, 0.0), uses_start=True),
    "GMRES": Entry(GMRES(300, 1e-13), lambda steps: GMRES(steps, 0.0), uses_start=True),
    "Dense": Entry(Dense()),
    "AdaptiveNeumannSeries": Entry(AdaptiveNeumannSeries(1e-10, 4000)),
    "StochasticNeumannSeries": Entry(
        StochasticNeumannSeries(500), StochasticNeumannSeries, has_tol=False, slow=StochasticNeumannSeries(2100)
    ),
    "Nystrom": Entry(Nystrom(100, 1e-13), has_tol=False, symmetric=True),
    "NudgedAdjoint": Entry(
        NudgedAdjoint(1e-5, solver=Picard(4000, 5e-9)),
        lambda steps: NudgedAdjoint(1e-5, solver=Picard(steps, 0.0)),
        uses_start=True,
        symmetric=True,
    ),
    "Direct by QR": Entry(Direct()),
    "Direct by GMRES": Entry(Direct(dense_size=0)),
    **{
        f"FixedPointAdjoint({kind.__name__})": Entry(
            FixedPointAdjoint(kind(4000, 1e-13)),
            lambda steps, kind=kind: FixedPointAdjoint(kind(steps, 0.0)),
            uses_start=True,
        )
        for kind in (Auto, Anderson, ReducedRankExtrapolation, Broyden)
    },
}

EVERY_SOLVER = pytest.mark.parametrize("entry", SOLVERS.values(), ids=list(SOLVERS))


@pytest.fixture(autouse=True)
def _ignore_failures() -> Iterator[None]:
    with ignoring():
        yield


class CountingOperator(JacobianOperator):
    """Counts products independently, including those of operators that it is re-evaluated as."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._calls: list[Vector] = []

    @property
    def counted(self) -> int:
        return len(self._calls)

    def vjp(self, cotangent: Vector) -> list[Tensor]:
        self._calls.append(cotangent)
        return super().vjp(cotangent)

    def jvp(self, tangent: Vector) -> list[Tensor]:
        self._calls.append(tangent)
        return super().jvp(tangent)


def operator_at(problem: Problem) -> tuple[CountingOperator, Tensor]:
    """The Jacobian at a problem's fixed point, as an operator and as one matrix per sample."""
    operator = CountingOperator.at(problem.update, problem.fixed_point, 1)
    return operator, JacobianOperator.at(problem.update, problem.fixed_point, 1).dense()


def linear(matrix: Tensor, batch: int = BATCH) -> tuple[CountingOperator, Tensor]:
    """The Jacobian of h <- h W, as an operator and as one matrix per sample."""
    operator = CountingOperator.at(lambda h: h @ matrix, torch.zeros(batch, len(matrix), dtype=matrix.dtype), 1)
    return operator, matrix.T.expand(batch, -1, -1)


def exact_adjoint(jacobian: Tensor, gradient: Tensor) -> Tensor:
    return solve_dense(torch.eye(jacobian.shape[-1], dtype=torch.float64) - jacobian.double().mT, gradient.double())


def errors(found: Tensor, exact: Tensor) -> Tensor:
    return (found - exact).norm(dim=-1) / exact.norm(dim=-1)


def true_residual(jacobian: Tensor, gradient: Tensor, found: Tensor) -> Tensor:
    left = gradient - found + (jacobian.mT @ found[..., None]).squeeze(-1)
    return left.norm(dim=-1) / gradient.norm(dim=-1)


def random_gradient(seed: int = 0, batch: int = BATCH, size: int = SIZE) -> Tensor:
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def is_unsuitable(entry: Entry, jacobian: Tensor, solution: LinearSolution, reported: list[Failure]) -> bool:
    """Whether the solver requires another kind of Jacobian and failed; checks that it reported this."""
    asymmetric = entry.symmetric and not torch.allclose(jacobian, jacobian.mT, atol=1e-12)
    assert (Failure.NOT_POSITIVE_DEFINITE in reported) == (asymmetric and not solution.converged)
    return asymmetric and not solution.converged


@EVERY_SOLVER
@pytest.mark.parametrize("problem", CONTRACTIONS, ids=lambda problem: problem.name)
def test_the_solution_equals_that_by_qr(entry: Entry, problem: Problem) -> None:
    operator, jacobian = operator_at(problem)
    gradient = random_gradient()
    with recorded_failures() as reported:
        solution = (entry.slow or entry.exact).solve(operator, [gradient])
    if is_unsuitable(entry, jacobian, solution, reported):
        return
    assert float(errors(solution.vector[0], exact_adjoint(jacobian, gradient)).max()) < 1e-8
    assert float(true_residual(jacobian, gradient, solution.vector[0]).max()) < 1e-8
    assert solution.converged or not entry.has_tol
    assert solution.residual.shape == (BATCH,)


@EVERY_SOLVER
@settings(max_examples=6, deadline=None)
@given(cell=cells())
def test_the_solution_is_exact_for_any_state(entry: Entry, cell) -> None:
    """Pytrees, gated and Hopfield networks, with and without a batch dimension."""
    state = settle(cell, 500)
    operator = JacobianOperator.at(cell.update, state, cell.batch_dims)
    reference = dense(cell)
    leaves = tree_flatten(state)[0]
    gradient = list(reference.gradient.split([leaf.numel() for leaf in leaves]))
    gradient = [flat.reshape(leaf.shape) for flat, leaf in zip(gradient, leaves, strict=True)]
    with recorded_failures() as reported:
        solution = entry.exact.solve(operator, gradient)
    if is_unsuitable(entry, reference.jacobian, solution, reported):
        return
    found = torch.cat([leaf.reshape(-1) for leaf in solution.vector])
    assert float((found - reference.adjoint).norm() / reference.adjoint.norm()) < 1e-8


@EVERY_SOLVER
@settings(max_examples=10, deadline=None)
@given(radius=st.floats(0.1, 0.95), seed=st.integers(0, 1000), steps=st.integers(1, 12), rotated=st.booleans())
def test_the_reported_residual_and_error_bound_the_true_ones(
    entry: Entry, radius: float, seed: int, steps: int, rotated: bool
) -> None:
    operator, jacobian = linear(rotation(radius) if rotated else symmetric(radius, seed=seed))
    gradient = random_gradient(seed)
    solver = entry.exact if entry.short is None else entry.short(steps)
    solution = solver.solve(operator, [gradient])
    residual = true_residual(jacobian, gradient, solution.vector[0])
    # For a contraction, the last term or change, which some solvers report, bounds the residual.
    assert bool((residual <= solution.residual * (1 + 1e-6) + 1e-12).all())
    assert bool((solution.residual * radius <= residual / 0.02 + 1e-9).all())
    error = errors(solution.vector[0], exact_adjoint(jacobian, gradient))
    if solution.error_bound is not None:
        assert bool((error <= solution.error_bound + 1e-12).all())
        assert bool((solution.error_bound <= 1e-10).all())
    if solution.error_estimate is not None and rotated:  # all modes decay at the same rate
        assert bool((error <= 3 * solution.error_estimate + 1e-12).all())


@EVERY_SOLVER
@pytest.mark.parametrize(("before", "warm"), [(0, True), (5, False)])
def test_products_are_counted(entry: Entry, before: int, warm: bool) -> None:
    operator, _ = linear(symmetric(0.9))
    for _ in range(before):
        operator.vjp([random_gradient(1)])
    start = [random_gradient(2)] if warm else None
    solution = entry.exact.solve(operator, [random_gradient()], start)
    assert solution.products == operator.counted - before > 0
    assert operator.products == operator.counted
    if entry.short is not None:
        for steps in (1, 4):
            assert entry.short(steps).solve(operator, [random_gradient()], start).steps == steps


def test_the_number_of_products_per_step() -> None:
    for steps in (1, 7):
        operator, _ = linear(symmetric(0.9))
        gradient = [random_gradient()]
        assert NeumannSeries(steps).solve(operator, gradient).products == steps
        assert Richardson(steps, 0.0).solve(operator, gradient).products == steps
        # One with J and one with J^T per step, and one with J^T for the true residual.
        assert NormalCG(steps, 0.0).solve(operator, gradient).products == 2 * steps + 1
        assert BiCGSTAB(steps, 0.0).solve(operator, gradient).products == 2 * steps + 1
        # Two check whether J is symmetric.
        assert ConjugateGradient(steps, 0.0).solve(operator, gradient).products == steps + 1 + 2
        assert GMRES(steps, 0.0).solve(operator, gradient).products == steps + (steps + SIZE - 1) // SIZE
        assert GMRES(steps, 0.0, restart=2).solve(operator, gradient).products == steps + (steps + 1) // 2
    assert NeumannSeries(0).solve(operator, gradient).products == 0
    assert Direct().solve(operator, gradient).products == Dense().solve(operator, gradient).products == SIZE + 1
    assert ConjugateGradient(9, 1e-6, 1).solve(operator, gradient).products <= SIZE + 2  # no check if it converges
    assert AdaptiveNeumannSeries(1e-6, contraction_factor=0.9).solve(operator, gradient).products < 160


@EVERY_SOLVER
def test_a_start_is_used_or_ignored(entry: Entry) -> None:
    operator, jacobian = linear(symmetric(0.9))
    gradient = random_gradient()
    exact = exact_adjoint(jacobian, gradient)
    cold = entry.exact.solve(operator, [gradient])
    warm = entry.exact.solve(operator, [gradient], [exact])
    if entry.uses_start:
        assert warm.steps < cold.steps
        assert float(errors(warm.vector[0], exact).max()) < 1e-10
    else:
        assert warm.products == cold.products
        torch.testing.assert_close(warm.vector[0], cold.vector[0], rtol=0, atol=0)
    anywhere = entry.exact.solve(operator, [gradient], [100 * random_gradient(5)])
    assert float(errors(anywhere.vector[0], exact).max()) < 1e-8


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_has_a_zero_adjoint(entry: Entry, dtype: torch.dtype) -> None:
    operator, _ = linear(symmetric(0.9).to(dtype))
    solution = entry.exact.solve(operator, [torch.zeros(BATCH, SIZE, dtype=dtype)])
    assert torch.equal(solution.vector[0], torch.zeros(BATCH, SIZE, dtype=dtype))
    assert solution.residual.tolist() == [0.0] * BATCH
    assert solution.converged


@EVERY_SOLVER
def test_a_sample_with_a_zero_gradient_does_not_change_others(entry: Entry) -> None:
    operator, jacobian = linear(symmetric(0.9))
    gradient = random_gradient()
    gradient[1] = 0
    solution = entry.exact.solve(operator, [gradient])
    assert torch.equal(solution.vector[0][1], torch.zeros(SIZE, dtype=torch.float64))
    keep = [0, 2]
    exact = exact_adjoint(jacobian[keep], gradient[keep])
    assert float(errors(solution.vector[0][keep], exact).max()) < 1e-8


@EVERY_SOLVER
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_relative_error_does_not_depend_on_the_scale_of_the_gradient(entry: Entry, scale: float) -> None:
    operator, jacobian = linear(symmetric(0.9))
    gradient = random_gradient()
    exact = exact_adjoint(jacobian, gradient)
    for solver in (entry.exact, *([] if entry.short is None else [entry.short(4)])):
        error = errors(solver.solve(operator, [gradient]).vector[0], exact)
        scaled = errors(solver.solve(operator, [scale * gradient]).vector[0] / scale, exact)
        torch.testing.assert_close(scaled, error, rtol=1e-6, atol=1e-11)


@EVERY_SOLVER
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_in_its_sample_and_is_not_converged(entry: Entry, bad: float) -> None:
    operator, jacobian = linear(symmetric(0.5))
    gradient = random_gradient()
    expected = entry.exact.solve(operator, [gradient])
    gradient[1, 2] = bad
    solution = entry.exact.solve(operator, [gradient])
    assert not bool(solution.vector[0][1].isfinite().all())
    assert not solution.converged
    keep = [0, 2]
    assert float(errors(solution.vector[0][keep], exact_adjoint(jacobian[keep], gradient[keep])).max()) < 1e-8
    assert solution.steps <= 2 * expected.steps


@EVERY_SOLVER
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_solve_without_a_finite_sample_soon_stops(entry: Entry, batch_dims: int) -> None:
    matrix, gradient = symmetric(0.5), random_gradient()
    operator = CountingOperator.at(lambda h: h @ matrix, torch.zeros_like(gradient), batch_dims)
    expected = entry.exact.solve(operator, [gradient])
    solution = entry.exact.solve(operator, [gradient * float("nan")])
    assert not solution.converged
    assert solution.steps <= expected.steps


@EVERY_SOLVER
def test_a_sample_that_overflows_does_not_keep_the_others_going(entry: Entry) -> None:
    slopes = torch.tensor([[1.0], [1e60], [1.0]], dtype=torch.float64)
    matrix, gradient = symmetric(0.5), random_gradient()
    operator = CountingOperator.at(lambda h: slopes * (h @ matrix), torch.zeros_like(gradient), 1)
    solution = entry.exact.solve(operator, [gradient])
    assert solution.steps <= 2 * entry.exact.solve(linear(matrix)[0], [gradient]).steps
    keep = [0, 2]
    exact = exact_adjoint(matrix.T.expand(2, -1, -1), gradient[keep])
    assert float(errors(solution.vector[0][keep], exact).max()) < 1e-8


@pytest.mark.parametrize(
    "solver",
    [
        Richardson(5, 1e-6),
        Richardson(5, 1e-6, "uniform"),
        NormalCG(2, 1e-6),
        ConjugateGradient(3, 1e-6),
        BiCGSTAB(2, 1e-6),
        GMRES(5, 1e-6),
        GMRES(10, 1e-6, 3),
        AdaptiveNeumannSeries(1e-6, 5),
    ],
    ids=as_call,
)
def test_too_few_steps_end_in_max_steps(solver: LinearSolver) -> None:
    operator, _ = linear(symmetric(0.97, 20))
    solution = solver.solve(operator, [random_gradient(size=20)])
    assert solution.status is Status.MAX_STEPS
    assert not solution.converged
    assert solution.worst > 1e-6


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
@settings(max_examples=8, deadline=None)
@given(radius=st.floats(0.1, 0.99), seed=st.integers(0, 1000), check_every=st.sampled_from([1, 10]))
@pytest.mark.parametrize(
    "kind", ["Richardson", "NormalCG", "ConjugateGradient", "BiCGSTAB", "GMRES", "GMRES(4)", "AdaptiveNeumannSeries"]
)
def test_a_tolerance_is_met_in_every_sample(kind: str, tol: float, radius: float, seed: int, check_every: int) -> None:
    solver = {
        "Richardson": Richardson(5000, tol, check_every=check_every),
        "NormalCG": NormalCG(300, tol, check_every),
        "ConjugateGradient": ConjugateGradient(300, tol, check_every),
        "BiCGSTAB": BiCGSTAB(300, tol, check_every),
        "GMRES": GMRES(300, tol, 20, check_every),
        "GMRES(4)": GMRES(900, tol, 4, check_every),
        "AdaptiveNeumannSeries": AdaptiveNeumannSeries(tol, 5000, check_every=check_every),
    }[kind]
    # Samples with gradients of different scales, and one with a small Jacobian.
    scales = torch.tensor([[1.0], [0.1], [0.9]], dtype=torch.float64)
    matrix = symmetric(radius, seed=seed)
    operator = CountingOperator.at(lambda h: scales * (h @ matrix), torch.zeros(BATCH, SIZE, dtype=torch.float64), 1)
    jacobian = scales[..., None] * matrix.T
    gradient = random_gradient(seed) * torch.tensor([[1e-9], [1.0], [1e3]], dtype=torch.float64)
    solution = solver.solve(operator, [gradient])
    assert solution.status is Status.CONVERGED
    assert float(true_residual(jacobian, gradient, solution.vector[0]).max()) <= tol * (1 + 1e-6) * 2
    if kind == "AdaptiveNeumannSeries":
        bounded = ~solution.error_bound.isnan()  # for other samples it falls back to a Krylov method
        assert bool((errors(solution.vector[0], exact_adjoint(jacobian, gradient))[bounded] <= tol).all())
        assert radius > 0.8 or bool(bounded.all())


@pytest.mark.parametrize("tol", [1e-6, 1e-9])
@pytest.mark.parametrize("solver", [NormalCG, ConjugateGradient, BiCGSTAB, GMRES], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
def test_a_krylov_solve_that_stalls_at_rounding_stops(solver: type, radius: float, tol: float) -> None:
    """Near spectral radius 1, float32 cannot reach a tolerance of 1e-6."""
    matrix = symmetric(radius, 40).float()
    operator, jacobian = linear(matrix)
    gradient = random_gradient(size=40)
    solution = solver(5000, tol).solve(operator, [gradient.float()])
    assert solution.converged
    assert solution.steps < 3000
    error = errors(solution.vector[0].double(), exact_adjoint(jacobian, gradient.float()))
    assert float(error.max()) < max(tol, 16 * torch.finfo(torch.float32).eps) / (1 - radius)


@pytest.mark.parametrize(
    "make",
    [lambda tol: Richardson(5000, tol), lambda tol: FixedPointAdjoint(Auto(5000, tol))],
    ids=["Richardson", "FixedPointAdjoint(Auto)"],
)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(radius=st.floats(0.1, 0.99), seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_an_iteration_that_stalls_at_rounding_stops(
    make: Callable[[float], LinearSolver], radius: float, seed: int, dtype: torch.dtype
) -> None:
    epsilon = torch.finfo(dtype).eps
    operator, jacobian = linear(symmetric(radius, 40, seed).to(dtype))
    gradient = random_gradient(seed, size=40).to(dtype)
    solution = make(epsilon / 100).solve(operator, [gradient])
    assert solution.converged
    # Until the residual is at rounding, and then 30 steps and three checks, or a tenth of the steps.
    assert solution.steps < 1.5 * math.log(epsilon) / math.log(radius) + 150
    error = errors(solution.vector[0].double(), exact_adjoint(jacobian, gradient))
    assert float(error.max()) < 16 * epsilon / (1 - radius)


@EVERY_SOLVER
def test_a_solver_can_be_copied_pickled_and_described(entry: Entry) -> None:
    operator, _ = linear(symmetric(0.5))
    gradient = random_gradient()
    expected = entry.exact.solve(operator, [gradient]).vector[0]
    for other in (
        copy.deepcopy(entry.exact),
        pickle.loads(pickle.dumps(entry.exact)),
        from_description(describe(entry.exact), LinearSolver),
    ):
        assert as_call(other) == as_call(entry.exact)
        torch.testing.assert_close(other.solve(operator, [gradient]).vector[0], expected, rtol=0, atol=0)


@EVERY_SOLVER
def test_a_solve_does_not_change_the_solver_and_its_arguments(entry: Entry) -> None:
    operator, _ = linear(symmetric(0.9))
    gradient, start, before = random_gradient(), random_gradient(1), dict(vars(entry.exact))
    kept = gradient.clone(), start.clone()
    entry.exact.solve(operator, [gradient], [start])
    assert vars(entry.exact) == before
    assert torch.equal(gradient, kept[0])
    assert torch.equal(start, kept[1])


def test_the_random_start_depends_only_on_the_solver_s_seed() -> None:
    operator, _ = linear(symmetric(0.9))
    gradient = [random_gradient()]
    torch.manual_seed(0)
    untouched = torch.random.get_rng_state()
    first, again = (Richardson(3, 0.0, "uniform", seed=5).solve(operator, gradient).vector[0] for _ in range(2))
    other = Richardson(3, 0.0, "uniform", seed=6).solve(operator, gradient).vector[0]
    assert torch.equal(torch.random.get_rng_state(), untouched)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NeumannSeries(-1),
        lambda: NeumannSeries(2.5),
        lambda: DampedNeumannSeries(0),
        lambda: DampedNeumannSeries(damping=0.0),
        lambda: DampedNeumannSeries(damping=1.1),
        lambda: SharedInverse(-1, 0.0, 10.0, 10),
        lambda: SharedInverse(5, -1.0, 10.0, 10),
        lambda: SharedInverse(5, 0.0, 0.5, 10),
        lambda: SharedInverse(5, 0.0, 10.0, 0),
        lambda: Richardson(tol=-1.0),
        lambda: Richardson(tol=float("nan")),
        lambda: Richardson(start="zeros"),
        lambda: Richardson(seed=-1),
        lambda: NormalCG(steps=0),
        lambda: NormalCG(check_every=0),
        lambda: ConjugateGradient(tol=-1.0),
        lambda: BiCGSTAB(steps=0),
        lambda: GMRES(steps=0),
        lambda: GMRES(tol=float("inf")),
        lambda: GMRES(restart=0),
        lambda: GMRES(check_every=0),
        lambda: Dense(max_size=0),
        lambda: StochasticNeumannSeries(-1),
        lambda: Nystrom(rank=0),
        lambda: Nystrom(damping=0.0),
        lambda: Nystrom(seed=-1),
        lambda: AdaptiveNeumannSeries(tol=0.0),
        lambda: AdaptiveNeumannSeries(max_steps=0),
        lambda: AdaptiveNeumannSeries(contraction_factor=1.0),
        lambda: AdaptiveNeumannSeries(norm_steps=0),
        lambda: AdaptiveNeumannSeries(fallback="none"),
        lambda: AdaptiveNeumannSeries(check_every=0),
        lambda: Direct(dense_size=-1),
        lambda: Direct(max_products=0),
    ],
)
def test_arguments_are_checked_at_once(make) -> None:
    with pytest.raises(
        UserError,
        match=r"(\w*NeumannSeries|SharedInverse|Richardson|NormalCG|ConjugateGradient|BiCGSTAB|GMRES|Dense|Direct|Nystrom)"
        r": \w+=",
    ):
        make()


def test_the_status_of_a_solution_follows_bound_estimate_and_residual() -> None:
    residual, nan = torch.tensor([0.1, 0.2]), torch.tensor([float("nan"), 0.01])
    assert LinearSolution([], 3, 3, residual, tol=0.25).converged
    assert not LinearSolution([], 3, 3, residual, tol=0.15).converged
    assert not LinearSolution([], 3, 3, residual).converged
    assert LinearSolution([], 3, 3, residual, 0.01, error_estimate=torch.tensor([0.01, 0.0])).converged
    assert LinearSolution([], 3, 3, residual, 0.15, error_bound=nan).converged  # without a bound the residual counts
    assert not LinearSolution([], 3, 3, residual, 0.05, error_bound=nan).converged
    assert not LinearSolution([], 3, 3, torch.tensor([float("nan"), 0.0]), tol=1.0).converged
    assert LinearSolution([], 3, 3, residual, tol=1e-9, known=Status.STALLED).converged
    assert LinearSolution([], 3, 3, residual, tol=0.1, floor=torch.tensor([0.0, 0.3])).status is Status.STALLED
    assert LinearSolution([], 3, 3, residual, tol=0.1, floor=torch.tensor([0.0, 0.15])).status is Status.MAX_STEPS


# --- conjugate gradients


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.floats(0.1, 0.95), batched=st.booleans())
def test_the_residual_of_normal_cg_is_the_true_one_and_decreases(seed: int, radius: float, batched: bool) -> None:
    matrix, gradient = symmetric(radius, seed=seed), random_gradient(seed)
    operator = JacobianOperator.at(lambda h: h @ matrix, torch.zeros_like(gradient), int(batched))
    last = torch.ones(BATCH if batched else ())
    for steps in range(1, SIZE + 2):
        solution = NormalCG(steps, 0.0).solve(operator, [gradient])
        left = gradient - solution.vector[0] + solution.vector[0] @ matrix.T
        residual = left.norm(dim=1) / gradient.norm(dim=1) if batched else left.norm() / gradient.norm()
        torch.testing.assert_close(solution.residual, residual, atol=1e-9, rtol=1e-6)
        assert bool((residual <= last + 1e-12).all())
        last = residual
    if batched:  # as many steps as unknowns of a sample give the solution
        assert float(last.max()) < 1e-6


def test_normal_cg_returns_the_iterate_that_met_the_tolerance() -> None:
    operator, _ = operator_at(named("tanh 0.9"))
    gradient = [random_gradient()]
    solution = NormalCG(50, 1e-4, check_every=1).solve(operator, gradient)
    before = NormalCG(solution.steps - 1, 0.0).solve(operator, gradient)
    assert float(solution.residual.max()) <= 1e-4 < float(before.residual.max())


def test_normal_cg_stops_at_rounding() -> None:
    """Further steps would divide by vanishing inner products."""
    torch.manual_seed(0)
    weight = torch.full((64, 64), 0.8 / 64) + 0.01 * torch.randn(64, 64) / 8
    operator, _ = linear(weight, 20)
    gradient = [torch.randn(20, 64)]
    short, long = (NormalCG(steps, 0.0).solve(operator, gradient).vector[0] for steps in (60, 600))
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-5)


def test_direct_is_exact_for_many_unknowns_with_several_threads() -> None:
    """``torch.linalg.solve`` returned wrong results for more than 160 unknowns with two threads."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 200, generator=generator, dtype=torch.float64) / 200**0.5 * 0.9
    operator, _ = linear(weight, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        solution = Direct().solve(operator, [torch.ones(1, 200, dtype=torch.float64)])
    finally:
        torch.set_num_threads(threads)
    assert float(solution.residual.max()) < 1e-11
    assert solution.converged
