"""When iterations look at their residuals."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import RBP, Picard
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


FIGURES = st.sampled_from([0.0, 0.4, 0.6, 3.0, float("inf"), float("nan")])


@settings(deadline=None)
@given(residuals=st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=80), every=st.integers(1, 12))
def test_whatever_the_residuals_do_it_stops_in_time_and_looks_rarely(residuals: list, every: int) -> None:
    stopped, count = steps_and_looks([torch.tensor(both) for both in residuals], every, tol=0.5)
    done = [all(figure <= 0.5 or not math.isfinite(figure) for figure in both) for both in residuals]
    assert count <= len(residuals) // every + 3
    if stopped is not None:
        assert done[stopped - 1]
    else:
        assert not any(all(done[i : i + every]) for i in range(len(done) - every + 1))


def test_without_a_tolerance_nothing_is_read() -> None:
    assert steps_and_looks([torch.tensor(0.0)] * 50, every=1, tol=0.0) == (None, 0)


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
