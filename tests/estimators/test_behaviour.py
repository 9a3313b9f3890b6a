"""What estimators keep alive, how they report, and how they live in a module."""

import gc
import inspect
import warnings
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    ConvergenceWarning,
    FailurePolicy,
    FixedPointSolver,
    GradientEstimator,
    NeumannRBP,
    Picard,
    Status,
    UserError,
)
from rbp_lightning.describe import describe
from tests.cells import loss_of, relative_error, tanh_cell

KINDS = [BPTT, TBPTT, RBP, NeumannRBP, CGRBP]
IMPLICIT = [RBP, NeumannRBP, CGRBP]


def saved_bytes(estimator: GradientEstimator) -> int:
    """Bytes of the tensors kept for the backward pass, during the forward and the backward pass together."""
    cell = tanh_cell(0, batch=16, size=32)
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # so that no address is used twice
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(estimator(cell.update, cell.start, batch_dims=1).state).backward()
    return sum(storages.values())


@pytest.mark.parametrize("kind", IMPLICIT)
def test_memory_does_not_grow_with_the_steps(kind: type) -> None:
    short, long = (saved_bytes(kind(solver=Picard(steps, tol=0))) for steps in (10, 1000))
    assert short == long


def test_memory_of_bptt_grows_linearly() -> None:
    ten, twenty, forty = (saved_bytes(BPTT(Picard(steps, tol=0))) for steps in (10, 20, 40))
    assert forty - twenty == 2 * (twenty - ten) > 0


def test_memory_of_tbptt_grows_with_its_steps_alone() -> None:
    assert saved_bytes(TBPTT(5, Picard(10, tol=0))) == saved_bytes(TBPTT(5, Picard(500, tol=0)))
    five, ten, twenty = (saved_bytes(TBPTT(steps, Picard(100, tol=0))) for steps in (5, 10, 20))
    assert twenty - ten == 2 * (ten - five) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backward", [False, True])
