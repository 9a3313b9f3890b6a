"""Random calls of the public API with valid and invalid states, updates and arguments."""

import inspect
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_leaves

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceError,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    FixedPoint,
    FixedPointLayer,
    FrobeniusNormBound,
    GradientEstimator,
    Implicit,
    InfinityNormBound,
    JacobianOperator,
    NeumannRBP,
    Picard,
    SolveObserver,
    SparseMatrix,
    SpectralNormBound,
    Status,
    UserError,
    WarmStart,
    column_sum_penalty,
    estimator_from_checkpoint,
    ignoring,
    jacobian_penalty,
    norm_bounds,
    observing,
    spectral_radius,
)
from rbp_lightning.linear import (
    GMRES,
    AdaptiveNeumannSeries,
    BiCGSTAB,
    ConjugateGradient,
    Dense,
    Direct,
    NeumannSeries,
    NormalCG,
    Richardson,
)
from tests.fuzz.odd_values import (
    BAD_STATES,
    GOOD_STATES,
    STATES,
    OwnError,
    each,
    good_updates,
    later,
    numbers,
    odd_updates,
    raising,
)

USER_CODE = (str(Path(__file__).parent), str(Path(nn.__file__).parent / "modules"))

ESTIMATORS = [BPTT, TBPTT, RBP, NeumannRBP, CGRBP, AdaptiveNeumann, ExactAdjoint, Implicit]
BOUNDS = [SpectralNormBound, FrobeniusNormBound, InfinityNormBound]
LINEAR = [Richardson, NeumannSeries, GMRES, BiCGSTAB, ConjugateGradient, NormalCG, AdaptiveNeumannSeries, Dense, Direct]


def too_long(*_: Any) -> None:
    raise AssertionError("took more than 20 seconds")


def outcome_of(call: Callable[[], Any]) -> str:
    """Runs a call; returns whether it succeeded, was refused or raised a user's error, and fails for other errors."""
    signal.alarm(20)
    try:
        call()
    except BaseException as error:
        outcome = error
    else:
        return "ran"
    finally:
        signal.alarm(0)
    if isinstance(outcome, UserError | ConvergenceError):
        assert "\n" not in str(outcome)
        return "refused"
    # Errors of user code, or of PyTorch's modules called by it, may pass through the library.
    frames = traceback.extract_tb(outcome.__traceback__)
    ours = max((index for index, frame in enumerate(frames) if "/rbp_lightning/" in frame.filename), default=-1)
    theirs = any(frame.filename.startswith(USER_CODE) for frame in frames[ours + 1 :])
    assert theirs, "".join(traceback.format_exception(outcome))
    return "own error"


def estimator_of(random: Random) -> Any:
    kind = random.choice(ESTIMATORS)
    solver = random.choice([Picard(40), Picard(5), Picard(30, tol=0), Picard(60, 1e-3, 1), Picard(20, 0.5, 50, 0.0)])
    if kind is Implicit:
        return Implicit(random.choice([Direct(), Richardson(8), NeumannSeries(3), NormalCG(4), GMRES(4)]), solver)
    return kind(solver=solver, **({"steps": random.choice([1, 3, 5])} if kind in (TBPTT, NeumannRBP, RBP) else {}))


def solve(random: Random) -> Any:
    """Returns a forward solve with its backward pass."""
    weight = torch.tensor(0.25, requires_grad=random.random() < 0.8)
    kind, state = random.choice(list((GOOD_STATES if random.random() < 0.8 else BAD_STATES).items()))
    updates = {**good_updates(weight), **odd_updates(weight)}
    name = random.choice(list(good_updates(weight) if random.random() < 0.6 else updates))
    update, initial = updates[name], state()
    estimator = estimator_of(random)
    options = {"batch_dims": random.choice([0, 1, 2]), "warm_start": WarmStart(), "max_steps": 7}
    options = {option: value for option, value in options.items() if random.random() < 0.5}
    if options and random.random() < 0.2:
        options[random.choice(list(options))] = numbers(random)
    observer = random.choice([None] * 8 + [SolveObserver, SolveObserver, numbers(random)])
    policy = random.choice([None, None, FailurePolicy(diverged="raise"), FailurePolicy(not_converged="skip")])
    mode = random.choice([torch.enable_grad, torch.enable_grad, torch.no_grad, torch.inference_mode])

    def call() -> FixedPoint:
        with ExitStack() as stack:
            stack.enter_context(mode())
            if observer is not None:
                stack.enter_context(observing(observer))
            if policy is not None:
                stack.enter_context(policy)
            fixed_point = estimator(update, initial, **options)
            leaves = [leaf for leaf in tree_leaves(fixed_point.state) if leaf.requires_grad]
            if leaves and torch.is_grad_enabled():
                sum(leaf.sum().double() for leaf in leaves).backward()
                if name in ("linear", "tanh"):
                    assert weight.grad is None or weight.grad.dtype == weight.dtype
        if name in good_updates(weight) and kind in STATES:
            check_fixed_point(update, fixed_point, weight)
        return fixed_point

    shown = ", ".join(f"{option}={type(value).__name__}" for option, value in options.items())
    call.__doc__ = f"{estimator}({name}, {kind}, {shown}), {mode.__name__}, observer {type(observer).__name__}"
    return call


