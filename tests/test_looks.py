"""When iterations look at their residuals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import RBP, TBPTT, ConvergenceWarning, NeumannRBP, Picard, Status
from rbp_lightning.looks import Looks


def steps_and_looks(residuals: list[torch.Tensor], every: int, tol: float) -> tuple[int | None, int]:
    looks = Looks(every, tol)
    with CountSyncs() as syncs:
        for step, residual in enumerate(residuals, start=1):
            if looks.due(step) and looks.finished(step, residual):
                return step, syncs.count
    return None, syncs.count


@settings(deadline=None)
@given(rate=st.floats(0.05, 0.999), every=st.integers(1, 20), tol=st.sampled_from([1e-2, 1e-5]))
def test_a_geometric_decline_is_seen_to_end_soon(rate: float, every: int, tol: float) -> None:
    first = next(step for step in range(1, 15000) if rate**step <= tol)
    residuals = [torch.tensor(rate**step, dtype=torch.float64) for step in range(1, first + every + 1)]
    stopped, count = steps_and_looks(residuals, every, tol)
    assert stopped is not None
    # A hop is at most twice the interval, and 15% of it are to spare, rounded up; rounding can add a step.
    assert first <= stopped <= max(first + 0.3 * every + 2, every)
    assert count <= stopped // every + 2


FIGURES = st.sampled_from([0.0, 1e-30, 0.4, 0.6, 3.0, 3e38, float("inf"), float("nan")])


@settings(deadline=None)
@given(residuals=st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=80), every=st.integers(1, 12))
def test_whatever_the_residuals_do_it_stops_in_time_and_looks_rarely(residuals: list, every: int) -> None:
    stopped, count = steps_and_looks([torch.tensor(both) for both in residuals], every, tol=0.5)
    done = [all(figure <= 0.5 or not math.isfinite(figure) for figure in both) for both in residuals]
    failed = any(not math.isfinite(figure) for both in residuals for figure in both)
    assert count <= len(residuals) // every + 3 + failed
    if stopped is not None:
        assert done[stopped - 1]
    # The first look is not believed where a residual grows.
    before = done if stopped is None else done[: stopped - 1]
    assert not any(all(before[i : i + every]) for i in range(every, len(before) - every + 1))


def test_without_a_tolerance_nothing_is_read() -> None:
    assert steps_and_looks([torch.tensor(0.0)] * 50, every=1, tol=0.0) == (None, 0)


def test_an_iterate_of_zero_is_no_promise() -> None:
    # h goes 3, 0, 1, 2/3, ...: the residual at 0 is next to infinite.
    fixed_point = NeumannRBP(5)(lambda h: 1 - h / 3, torch.tensor([3.0]))
    torch.testing.assert_close(fixed_point.state.detach(), torch.tensor([0.75]))
    assert fixed_point.converged


def test_a_change_that_grows_from_next_to_nothing_is_no_convergence() -> None:
    start = torch.tensor([1e5, 1e-4])
    fixed_point = NeumannRBP(5)(lambda h: torch.stack([start[0], 100 * torch.tanh(3 * h[1] / 100)]), start)
    assert float(fixed_point.state[1]) > 90


def test_recurrent_back_propagation_reads_the_device_once_in_ten_steps_and_stops_in_time() -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    estimator = RBP(1000, 1e-6, start="gradient", solver=Picard(200, tol=0))
    state = estimator(lambda h: weight * h + 1, torch.zeros(3, 1, dtype=torch.float64), batch_dims=1).state
    with CountSyncs() as syncs:
        state.sum().backward()
    assert 20 <= estimator.adjoint.steps <= 23  # 0.5^20 is the first below 1e-6
    assert syncs.count <= 20 // 10 + 3  # the report among them


def test_an_easy_problem_is_done_before_the_tenth_step() -> None:
    residuals = [torch.tensor(0.3**step) for step in range(1, 20)]
    assert steps_and_looks(residuals, every=10, tol=2e-3) == (6, 2)  # 0.3^6 is the first below


def test_a_slow_decline_is_looked_at_once_in_twenty_steps() -> None:
    residuals = [torch.tensor(0.999**step, dtype=torch.float64) for step in range(1, 7000)]
    stopped, count = steps_and_looks(residuals, every=10, tol=1e-3)
    assert stopped == 6905  # 0.999^6905 is the first below
    assert count <= 6905 // 20 + 3


@settings(deadline=None)
@given(
    rates=st.lists(st.tuples(st.floats(0.1, 0.99), st.integers(1, 30)), min_size=2, max_size=4),
    every=st.integers(1, 12),
)
def test_a_decline_that_quickens_is_seen_before_twice_the_interval_is_over(rates: list, every: int) -> None:
    figures = [1.0]
    for rate, steps in rates:
        figures += [figures[-1] * rate ** (step + 1) for step in range(steps)]
    figures += [figures[-1] * 0.5 ** (step + 1) for step in range(60)]
    tol = 2e-4
    stopped, _ = steps_and_looks([torch.tensor(figure, dtype=torch.float64) for figure in figures], every, tol)
    first = next(step for step, figure in enumerate(figures, start=1) if figure <= tol)
    assert first <= stopped < first + (2 * every if every >= 6 else every)


def test_below_six_every_multiple_is_looked_at() -> None:
    looks = Looks(every=2, tol=1e-9)
    due = [step for step in range(2, 9) if looks.due(step) and not looks.finished(step, torch.tensor(0.5**step))]
    assert due == [2, 4, 6, 8]


def test_a_sample_that_fails_is_not_waited_for_and_is_known() -> None:
    looks = Looks(every=2, tol=0.1)
    assert not looks.finished(1, torch.tensor([1.0, 1.0]))
    assert looks.finished(2, torch.tensor([float("nan"), 0.01]))
    assert not looks.all_finite


def test_the_taped_step_of_what_has_converged_is_not_looked_at_again() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    with CountSyncs() as syncs:
        fixed_point = NeumannRBP(5, solver=Picard(100, 1e-4))(lambda h: weight * h + 1, torch.zeros(2, 3), batch_dims=1)
    assert syncs.count == 3  # after 3 steps, when promised, and as that was too early
    assert fixed_point.converged
    assert fixed_point.residual.max() <= 1e-4
    assert bool(fixed_point.samples(Status.CONVERGED).all())


def test_a_residual_may_change_its_dtype() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = torch.zeros(3, 4, dtype=torch.float64)
    fixed_point = NeumannRBP(5, solver=Picard(100, 1e-4))(lambda h: torch.tanh(weight * h.float() + 1), state)
    assert fixed_point.converged


def test_a_mode_that_grows_within_the_taped_steps_is_seen() -> None:
    rates = torch.tensor([0.1, 1.5], requires_grad=True)
    estimator = TBPTT(60, solver=Picard(200, 1e-4))
    with pytest.warns(ConvergenceWarning, match="diverged"):
        fixed_point = estimator(lambda h: rates * h + torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1e-9]))
    assert fixed_point.status is Status.DIVERGED
