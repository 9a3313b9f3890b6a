"""At which steps an iteration checks its residual, and when it stops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import RBP, TBPTT, ConvergenceWarning, NeumannRBP, Picard, Status
from rbp_lightning.check_schedule import CheckSchedule, rounding_floor


def steps_and_checks(
    residuals: list[torch.Tensor], every: int, tol: float, epsilon: float = 0.0
) -> tuple[int | None, int]:
    """The step at which the schedule stops, or ``None``, and its number of checks."""
    schedule, checks = CheckSchedule(every, tol, epsilon), 0
    for step, residual in enumerate(residuals, start=1):
        checks += step == schedule.next_check
        if schedule.should_check(step) and schedule.is_finished(step, residual):
            return step, checks
    return None, checks


@settings(deadline=None)
@given(rate=st.floats(0.05, 0.999), every=st.integers(1, 20), tol=st.sampled_from([1e-2, 1e-5]))
def test_geometric_convergence_is_detected_soon(rate: float, every: int, tol: float) -> None:
    first = next(step for step in range(1, 15000) if rate**step <= tol)
    residuals = [torch.tensor(rate**step, dtype=torch.float64) for step in range(1, first + every + 1)]
    stopped, count = steps_and_checks(residuals, every, tol)
    assert stopped is not None
    # Predicted checks are at most 2 * every steps apart, with a margin of 15%; rounding can add a step.
    assert first <= stopped <= max(first + (0.3 * every + 2 if every >= 6 else every), every)
    assert count <= stopped // every + 2


RESIDUALS = st.sampled_from([0.0, 1e-30, 0.4, 0.6, 3.0, 3e38, float("inf"), float("nan")])


@settings(deadline=None)
@given(residuals=st.lists(st.tuples(RESIDUALS, RESIDUALS), min_size=1, max_size=80), every=st.integers(1, 12))
def test_any_sequence_of_residuals_stops_in_time_with_few_checks(residuals: list, every: int) -> None:
    stopped, count = steps_and_checks([torch.tensor(both) for both in residuals], every, tol=0.5)
    done = [all(figure <= 0.5 for figure in both) for both in residuals]
    assert count <= len(residuals) // every + 3
    if stopped is not None:
        assert done[stopped - 1]
    # The first check does not count if a residual grows after it.
    before = done if stopped is None else done[: stopped - 1]
    assert not any(all(before[i : i + every]) for i in range(every, len(before) - every + 1))


def test_tolerance_zero_checks_at_doubling_intervals_only() -> None:
    schedule = CheckSchedule(check_every=10, tol=0.0)
    checked = [
        step
        for step in range(1, 400)
        if schedule.should_check(step) and not schedule.is_finished(step, torch.tensor(0.0))
    ]
    assert checked == [1, 10, 20, 40, 80, 160, 320]


def test_an_iterate_at_zero_does_not_spoil_the_prediction() -> None:
    # The iterates are 3, 0, 1, 2/3, ...: the relative residual at 0 is nearly infinite.
    fixed_point = NeumannRBP(5)(lambda h: 1 - h / 3, torch.tensor([3.0]))
    torch.testing.assert_close(fixed_point.state.detach(), torch.tensor([0.75]))
    assert fixed_point.converged


def test_a_residual_that_grows_from_almost_zero_is_not_convergence() -> None:
    start = torch.tensor([1e5, 1e-4])
    fixed_point = NeumannRBP(5)(lambda h: torch.stack([start[0], 100 * torch.tanh(3 * h[1] / 100)]), start)
    assert float(fixed_point.state[1].detach()) > 90


def test_rbp_synchronises_once_in_ten_steps_and_stops_in_time() -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    estimator = RBP(1000, 1e-6, start="gradient", solver=Picard(200, tol=0))
    fixed_point = estimator(lambda h: weight * h + 1, torch.zeros(3, 1, dtype=torch.float64), batch_dims=1)
    with CountSyncs() as reads:
        fixed_point.state.sum().backward()
    assert 20 <= fixed_point.adjoint.steps <= 23  # 0.5^20 is the first below 1e-6
    assert reads.count <= 2 * (20 // 10 + 2)  # includes the check whether samples are coupled


def test_a_fast_decline_stops_before_the_first_multiple_of_the_interval() -> None:
    residuals = [torch.tensor(0.3**step) for step in range(1, 20)]
    assert steps_and_checks(residuals, every=10, tol=2e-3) == (6, 2)  # 0.3^6 is the first below


def test_a_slow_decline_is_checked_once_in_twenty_steps() -> None:
    residuals = [torch.tensor(0.999**step, dtype=torch.float64) for step in range(1, 7000)]
    stopped, count = steps_and_checks(residuals, every=10, tol=1e-3)
    assert stopped == 6905  # 0.999^6905 is the first below
    assert count <= 6905 // 20 + 3


@settings(deadline=None)
@given(
    rates=st.lists(st.tuples(st.floats(0.1, 0.99), st.integers(1, 30)), min_size=2, max_size=4),
    every=st.integers(1, 12),
)
def test_a_decline_that_accelerates_is_checked_within_twice_the_interval(rates: list, every: int) -> None:
    figures = [1.0]
    for rate, steps in rates:
        figures += [figures[-1] * rate ** (step + 1) for step in range(steps)]
    figures += [figures[-1] * 0.5 ** (step + 1) for step in range(60)]
    tol = 2e-4
    stopped, _ = steps_and_checks([torch.tensor(figure, dtype=torch.float64) for figure in figures], every, tol)
    first = next(step for step, figure in enumerate(figures, start=1) if figure <= tol)
    assert first <= stopped < first + (2 * every if every >= 6 else every)


def test_intervals_below_six_check_at_every_multiple() -> None:
    schedule = CheckSchedule(check_every=2, tol=1e-9)
    checked = [
        step
        for step in range(2, 9)
        if schedule.should_check(step) and not schedule.is_finished(step, torch.tensor(0.5**step))
    ]
    assert checked == [2, 4, 6, 8]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_makes_the_largest_residual_so(bad: float) -> None:
    schedule = CheckSchedule(check_every=2, tol=0.1)
    assert not schedule.is_finished(1, torch.tensor([1.0, 1.0]))
    assert not schedule.is_finished(2, torch.tensor([bad, 0.01]))
    assert not math.isfinite(schedule.largest)


# --- rounding


def noisy(rate: float, floor: float, steps: int, seed: int = 0) -> list[torch.Tensor]:
    """Residuals that decline to a floor, with noise of 20% there."""
    generator = torch.Generator().manual_seed(seed)
    jitter = 1 + 0.2 * torch.randn(steps, generator=generator, dtype=torch.float64).clamp(-2, 2)
    return list(jitter * floor + rate ** torch.arange(1, steps + 1, dtype=torch.float64))


@settings(deadline=None, max_examples=40)
@given(
    rate=st.floats(0.3, 0.99), share=st.floats(1, 30), every=st.sampled_from([1, 3, 10, 20]), seed=st.integers(0, 99)
)
def test_a_floor_at_the_level_of_rounding_stops_the_iteration_soon(
    rate: float, share: float, every: int, seed: int
) -> None:
    epsilon = 1.2e-7
    residuals = noisy(rate, share * epsilon, 4000, seed)
    reached = next(step for step in range(1, 4000) if rate**step <= share * epsilon)
    stopped, _ = steps_and_checks(residuals, every, 1e-9, epsilon)
    assert stopped is not None
    assert reached / 2 <= stopped <= 1.6 * reached + 16 * every + 90


@pytest.mark.parametrize("epsilon", [0.0, 1.2e-7])
def test_a_floor_above_the_level_of_rounding_does_not_stop_the_iteration(epsilon: float) -> None:
    """For example, the residual of a limit cycle."""
    assert steps_and_checks(noisy(0.5, 1e-3, 1000), 10, 1e-6, epsilon)[0] is None
    assert rounding_floor(1.2e-7) < 1e-5


@settings(deadline=None, max_examples=40)
@given(exponent=st.floats(0.5, 4), level=st.floats(-6, -1), every=st.sampled_from([1, 3, 10, 20]))
def test_a_slow_decline_is_not_taken_for_a_floor(exponent: float, level: float, every: int) -> None:
    """For any rate, and also at the level of rounding."""
    rate = 1 - 10**-exponent
    epsilon = 1.2e-7
    # The relative residual of h <- rate h + x from 0, which declines as 1 / t at first.
    steps = torch.arange(1, 60_001, dtype=torch.float64)
    residuals = (1 - rate) * rate**steps / (1 - rate**steps)
    tol = 10**level * epsilon
    first = int((residuals > tol).sum()) + 1
    schedule = CheckSchedule(every, tol, epsilon)
    step, end = 1, min(first + 3 * every, len(residuals))
    while step <= end:
        if schedule.should_check(step) and schedule.is_finished(step, residuals[step - 1]):
            break
        step = schedule.next_check if step > 1 else max(2, schedule.next_check)
    assert not schedule.stalled
    assert step >= min(first, end)


# --- in a solve


def test_the_taped_step_after_convergence_is_not_checked_again() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    with CountSyncs() as reads:
        fixed_point = NeumannRBP(5, solver=Picard(100, 1e-4))(lambda h: weight * h + 1, torch.zeros(2, 3), batch_dims=1)
    assert reads.count <= 3  # the first check, the predicted one, and one more because that was too early
    assert fixed_point.converged
    assert fixed_point.residual.max() <= 1e-4
    assert bool(fixed_point.samples(Status.CONVERGED).all())


def test_an_update_may_change_the_dtype_of_the_state() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = torch.zeros(3, 4, dtype=torch.float64)
    fixed_point = NeumannRBP(5, solver=Picard(100, 1e-4))(lambda h: torch.tanh(weight * h.float() + 1), state)
    assert fixed_point.converged


def test_divergence_during_the_taped_steps_is_reported() -> None:
    rates = torch.tensor([0.1, 1.5], requires_grad=True)
    estimator = TBPTT(60, solver=Picard(200, 1e-4))
    with pytest.warns(ConvergenceWarning, match="diverged"):
        fixed_point = estimator(lambda h: rates * h + torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1e-9]))
    assert fixed_point.status is Status.DIVERGED
