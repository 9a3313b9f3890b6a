"""What every forward solver does. A new solver is a line in ``SOLVERS``."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import (
    BPTT,
    TBPTT,
    Anderson,
    Auto,
    Broyden,
    Damped,
    ExactAdjoint,
    FixedPoint,
    FixedPointSolver,
    GradientEstimator,
    NeumannRBP,
    NewtonKrylov,
    Picard,
    ReducedRankExtrapolation,
    SolveObserver,
    Status,
    UserError,
    ignoring,
    observing,
)
from rbp_lightning.estimators import describe
from rbp_lightning.estimators.options import Options
from rbp_lightning.estimators.traced_solve import traced_solve
from tests.cells import Cell, cells, settle
from tests.zoo import ALL, CONTRACTIONS, Problem, draw, drive, named, newton, solve_dense, symmetric, zeros


@dataclass
class Entry:
    """A solver to test.

    Attributes:
        make: Makes a solver from options.
        statuses: Its status for problems that end differently from Picard iteration; ``None`` for any failure.
        checks_matter: Whether its iterates depend on the steps at which they are checked.
        tapes: Whether its steps can be taped.
        stays: Whether it converges to an unstable fixed point near the initial state.
    """

    make: Callable[..., FixedPointSolver]
    statuses: dict[str, Status | None] = field(default_factory=dict)
    checks_matter: bool = False
    tapes: bool = True
    stays: bool = False


EXPANDING = dict.fromkeys(("limit cycle", "expanding", "expanding rotation"), Status.CONVERGED)
SOLVERS = {
    "Picard": Entry(Picard),
    "Damped": Entry(
        lambda **options: Damped(Picard(**options)),
        {"limit cycle": Status.CONVERGED, "expanding rotation": Status.CONVERGED},
    ),
    "Anderson": Entry(Anderson, EXPANDING | {"overflowing": None}, tapes=False, stays=True),
    "ReducedRankExtrapolation": Entry(ReducedRankExtrapolation, EXPANDING, tapes=False, stays=True),
    "Broyden": Entry(Broyden, EXPANDING | {"overflowing": None}, tapes=False, stays=True),
    "NewtonKrylov": Entry(NewtonKrylov, EXPANDING | {"overflowing": None}, tapes=False, stays=True),
    "Auto": Entry(Auto, checks_matter=True, tapes=False),
}
TAPED = [name for name, entry in SOLVERS.items() if entry.tapes]

EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS)
EVERY_PROBLEM = pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
CHECKS = st.sampled_from([1, 3, 7, 10, 25, 60])


def run(
    solver: FixedPointSolver, update: Any, start: Any, batch_dims: int = 1, taped: bool = False, **options: Any
) -> FixedPoint:
    """Solves without warnings of failures."""
    with torch.set_grad_enabled(taped), ignoring():
        return NeumannRBP(0, solver)(update, start, batch_dims=batch_dims, **options)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@EVERY_SOLVER
@pytest.mark.parametrize("taped", [False, True], ids=["plain", "taped"])
@pytest.mark.parametrize("problem", CONTRACTIONS, ids=lambda problem: problem.name)
def test_finds_the_fixed_point(solver: str, taped: bool, problem: Problem) -> None:
    entry = SOLVERS[solver]
    found = run(entry.make(max_steps=20_000, tol=1e-9), problem.update, problem.start, taped=taped)
    assert found.converged
    assert found.sample_status.tolist() == [Status.CONVERGED.code] * 3
    if problem.name == "bistable" and entry.stays:
        return
    error = (found.state.detach() - problem.fixed_point).norm() / (
        1 if problem.name == "at zero" else problem.fixed_point.norm()
    )
    assert float(error) < 1e-6  # a residual of 1e-9, amplified at spectral radius 0.99 and by damping
    assert bool((found.absolute_residual <= 1e-9 * found.state.norm(dim=1).clamp_min(1e-3)).all())


@EVERY_SOLVER
@settings(max_examples=6, deadline=None)
@given(cell=cells())
def test_finds_the_dense_solution_for_any_state(solver: str, cell: Cell) -> None:
    """Pytrees, gated and Hopfield networks, with and without a batch dimension."""
    leaves, structure = tree_flatten(settle(cell, 100))

    def flat(state: Any) -> Tensor:
        return torch.cat([leaf.reshape(-1) for leaf in tree_flatten(state)[0]])

    def update(vector: Tensor) -> Tensor:
        parts = vector.split([leaf.numel() for leaf in leaves])
        pieces = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return flat(cell.update(tree_unflatten(pieces, structure)))

    exact = newton(update, flat(leaves), 4).detach()
    found = run(SOLVERS[solver].make(max_steps=2000, tol=1e-10), cell.update, cell.start, cell.batch_dims)
    assert found.status is Status.CONVERGED
    assert relative_error(flat(found.state), exact) < 1e-8


@EVERY_SOLVER
def test_two_solves_give_the_same_bits(solver: str) -> None:
    problem = named("tanh 0.9")
    made = SOLVERS[solver].make(max_steps=1000, tol=1e-8)
    one, other = (run(made, problem.update, problem.start) for _ in range(2))
    assert torch.equal(one.state, other.state)
    assert torch.equal(one.residual, other.residual)
    assert one.steps == other.steps


@EVERY_SOLVER
def test_a_start_at_the_solution_is_returned_at_once(solver: str) -> None:
    problem = named("tanh 0.9")
    found = run(SOLVERS[solver].make(tol=1e-6, check_every=1), problem.update, problem.fixed_point)
    assert found.status is Status.CONVERGED
    assert found.steps == 1
    assert torch.equal(found.state, problem.fixed_point)


@EVERY_SOLVER
def test_the_leaves_of_a_state_may_have_two_dtypes(solver: str) -> None:
    rates = torch.linspace(0.1, 0.9, 4)

    def update(state: dict[str, Tensor]) -> dict[str, Tensor]:
        wide = rates.double() * state["wide"] + 1
        return {"narrow": rates * state["narrow"] + 0.1 * state["wide"].float(), "wide": wide}

    start = {"narrow": torch.zeros(3, 4), "wide": torch.zeros(3, 4, dtype=torch.float64)}
    found = run(SOLVERS[solver].make(max_steps=1000, tol=1e-5), update, start)
    assert found.converged
    wide = (1 / (1 - rates.double())).expand(3, 4)
    exact = {"narrow": (0.1 * wide / (1 - rates.double())).float(), "wide": wide}
    torch.testing.assert_close(found.state, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("solver", [name for name, entry in SOLVERS.items() if not entry.checks_matter])
def test_reads_no_more_values_from_the_device_than_picard(solver: str) -> None:
    """In as many steps. Those of ``Auto``, which decides at checks, are counted in its own tests."""
    matrix, inputs = symmetric(0.999, 40), draw(8, 40, seed=0)
    reads = {}
    for name in ("Picard", solver):
        made = SOLVERS[name].make(max_steps=60, tol=1e-14)
        counts = []
        for _ in range(6):  # the first solves of a line run additional spot checks
            with CountSyncs() as counter:
                found = run(made, lambda h: torch.tanh(h @ matrix + 0.1 * inputs), torch.zeros(8, 40).double())
            counts.append(counter.count)
        assert found.steps == 60
        reads[name] = min(counts)
    # The checks of these two come with their cycles, at most ten steps apart; Picard's may be twice as far apart.
    in_cycles = solver in ("ReducedRankExtrapolation", "NewtonKrylov")
    assert reads[solver] <= (60 // 10 if in_cycles else reads["Picard"])


@EVERY_SOLVER
@EVERY_PROBLEM
def test_each_problem_ends_with_its_status(solver: str, problem: Problem) -> None:
    entry = SOLVERS[solver]
    expected = entry.statuses.get(problem.name, problem.status)
    if entry.checks_matter and problem.name in EXPANDING:
        pytest.skip("may diverge like Picard iteration or find the fixed point")
    # Enough steps for the change of an expanding problem to exceed the first one, too few to overflow.
    for taped in (False, True):
        for batch_dims in (0,) if problem in CONTRACTIONS else (0, 1):  # the test above has batch_dims=1 for these
            options = {"max_steps": 5000 if expected is Status.CONVERGED else 400, "tol": 1e-8}
            found = run(entry.make(**options), problem.update, problem.start, batch_dims, taped)
            if expected is not None:
                assert found.status is expected, (taped, batch_dims)
                assert found.samples(expected).all()
            assert found.converged == (expected is Status.CONVERGED)
            assert found.residual.shape == found.absolute_residual.shape == problem.start.shape[:batch_dims]


@EVERY_SOLVER
@pytest.mark.parametrize("tol", [0.0, 1e-6])
@settings(max_examples=12, deadline=None)
@given(
    problem=st.sampled_from(ALL), checks=st.tuples(CHECKS, CHECKS), max_steps=st.integers(2, 80), taped=st.booleans()
)
def test_status_and_state_do_not_depend_on_check_every(
    solver: str, tol: float, problem: Problem, checks: tuple[int, int], max_steps: int, taped: bool
) -> None:
    found = [
        run(
            SOLVERS[solver].make(max_steps=max_steps, tol=tol, check_every=every),
            problem.update,
            problem.start,
            taped=taped,
        )
        for every in checks
    ]
    one, other = found
    if SOLVERS[solver].checks_matter and not (one.converged and other.converged):
        return
    assert one.sample_status.tolist() == other.sample_status.tolist()
    if one.status is Status.CONVERGED:  # one of them may have taken more steps
        torch.testing.assert_close(one.state, other.state, rtol=1e-4, atol=1e-8)
    elif one.status is Status.MAX_STEPS:
        torch.testing.assert_close(one.state, other.state, rtol=0, atol=0)
        assert one.steps == other.steps


@EVERY_SOLVER
@pytest.mark.parametrize("tol", [0.0, 1e-9])
def test_a_solve_that_runs_out_of_steps_ends_alike_with_and_without_gradients(solver: str, tol: float) -> None:
    problem, at, close = named("linear 0.9"), [1, 3, 6], {"rtol": 1e-11, "atol": 1e-14}
    for max_steps in range(1, 8):
        made = SOLVERS[solver].make(max_steps=max_steps, tol=tol)
        plain = run(made, problem.update, problem.start, states_at=at)
        assert plain.steps == max_steps
        for estimator, order in itertools.product((NeumannRBP(0, made), TBPTT(1, made)), (1, 2)):
            with ignoring():
                taped = estimator(problem.update, problem.start, batch_dims=1, states_at=at, order=order)
            torch.testing.assert_close([taped.state, *taped.states], [plain.state, *plain.states], **close)
            torch.testing.assert_close(taped.residual, plain.residual, **close)
            assert taped.sample_status.tolist() == plain.sample_status.tolist()
        if tol > 0:
            change = (problem.update(plain.state) - plain.state).norm(dim=1)
            torch.testing.assert_close(change, plain.absolute_residual, **close)
            continue
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                traced = traced_solve(NeumannRBP(0, made), problem.update, problem.start, Options(batch_dims=1))
            torch.testing.assert_close(traced.state, plain.state, **close)


@pytest.mark.parametrize("tol", [0.0, 1e-6])
@pytest.mark.parametrize("check_every", [1, 10, 20])
def test_leaving_an_unstable_fixed_point_is_not_divergence(tol: float, check_every: int) -> None:
    """The iterates grow at first, and then converge."""
    problem = named("bistable")
    for max_steps in (26, 28, 30, 60):
        found = run(Picard(max_steps, tol, check_every), problem.update, problem.start)
        assert found.status in (Status.CONVERGED, Status.MAX_STEPS)
        assert relative_error(found.state, problem.fixed_point) < 0.1


@EVERY_SOLVER
@pytest.mark.parametrize("estimator", [NeumannRBP, BPTT, TBPTT], ids=lambda kind: kind.__name__)
def test_every_application_of_the_update_is_counted(solver: str, estimator: type[GradientEstimator]) -> None:
    if estimator is BPTT and not SOLVERS[solver].tapes:
        pytest.skip("cannot be unrolled")
    for problem, (tol, taped) in itertools.product(ALL, ((0.0, True), (1e-6, False), (1e-6, True))):
        calls = []

        def update(h: Tensor, problem: Problem = problem, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return problem.update(h)

        with torch.set_grad_enabled(taped), ignoring():
            made = SOLVERS[solver].make(max_steps=40, tol=tol)
            found = estimator(solver=made)(update, problem.start, batch_dims=1)
        assert found.steps == len(calls), problem.name
        assert len(calls) <= 2 * 40 + 1, problem.name  # a failing sample repeats the taped steps


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_the_check_for_a_random_update_is_counted() -> None:
    calls = []
    found = NeumannRBP(0, Picard(20))(lambda h: calls.append(1) or 0.99 * h + 1, torch.zeros(3))
    assert found.steps == len(calls) == 21


@EVERY_SOLVER
@settings(max_examples=15, deadline=None)
@given(
    rates=st.lists(st.sampled_from([0.1, 0.5, 0.9, -0.9, 1.2, -1.3, 1e200, float("nan")]), min_size=1, max_size=5),
    max_steps=st.integers(40, 120),
    taped=st.booleans(),
)
def test_each_sample_ends_as_it_does_alone(solver: str, rates: list[float], max_steps: int, taped: bool) -> None:
    """With the same status, and the same state within the tolerance."""
    assume(solver != "NewtonKrylov" or 1e200 not in rates)  # the finite differences of NewtonKrylov overflow
    options = {"max_steps": max_steps, "tol": 1e-5, "check_every": 5}
    column = torch.tensor(rates, dtype=torch.float64)[:, None]
    together = run(SOLVERS[solver].make(**options), lambda h: column * h + 1, torch.zeros_like(column), taped=taped)
    for index, rate in enumerate(rates):
        alone = run(
            SOLVERS[solver].make(**options),
            lambda h, rate=rate: rate * h + 1,
            torch.zeros_like(column[:1]),
            taped=taped,
        )
        if SOLVERS[solver].checks_matter and not (together.sample_status[index] == alone.sample_status[0] == 0):
            continue  # Auto decides for all samples together when to accelerate
        assert together.sample_status[index] == alone.sample_status[0]
        if together.sample_status[index] == Status.CONVERGED.code:
            torch.testing.assert_close(together.state[index], alone.state[0], rtol=3e-4, atol=0)
            assert solver != "Picard" or together.sample_steps[index] == alone.sample_steps[0]


def test_a_failing_sample_costs_no_further_steps() -> None:
    rates = torch.tensor([[0.5], [0.5]], dtype=torch.float64)
    drive = torch.tensor([[1.0], [float("nan")]], dtype=torch.float64)
    found = run(Picard(1000, 1e-6), lambda h: rates * h + drive, torch.zeros_like(drive))
    assert found.steps < 60
    assert found.sample_status.tolist() == [Status.CONVERGED.code, Status.NAN.code]
    assert float(found.state[0].detach()) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "NewtonKrylov"])
def test_a_step_out_of_the_domain_of_the_update_is_rejected(solver: str) -> None:
    """Roots of negative numbers are NaN; Picard steps do not lead there."""
    start = torch.tensor([[2.0], [40.0], [60.0]]).double()
    made = SOLVERS[solver].make(max_steps=600, tol=1e-6)
    found = run(made, lambda h: h - 0.5 * torch.tanh(h.sqrt() - 1), start)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.state, torch.ones(3, 1).double(), rtol=1e-4, atol=0)


@EVERY_SOLVER
def test_autocast_does_not_reduce_the_precision_of_a_solver(solver: str) -> None:
    """Autocast applies to the update only, which here uses no operation that autocast rounds."""
    slopes = torch.linspace(0.1, 0.97, 32)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled):
            made = SOLVERS[solver].make(max_steps=1000, tol=1e-5)
            found.append(run(made, lambda h: slopes * h + 1, torch.zeros(4, 32), taped=True))
    exact = (1 / (1 - slopes.double())).expand(4, -1)
    allowed = 1e-5 / (1 - 0.97)  # the error of a residual of 1e-5
    assert relative_error(found[1].state.detach(), exact) < max(
        3 * relative_error(found[0].state.detach(), exact), allowed
    )


@EVERY_SOLVER
def test_the_history_holds_the_residuals_of_the_checks(solver: str) -> None:
    problem = named("linear 0.9")
    found = run(SOLVERS[solver].make(max_steps=1000, tol=1e-6), problem.update, problem.start)
    steps = [one.step for one in found.history]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == found.steps
    last = found.history[-1]
    torch.testing.assert_close(last.relative, found.residual)
    torch.testing.assert_close(last.absolute, found.absolute_residual)
    torch.testing.assert_close(
        found.residual * problem.update(found.state).norm(dim=1), found.absolute_residual, rtol=1e-5, atol=1e-12
    )
    for index, count in enumerate(found.sample_steps.tolist()):
        first = next(one.step for one in found.history if float(one.relative[index]) <= 1e-6)
        assert count == first


def test_the_history_holds_every_step_if_an_observer_asks_for_it() -> None:
    class Record(SolveObserver):
        record = True

    problem = named("linear 0.9")
    with observing(Record):
        found = run(Picard(200, 1e-6), problem.update, problem.start, taped=True)
    assert [one.step for one in found.history][:30] == list(range(1, 31))


@EVERY_SOLVER
@pytest.mark.parametrize("taped", [False, True])
def test_max_steps_of_a_call_override_those_of_the_solver(solver: str, taped: bool) -> None:
    problem, made = named("tanh 0.99"), SOLVERS[solver].make(max_steps=5, tol=1e-8)
    assert not run(made, problem.update, problem.start, taped=taped).converged
    deeper = run(made, problem.update, problem.start, taped=taped, max_steps=10_000)
    assert deeper.converged
    assert deeper.steps > 7
    assert run(made, problem.update, problem.start, taped=taped, max_steps=7).steps == 7
    assert made.max_steps == 5
    for max_steps in (0, -1, 2.5, True):
        with pytest.raises(UserError, match="max_steps="):
            run(made, problem.update, problem.start, max_steps=max_steps)


def test_max_steps_below_the_taped_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"steps=20 is more than max_steps=10"):
        TBPTT(20)(torch.cos, torch.zeros(()), max_steps=10)


# --- rounding


def test_the_default_tolerance_at_spectral_radius_099_in_float32_stalls() -> None:
    """The level of rounding is above the tolerance of 1e-6 there."""
    torch.manual_seed(0)
    weight = 0.99 * torch.linalg.qr(torch.randn(256, 256))[0]
    weight, inputs = (weight + weight.T) / 2, 0.02 * torch.randn(64, 256)
    weight = 0.9985 * weight / torch.linalg.matrix_norm(weight, 2)
    found = run(Picard(5000), lambda h: torch.tanh(h @ weight + inputs), torch.zeros(64, 256))
    assert found.status in (Status.CONVERGED, Status.STALLED)
    assert found.steps < 5000

    wide = weight.double()
    exact = torch.zeros(64, 256, dtype=torch.float64)
    for _ in range(4000):
        exact = torch.tanh(exact @ wide + inputs.double())
    slopes = float((1 - exact.square()).max(dim=1).values.max()) * 0.9985
    assert relative_error(found.state, exact) < 16 * torch.finfo(torch.float32).eps / (1 - min(slopes, 0.999))


@settings(max_examples=15, deadline=None)
@given(
    exponent=st.floats(1, 4),
    size=st.integers(2, 40),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    check_every=st.sampled_from([1, 10]),
)
def test_slow_convergence_is_not_taken_for_rounding(
    exponent: float, size: int, seed: int, dtype: torch.dtype, check_every: int
) -> None:
    radius, epsilon = 1 - 10**-exponent, torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(seed)
    matrix = symmetric(radius, size, seed).to(dtype)
    inputs = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    tol = 1e-6 if dtype is not torch.float64 else 1e-16
    found = run(Picard(8000, tol, check_every), lambda h: h @ matrix + inputs, torch.zeros(size, dtype=dtype), 0)
    exact = solve_dense(torch.eye(size, dtype=torch.float64) - matrix.double().T, inputs.double())
    if found.status is Status.STALLED:
        allowed = epsilon / (1 - radius)
        # A solve that used all its steps is only known to be below the floor, 64 epsilon.
        assert relative_error(found.state, exact) < (16 if found.steps < 8000 else 80) * allowed
    assert found.status is not Status.DIVERGED


@pytest.mark.parametrize("check_every", [1, 10])
def test_a_residual_at_rounding_stops_the_solve_without_a_warning(check_every: int) -> None:
    matrix, inputs = symmetric(0.9, 40).float(), torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    found = NeumannRBP(0, Picard(5000, 1e-9, check_every))
    with torch.no_grad():
        result = found(lambda h: h @ matrix + inputs, torch.zeros(8, 40), batch_dims=1)
    assert result.status in (Status.STALLED, Status.CONVERGED)
    assert result.converged
    assert result.steps < 400  # 0.9^160 is below rounding


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_residuals_of_low_precision_states_are_computed_in_float32(solver: str, dtype: torch.dtype) -> None:
    made = SOLVERS[solver].make(max_steps=100, tol=1e-2)
    found = run(made, lambda h: 0.5 * h + 1, torch.zeros(4, 70000, dtype=dtype))
    torch.testing.assert_close(found.state.float(), torch.full((4, 70000), 2.0), rtol=0.03, atol=0)
    assert found.residual.dtype is torch.float32
    assert found.status is Status.CONVERGED
    assert found.state.dtype is dtype


# --- the tape


@pytest.mark.parametrize("solver", TAPED)
@pytest.mark.parametrize("radius", [0.3, 0.9])
def test_the_gradient_of_a_taped_solve_is_that_of_the_fixed_point(solver: str, radius: float) -> None:
    matrix, gradient = symmetric(radius).requires_grad_(), drive(1)
    found = []
    for estimator in (BPTT(SOLVERS[solver].make(max_steps=2000, tol=1e-13)), ExactAdjoint(solver=Picard(5000, 1e-14))):
        state = estimator(lambda h: torch.tanh(h @ matrix + drive()), zeros(), batch_dims=1).state
        found.append(torch.autograd.grad(state, matrix, gradient)[0])
    assert relative_error(*found) < 1e-8


# --- the tolerances


def test_a_fixed_point_at_zero_converges_by_the_absolute_tolerance() -> None:
    """Like a padded sample beside an ordinary one; the relative residual at zero is 1 until underflow."""
    torch.manual_seed(0)
    matrix = 0.5 * torch.linalg.qr(torch.randn(6, 6))[0]
    inputs = torch.cat([torch.randn(1, 6), torch.zeros(1, 6)])
    update, start = (lambda h: torch.tanh(h @ matrix + inputs)), 0.1 * torch.randn(2, 6)
    for tol in (1e-3, 1e-6):
        found = run(Picard(100, tol), update, start)
        assert found.status is Status.CONVERGED
        assert found.steps < 60
        assert float(found.absolute_residual[1]) <= tol / 1000
    strict = run(Picard(60, 1e-6, atol=0.0), update, start)
    assert strict.samples(Status.CONVERGED).tolist() == [True, False]


@EVERY_SOLVER
def test_the_absolute_tolerance_stops_a_solve(solver: str) -> None:
    problem = named("linear 0.9")
    loose, strict = (
        run(SOLVERS[solver].make(max_steps=500, tol=1e-9, check_every=1, atol=atol), problem.update, problem.start)
        for atol in (1e-2, 0.0)
    )
    assert loose.converged
    assert float(loose.absolute_residual.max()) <= 1e-2
    assert loose.steps <= strict.steps or SOLVERS[solver].checks_matter
    assert loose.steps < strict.steps or solver != "Picard"


@EVERY_SOLVER
def test_tolerance_zero_runs_every_step_and_is_not_a_failure(solver: str) -> None:
    problem = named("linear 0.99")
    with torch.no_grad():
        found = NeumannRBP(0, SOLVERS[solver].make(max_steps=37, tol=0))(problem.update, problem.start, batch_dims=1)
    assert found.steps == 37
    assert found.status is Status.MAX_STEPS


@pytest.mark.parametrize("solver", TAPED)
@pytest.mark.parametrize("estimator", [BPTT, NeumannRBP], ids=lambda kind: kind.__name__)
def test_tolerance_zero_stops_at_infinity(solver: str, estimator: type[GradientEstimator]) -> None:
    calls = []
    with ignoring():
        found = estimator(solver=SOLVERS[solver].make(max_steps=2000, tol=0))(
            lambda h: calls.append(1) or 10 * h, torch.tensor(1.0)
        )
    assert found.status is Status.DIVERGED
    assert found.steps == len(calls) <= 200  # float32 overflows after 39 steps, and later with damping


# --- states


NAMES = ["a", "b", "c"]


@EVERY_SOLVER
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(NAMES), failing=st.booleans(), taped=st.booleans())
def test_the_leaves_of_a_state_are_paired_by_name(solver: str, order: list[str], failing: bool, taped: bool) -> None:
    rates = torch.tensor([[0.5], [float("nan") if failing else 0.4]], dtype=torch.float64)
    levels = {"a": 1.0, "b": 100.0, "c": -7.0}

    def update(state: dict[str, Any]) -> dict[str, Any]:
        following = {
            "a": rates * state["a"] + levels["a"],
            "b": (0.1 * state["b"][0] + levels["b"], [0.2 * state["b"][1] + 0.1 * state["b"][0]]),
            "c": 0.3 * state["c"] + levels["c"],
        }
        following["b"] = (following["b"][0], following["b"][1][0])
        return {name: following[name] for name in order}

    zeros = torch.zeros(2, 1, dtype=torch.float64)
    start = {"a": zeros, "b": (zeros, zeros), "c": zeros}
    found = run(SOLVERS[solver].make(max_steps=200), update, start, taped=taped)
    assert list(found.state) == NAMES
    assert found.samples(Status.CONVERGED).tolist() == [True, not failing]
    expected = [2.0, 100 / 0.9, 100 / 0.9 * 0.1 / 0.8, -10.0]
    got = [found.state["a"], *found.state["b"], found.state["c"]]
    assert [float(leaf[0].detach()) for leaf in got] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("start", "update", "both"),
    [
        ({"a": 0, "b": 0}, lambda s: {"a": s["a"] + 1, "c": s["b"] + 1}, ("'b'", "'c'")),
        ({"a": 0, "b": 0}, lambda s: {"a": s["a"] + 1}, ("'a', 'b'", r"\['a'\]")),
        ((0, 0), lambda s: [s[0] + 1, s[1] + 1], ("tuple", "list")),
        ({"a": 0, "b": 0}, lambda s: (s["a"] + 1, s["b"] + 1), ("dict", "tuple")),
    ],
)
@pytest.mark.parametrize("taped", [False, True])
def test_another_structure_is_refused_and_both_are_named(
    start: Any, update: Any, both: tuple[str, str], taped: bool
) -> None:
    state = tree_map(lambda _: torch.zeros(2), start)
    with pytest.raises(UserError, match=f"(?s)structure .*{both[0]}.*structure .*{both[1]}"):
        run(Picard(), update, state, 0, taped)


def test_states_that_cannot_be_iterated_are_refused() -> None:
    estimator = NeumannRBP()
    with pytest.raises(UserError, match=r"tuple"):
        estimator(lambda s: (s[0] + 1, (s[1], s[1])), (torch.zeros(2), torch.zeros(2)))
    with pytest.raises(UserError, match=r"torch\.int64"):
        estimator(lambda h: h, torch.zeros(3, dtype=torch.long))
    with pytest.raises(UserError, match="no elements"):
        estimator(lambda h: h, [])
    with pytest.raises(UserError, match="batch_dims=1"):
        estimator(lambda h: h, [torch.zeros(3, 2), torch.zeros(4, 2)], batch_dims=1)
    for batch_dims in (-1, 1.5, "1"):
        with pytest.raises(UserError, match="batch_dims="):
            estimator(lambda h: h + 1, torch.zeros(3, 2), batch_dims=batch_dims)
    with pytest.raises(UserError, match="NoneType"):
        estimator(lambda h: None, torch.zeros(3, 2))
    with pytest.raises(UserError, match=r"\(3, 2\).*\(4, 2\)"):
        estimator(lambda h: torch.zeros(4, 2), torch.zeros(3, 2))


@pytest.mark.parametrize(
    "start",
    [{"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.zeros(2, 1), "b": torch.zeros(2, 3)}],
    ids=["vectors", "matrices"],
)
def test_leaves_may_have_several_shapes_and_any_order(start: dict[str, Tensor]) -> None:
    found = run(Picard(), lambda s: {"b": 0.5 * s["b"] + 1, "a": 0.5 * s["a"] + 2}, start, 0)
    torch.testing.assert_close(found.state["a"], torch.full_like(start["a"], 4.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.state["b"], torch.full_like(start["b"], 2.0), rtol=1e-5, atol=0)


@EVERY_SOLVER
def test_a_leaf_may_be_empty(solver: str) -> None:
    start = (torch.zeros(3, 2), torch.zeros(3, 0))
    found = run(SOLVERS[solver].make(), lambda s: (0.5 * s[0] + 1, 0.5 * s[1]), start)
    assert found.status is Status.CONVERGED


@EVERY_SOLVER
def test_a_solver_is_described_and_checks_its_arguments(solver: str) -> None:
    made = SOLVERS[solver].make(max_steps=12, tol=1e-3, check_every=4, atol=1e-5)
    described = describe(made)["init_args"]
    if solver == "Picard":
        expected = {"max_steps": 12, "tol": 1e-3, "check_every": 4, "atol": 1e-5, "per_leaf": True, "graph_steps": 0}
        assert described == expected
    for wrong in ({"max_steps": 0}, {"tol": float("inf")}, {"tol": -1.0}, {"check_every": True}, {"atol": -1.0}):
        with pytest.raises(UserError, match=r"\w+: \w+="):
            SOLVERS[solver].make(**wrong)
