"""When iterations look at their residuals."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import RBP, NeumannRBP, Picard
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
def test_a_geometric_decline_is_seen_to_end_at_once(rate: float, every: int, tol: float) -> None:
    first = next(step for step in range(1, 15000) if rate**step <= tol)
    residuals = [torch.tensor(rate**step, dtype=torch.float64) for step in range(1, first + every + 1)]
    stopped, count = steps_and_looks(residuals, every, tol)
    assert stopped is not None
    # Rounding can make the extrapolation a step too long.
    assert first <= stopped <= max(first + 1, every)
    assert count <= stopped // every + 2


FIGURES = st.sampled_from([0.0, 1e-30, 0.4, 0.6, 3.0, 3e38, float("inf"), float("nan")])


@settings(deadline=None)
@given(residuals=st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=80), every=st.integers(1, 12))
def test_whatever_the_residuals_do_it_stops_in_time_and_looks_rarely(residuals: list, every: int) -> None:
    stopped, count = steps_and_looks([torch.tensor(both) for both in residuals], every, tol=0.5)
    done = [all(figure <= 0.5 or not math.isfinite(figure) for figure in both) for both in residuals]
    assert count <= len(residuals) // every + 3
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
    assert estimator.adjoint.steps == 20  # 0.5^20 is the first below 1e-6
    assert syncs.count <= 20 // 10 + 3  # the report among them


def test_an_easy_problem_is_done_before_the_tenth_step() -> None:
    residuals = [torch.tensor(0.3**step) for step in range(1, 20)]
    assert steps_and_looks(residuals, every=10, tol=2e-3) == (6, 2)  # 0.3^6 is the first below