def check_fixed_point(update: Any, fixed_point: FixedPoint, weight: Tensor) -> None:
    """Checks that a state reported as converged is a fixed point."""
    if not fixed_point.converged:
        return
    with torch.no_grad():
        before = [leaf.detach().double() for leaf in tree_leaves(fixed_point.state)]
        after = [leaf.double() for leaf in tree_leaves(update(fixed_point.state))]
    change = sum(float((one - other).square().sum()) for one, other in zip(before, after, strict=True)) ** 0.5
    size = sum(float(leaf.square().sum()) for leaf in after) ** 0.5
    dtypes = {leaf.dtype for leaf in tree_leaves(fixed_point.state)}
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    allowed = max(fixed_point.tol, 64 * rounding if fixed_point.status is Status.STALLED else 4 * rounding)
    assert change <= 1.01 * allowed * size + fixed_point.tol / 1000, (change, size, fixed_point)


def layer(random: Random) -> Any:
    """Returns a call of a FixedPointLayer with odd arguments."""
    cell = nn.Linear(3, 3) if random.random() < 0.6 else numbers(random)
    inputs = [random.choice(list(STATES.values()))() for _ in range(random.choice([0, 1, 1, 2]))]
    named = {
        "initial_state": random.choice(list(STATES.values()))(),
        "max_steps": random.choice([None, numbers(random)]),
    }
    named = {name: value for name, value in named.items() if random.random() < 0.4}
    arguments = [cell, random.choice([None, NeumannRBP(), numbers(random)]), random.choice([0, 1, numbers(random)])]

    class TwoArguments(nn.Module):
        def forward(self, state: Any, *others: Any) -> Any:
            return tree_leaves(state)[0] * 0.5 + sum(other.sum() for other in others)

    if isinstance(cell, nn.Module) and random.random() < 0.5:
        arguments[0] = TwoArguments()
    return lambda: FixedPointLayer(*arguments)(*inputs, **named)


def constructor(random: Random) -> Any:
    """Returns a call of a constructor with odd arguments."""
    kind = random.choice([*ESTIMATORS, *LINEAR, *BOUNDS, Picard, FailurePolicy, EquilibriumMonitor, SparseMatrix])
    chosen = {
        name: numbers(random)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is inspect.Parameter.empty or random.random() < 0.25
    }

    def call() -> Any:
        made = kind(**chosen)
        assert len(repr(made)) > 0
        if isinstance(made, GradientEstimator):
            if any(isinstance(value, int) and value > 1000 for value in chosen.values()):
                return made
            weight = torch.tensor(0.5, requires_grad=True)
            made(lambda h: 0.5 * h + weight, torch.zeros(2)).state.sum().backward()
        return made

    call.__doc__ = f"{kind.__name__}({', '.join(chosen)})"
    return call


def function(random: Random) -> Any:
    """Returns a call of a function with odd arguments."""
    weight = torch.tensor(0.25, requires_grad=True)
    updates = {**good_updates(weight), **odd_updates(weight)}
    update, state = random.choice(list(updates.values())), random.choice(list(STATES.values()))()
    operator = JacobianOperator.at(lambda h: torch.tanh(h + 1), torch.zeros(2, 3), random.choice([0, 1]))
    operator = operator if random.random() < 0.7 else numbers(random)
    matrix = SparseMatrix.from_dense(torch.eye(3))

    def odd(**names: Any) -> dict[str, Any]:
        return {name: numbers(random) for name in names if random.random() < 0.5}

    def radius_at() -> Any:
        at = JacobianOperator.at(update, state, **{"batch_dims": 0, **odd(batch_dims=0)})
        return at.vjp([torch.ones_like(leaf) for leaf in tree_leaves(state)])

    def loaded() -> Any:
        warm_start = WarmStart()
        warm_start.load_state_dict(random.choice([numbers(random), {"state": numbers(random), "adjoint": state}]))
        return NeumannRBP()(lambda h: 0.5 * h + weight, torch.zeros(2, 3), warm_start=warm_start).state.sum().backward()

    def ignored() -> Any:
        with ignoring(*[numbers(random) for _ in range(random.choice([0, 1]))]):
            return NeumannRBP()(lambda h: 3 * h + weight, torch.zeros(2, 3)).state.sum().backward()

    bound = random.choice(BOUNDS)(0.9)
    return random.choice(
        [
            lambda: spectral_radius(operator, **odd(steps=0, krylov_steps=0, seed=0)),
            lambda: norm_bounds(operator, **odd(steps=0, failure_probability=0, seed=0)),
            lambda: jacobian_penalty(update, state, **odd(samples=0, generator=0)),
            lambda: column_sum_penalty(update, state, **odd(bound=0)),
            radius_at,
            loaded,
            ignored,
            lambda: bound(state),
            lambda: estimator_from_checkpoint(numbers(random)),
            lambda: SparseMatrix.from_dense(state),
            lambda: matrix.with_values(state),
            lambda: matrix @ state,
        ]
    )