def test_nothing_is_left_alive(kind: type, backward: bool) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    gc.collect()
    gc.disable()  # reference counting alone has to do
    try:
        cell = tanh_cell(0)

        def update(state: torch.Tensor) -> torch.Tensor:
            state = cell.update(state)
            alive.append(weakref.ref(state))
            return state

        estimator = kind()
        loss = loss_of(estimator(update, cell.start, batch_dims=1).state)
        if backward:
            loss.backward()
        del loss
        assert alive
        assert [reference for reference in alive if reference() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_point_can_be_used_twice_and_after_another(kind: type) -> None:
    solver = Picard(300, tol=1e-14)
    first, second = tanh_cell(0), tanh_cell(1)
    estimator = kind(200, 1e-9, solver=solver) if kind in (RBP, CGRBP) else kind(solver=solver)
    state = estimator(first.update, first.start, batch_dims=1).state
    # The second network is driven by the first one's fixed point.
    stacked = estimator(lambda h: second.update(h) + 0.1 * state, second.start, batch_dims=1).state
    found = torch.autograd.grad(loss_of(stacked) + loss_of(state) + loss_of(state**2), first.tensors + second.tensors)

    exact_estimator = BPTT(solver)
    state = exact_estimator(first.update, first.start, batch_dims=1).state
    stacked = exact_estimator(lambda h: second.update(h) + 0.1 * state, second.start, batch_dims=1).state
    exact = torch.autograd.grad(loss_of(stacked) + loss_of(state) + loss_of(state**2), first.tensors + second.tensors)
    truncated = kind in (TBPTT, NeumannRBP)
    assert relative_error(list(found), list(exact)) < (0.02 if truncated else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_derivative_is_refused(kind: type) -> None:
    cell = tanh_cell(0)
    state = kind()(cell.update, cell.start, batch_dims=1).state
    with pytest.raises(NotImplementedError, match="create_graph"):
        torch.autograd.grad(loss_of(state), cell.tensors[0], create_graph=True)


@pytest.mark.parametrize("solver", ["picard", Picard])
def test_what_is_no_solver_is_refused(solver: Any) -> None:
    with pytest.raises(UserError, match="is no FixedPointSolver"):
        NeumannRBP(solver=solver)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_state_is_the_same(kind: type, mode: Any) -> None:
    cell = tanh_cell(0)
    estimator = kind(solver=Picard(60, tol=0))
    taped = estimator(cell.update, cell.start, batch_dims=1)
    with mode():
        plain = estimator(cell.update, cell.start, batch_dims=1)
    assert not plain.state.requires_grad
    assert torch.equal(plain.state, taped.state)
    assert plain.steps == taped.steps == 60


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(max_steps=st.integers(20, 45))
def test_the_update_is_applied_max_steps_times(kind: type, max_steps: int) -> None:
    cell = tanh_cell(0)
    calls = []

    def update(state: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return cell.update(state)

    result = kind(solver=Picard(max_steps, tol=0))(update, cell.start, batch_dims=1)
    result.state.sum().backward()
    assert len(calls) == result.steps == max_steps


@pytest.mark.parametrize("kind", KINDS)
def test_statuses(kind: type) -> None:
    weight = torch.eye(3)
    cases = {
        Status.CONVERGED: lambda h: 0.5 * h @ weight + 1,
        Status.MAX_STEPS: lambda h: 0.99 * h @ weight + 1,
        Status.DIVERGED: lambda h: 1.1 * h @ weight + 1,
        Status.NAN: lambda h: h @ weight * float("nan"),
    }
    for status, update in cases.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = kind(solver=Picard(100, tol=1e-5))(update, torch.zeros(2, 3), batch_dims=1)
        assert result.status is status
        assert result.converged == (status is Status.CONVERGED)
        told = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
        if status is Status.CONVERGED:
            assert told == []
        else:
            assert [status.value in message and status.failure.message in message for message in told] == [True]


def test_overflow_is_divergence() -> None:
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = BPTT(Picard(1000, tol=1e-5))(lambda h: h.tanh() + 10 * h - h.square(), torch.ones(4))
    assert result.status is Status.DIVERGED
    assert result.steps < 1000  # no use in going on


class Blind(FixedPointSolver):
    """Picard iteration that leaves it to the estimator to observe."""

    def iterate(self, update, state, max_steps, test):
        for _ in range(max_steps):
            state = update(state)
        return state, max_steps


@pytest.mark.parametrize("kind", [TBPTT, NeumannRBP])
def test_a_bad_sample_under_a_solver_that_observes_nothing(kind: type) -> None:
    drive = torch.tensor([[1.0], [float("nan")]])
    with pytest.warns(ConvergenceWarning):
        fixed_point = kind(20, Blind(40))(lambda h: 0.5 * h + drive, torch.zeros(2, 1), batch_dims=1)
    torch.testing.assert_close(fixed_point.state[0].detach(), torch.tensor([2.0]))
    assert fixed_point.samples(Status.NAN).tolist() == [False, True]


def test_one_bad_sample_is_seen_and_the_others_are_not_touched() -> None:
    rates = torch.tensor([[0.5], [1.2], [0.9]])
    result = NeumannRBP(solver=Picard(50, tol=1e-4))(lambda h: rates * h + 1, torch.zeros(3, 1), batch_dims=1)
    assert result.status is Status.DIVERGED
    assert result.residual.shape == (3,)
    assert float(result.residual[0]) < 1e-4
    torch.testing.assert_close(result.state[0], torch.tensor([2.0]))


def test_a_fixed_number_of_steps_is_not_warned_about() -> None:
    weight = torch.tensor(0.99, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator in (RBP(3, tol=0, solver=Picard(5, tol=0)), CGRBP(1, tol=0, solver=Picard(5, tol=0))):
            estimator.policy = FailurePolicy(truncation_tol=1.0)
            estimator(lambda h: weight * h + 1, torch.zeros(2)).state.sum().backward()


@pytest.mark.parametrize("kind", [RBP, CGRBP])
def test_a_number_of_adjoint_steps_that_is_too_small_is_told(kind: type) -> None:
    weight = (0.97 * torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]).requires_grad_()
    state = kind(1, tol=0, solver=Picard(3000, tol=1e-5))(lambda h: h @ weight + 1, torch.zeros(8)).state
    with pytest.warns(ConvergenceWarning, match="cut off early"):
        (state * torch.arange(8)).sum().backward()


@pytest.mark.filterwarnings("error::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(4))
def test_rounding_does_not_make_a_converged_adjoint_one_that_is_not(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 32, generator=generator)
    weight = (0.9 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
    drive = torch.randn(4000, 32, generator=generator)  # of so many samples some end at the tolerance
    estimator = CGRBP(60, tol=1e-4, solver=Picard(300))
    estimator(
        lambda h: torch.tanh(h @ weight + drive), torch.zeros(4000, 32), batch_dims=1
    ).state.square().sum().backward()
    assert estimator.adjoint.steps < 60
    assert estimator.adjoint.converged


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_conjugate_gradients_rest_where_only_rounding_is_left() -> None:
    cell = tanh_cell(0)
    weight, drive = (tensor.detach().float().requires_grad_() for tensor in cell.tensors)
    estimator = CGRBP(60, tol=1e-8, solver=Picard(300))
    estimator(lambda h: torch.tanh(h @ weight + drive), cell.start.float(), batch_dims=1).state.sum().backward()
    assert estimator.adjoint.steps < 60


@pytest.mark.parametrize("estimator", [RBP(20, 1e-6), CGRBP(2, 1e-6)], ids=["RBP", "CGRBP"])
def test_an_adjoint_that_does_not_converge_is_told(estimator: GradientEstimator) -> None:
    weight = (0.97 * torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]).requires_grad_()
    estimator.solver = Picard(3000, tol=1e-5)
    state = estimator(lambda h: h @ weight + 1, torch.zeros(8)).state
    with pytest.warns(ConvergenceWarning, match="adjoint solve took"):
        (state * torch.arange(8)).sum().backward()


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1.0, 1e12, 1e24])
@pytest.mark.parametrize("kind", IMPLICIT)
def test_float32_gradients_at_any_scale_of_the_loss(kind: type, scale: float) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    estimator = kind(40, solver=Picard(100, 1e-6))
    (scale * estimator(lambda h: weight * h + 1, torch.zeros(3)).state).sum().backward()
    assert float(weight.grad) / scale == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize("kind", IMPLICIT)
@pytest.mark.parametrize("small", [1e-36, 5e-39, 1e-40, 1e-45])
def test_a_sample_with_a_vanishing_gradient_does_no_harm(kind: type, small: float) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = kind(40)(lambda h: weight * h + 1, torch.zeros(2, 3), batch_dims=1).state
    state.backward(torch.tensor([[small] * 3, [1.0] * 3]))
    assert float(weight.grad) == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize("kind", IMPLICIT)
def test_nan_in_the_gradient_stays_and_stays_where_it_is(kind: type) -> None:
    drive = torch.zeros(3, 2, requires_grad=True)
    state = kind()(lambda h: 0.5 * h.flip(1) + drive, torch.zeros(3, 2), batch_dims=1).state
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.backward(torch.tensor([[float("nan"), 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert bool(drive.grad[0].isnan().all())
    torch.testing.assert_close(drive.grad[1:], torch.tensor([[2.0, 2.0], [0.0, 0.0]]), rtol=1e-3, atol=0)
    assert len(caught) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_zeros_in_two_precisions_converges(kind: type) -> None:
    start = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)}
    result = kind(solver=Picard(40, tol=1e-6))(lambda h: {"a": 0.5 * h["a"], "b": 0.5 * h["b"]}, start)
    assert result.status is Status.CONVERGED
    assert float(result.residual) == 0


def test_divergence_within_the_taped_steps_is_seen() -> None:
    weight = torch.tensor(1.05, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        assert TBPTT(100, Picard(100, 1e-6))(lambda h: weight * h + 1, torch.zeros(2)).status is Status.DIVERGED


@pytest.mark.parametrize("kind", KINDS)
def test_updates_in_place_are_refused(kind: type) -> None:
    for update in (lambda h: h.mul_(0.9).add_(1), lambda h: h.mul_(0.9) + 1):
        with torch.no_grad(), pytest.raises(UserError, match=r"in place|the state itself"):
            kind()(update, torch.zeros(3))


@pytest.mark.parametrize("kind", KINDS)
def test_only_bptt_reaches_the_initial_state(kind: type) -> None:
    start = torch.ones(3, requires_grad=True)
    weight = torch.tensor(0.5, requires_grad=True)
    state = kind(solver=Picard(20, tol=0))(lambda h: weight * h + 1, start).state
    reached = torch.autograd.grad(state.sum(), start, allow_unused=True)[0]
    assert (reached is not None) == (kind is BPTT)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_change_is_no_state(kind: type) -> None:
    with pytest.raises(UserError, match="close over"):
        kind()(lambda s: {"h": 0.5 * s["h"] + s["x"], "x": s["x"]}, {"h": torch.zeros(2), "x": torch.ones(2)})


def test_random_starts_are_the_estimator_s_own_and_resume() -> None:
    def gradient(estimator: RBP) -> torch.Tensor:
        weight = torch.tensor(0.9, requires_grad=True)
        estimator(lambda h: weight * h + 1, torch.zeros(3)).state.sum().backward()
        return weight.grad

    estimator = RBP(steps=3, tol=0, seed=5)
    torch.manual_seed(0)
    untouched = torch.random.get_rng_state()
    first = gradient(estimator)
    assert torch.equal(torch.random.get_rng_state(), untouched)
    saved = estimator.state_dict()
    second = gradient(estimator)
    assert not torch.equal(first, second)
    resumed = RBP(steps=3, tol=0, seed=5)
    resumed.load_state_dict(saved)
    assert torch.equal(gradient(resumed), second)
    assert torch.equal(gradient(RBP(steps=3, tol=0, seed=5)), first)


def test_states_that_cannot_be_iterated_are_refused() -> None:
    estimator = NeumannRBP()
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
    "make",
    [
        lambda: NeumannRBP(steps=-1),
        lambda: NeumannRBP(steps=2.5),
        lambda: TBPTT(steps=0),
        lambda: TBPTT(steps=101),
        lambda: RBP(tol=-1.0),
        lambda: RBP(tol=float("nan")),
        lambda: RBP(start="zeros"),
        lambda: RBP(seed=-1),
        lambda: CGRBP(steps=0),
        lambda: CGRBP(check_every=0),
        lambda: Picard(max_steps=0),
        lambda: Picard(tol=float("inf")),
        lambda: Picard(check_every=True),
    ],
)
def test_arguments_are_checked_at_once(make: Any) -> None:
    with pytest.raises(UserError, match=r"(NeumannRBP|TBPTT|RBP|CGRBP|Picard): \w+="):
        make()


def test_describe_lists_every_argument() -> None:
    assert describe(TBPTT(7, Picard(30, 1e-3))) == {
        "class_path": "rbp_lightning.estimators.tbptt.TBPTT",
        "init_args": {
            "steps": 7,
            "solver": {
                "class_path": "rbp_lightning.solvers.picard.Picard",
                "init_args": {"max_steps": 30, "tol": 1e-3, "check_every": 10},
            },
        },
    }


def test_estimators_share_their_defaults() -> None:
    # A command line that replaces a config's estimator keeps the values of arguments of the same name, defaults
    # included: they have to mean the same, and to be the same number of steps.
    defaults: dict[str, set[Any]] = {}
    for kind in KINDS:
        for name, parameter in inspect.signature(kind).parameters.items():
            defaults.setdefault(name, set()).add(parameter.default)
    assert {name: len(values) for name, values in defaults.items()} == dict.fromkeys(defaults, 1)