KINDS = [solve] * 6 + [layer, constructor, constructor, function, function]


@pytest.mark.filterwarnings("ignore")
def test_random_calls_succeed_or_are_refused(cases: Any, figures: Any) -> None:
    tried, outcomes = cases(150, 3000), Counter[str]()
    faults = []
    signal.signal(signal.SIGALRM, too_long)
    for seed in range(tried):
        random = Random(seed)
        torch.manual_seed(seed)
        kind = random.choice(KINDS)
        call = kind(random)
        try:
            outcomes[f"{kind.__name__} {outcome_of(call)}"] += 1
        except AssertionError as fault:
            faults.append(f"seed {seed}, {kind.__name__}: {call.__doc__}\n{fault}")
    figures.update(tried=tried, **outcomes)
    assert not faults, f"{len(faults)} of {tried}:\n" + "\n".join(faults)


@pytest.mark.parametrize("kind", BAD_STATES)
def test_invalid_states_are_refused(kind: str) -> None:
    state = BAD_STATES[kind]()
    if kind != "unprintable":
        for call in (NeumannRBP(), jacobian_penalty, column_sum_penalty, lambda *both: JacobianOperator.at(*both, 0)):
            with pytest.raises(UserError):
                call(lambda h: 0.5 * h, state)


REFUSED = ["integers", "integers later", "bool", "complex", "complex later", "float8", "sparse", "other shape"]
REFUSED += ["other shape later", "meta", "number", "array", "nothing", "nothing later", "tuple", "list of itself"]
REFUSED += ["generator", "structure", "odd shape", "odd leaves", "unprintable", "itself", "in place"]
REFUSED += ["not callable", "no update", "a class", "no argument", "two arguments"]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("state", ["matrix", "odd keys"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_invalid_updates_are_refused(name: str, state: str, mode: Any) -> None:
    for estimator in (BPTT(), TBPTT(3), NeumannRBP(2)):
        update = odd_updates(torch.tensor(0.25, requires_grad=True))[name]
        with mode(), pytest.raises(UserError):
            estimator(update, GOOD_STATES[state]())


@pytest.mark.parametrize("wider", [torch.float64, torch.bfloat16])
def test_an_update_may_return_another_precision(wider: torch.dtype) -> None:
    weight = torch.tensor(0.25, requires_grad=True)
    NeumannRBP()(lambda h: (0.5 * h + weight).to(wider), torch.zeros(3)).state.sum().backward()
    assert float(weight.grad) == pytest.approx(6, rel=0.02)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_bounded_weight_gives_the_status_nan(bound: Any, bad: float) -> None:
    layer = register_parametrization(nn.Linear(3, 3), "weight", bound(0.9))
    with torch.no_grad():
        layer.parametrizations.weight.original[0, 0] = bad
        with ignoring():
            assert NeumannRBP()(layer, torch.ones(3)).status is Status.NAN


ERRORS = [OwnError, StopIteration, KeyboardInterrupt, SystemExit, TypeError, KeyError, MemoryError, RuntimeError]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", ["matrix", "odd keys"])
def test_an_error_of_the_update_is_raised_unchanged(kind: type[BaseException], state: str) -> None:
    for calls in (0, 1, 3, 30):  # 30 fails in the taped step
        for mode in (torch.enable_grad, torch.no_grad):
            error = kind("own")
            estimator = NeumannRBP(2, Picard(31, tol=0))
            update = later(each(lambda h: 0.5 * h + 1), raising(error), calls)
            with mode(), pytest.raises(kind) as raised:
                estimator(update, GOOD_STATES[state]())
            assert raised.value is error
            assert raised.traceback[-1].name == "update"
            assert error.__cause__ is None
