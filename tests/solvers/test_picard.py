"""Picard iteration: convergence checks, divergence, and solvers of a user's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import CGRBP, FixedPoint, FixedPointSolver, NeumannRBP, Picard, Status, UserError, ignoring


def run(update, start, solver, batch_dims=0) -> FixedPoint:
    with torch.no_grad(), ignoring():
        return NeumannRBP(0, solver)(update, start, batch_dims)


@settings(deadline=None)
@given(rate=st.floats(0.05, 0.95), scale=st.floats(1e-6, 1e6), tol=st.sampled_from([1e-3, 1e-8]))
def test_stops_at_the_tolerance_or_at_the_next_check(rate, scale, tol) -> None:
    result = run(lambda h: rate * h + scale, torch.zeros(2, dtype=torch.float64), Picard(2000, tol, atol=0.0))
    assert result.status is Status.CONVERGED
    assert float(result.residual) <= tol
    # h_t = scale (1 - rate^t) / (1 - rate) gives the residual of each step.
    first = next(t for t in range(1, 2001) if rate ** (t - 1) * (1 - rate) / (1 - rate**t) <= tol)
    assert first <= result.steps <= first + 10


def test_the_tolerance_is_met_by_every_sample() -> None:
    # The second sample converges slowly, and is a millionth of the first.
    rates, drive = torch.tensor([[0.1], [0.9]]), torch.tensor([[1e6], [1.0]])
    apart = run(lambda h: rates * h + drive, torch.zeros(2, 1), Picard(1000, 1e-5), batch_dims=1)
    together = run(lambda h: rates * h + drive, torch.zeros(2, 1), Picard(1000, 1e-5), batch_dims=0)
    torch.testing.assert_close(apart.state[1], torch.tensor([10.0]), rtol=1e-3, atol=0)
    assert together.steps < apart.steps


def test_synchronises_once_in_ten_steps() -> None:
    with CountSyncs() as reads:
        result = run(lambda h: 0.999 * h + 1, torch.zeros(3, 2), Picard(200, 1e-9), batch_dims=1)
    assert result.steps == 200
    assert reads.count <= 200 // 10 + 1


def test_tolerance_zero_runs_every_step() -> None:
    calls = []
    result = run(lambda h: calls.append(1) or 0 * h, torch.ones(2), Picard(37, tol=0))
    assert len(calls) == result.steps == 37
    assert result.status is Status.CONVERGED  # nothing moved in the end


def test_a_fixed_point_at_zero_converges() -> None:
    assert run(lambda h: h @ torch.eye(2), torch.zeros(2), Picard(50, 1e-6)).status is Status.CONVERGED


def test_a_start_at_the_fixed_point_is_not_divergence() -> None:
    start = torch.full((2,), 1 / 3)
    assert run(lambda h: 0.7 * h + 0.1, start, Picard(50, 0)).status in (Status.CONVERGED, Status.MAX_STEPS)


def test_a_limit_cycle_beside_a_sample_at_rest_is_not_divergence() -> None:
    # The other samples always change by the same norm, but that is computed differently once one sample stops changing.
    rates = torch.tensor([2.0] * 7 + [0.0])[:, None]
    for seed in range(50):
        drive = torch.rand(8, 3, generator=torch.Generator().manual_seed(seed))
        cycle = run(lambda h, drive=drive: torch.relu(drive - rates * h), torch.zeros(8, 3), Picard(), batch_dims=1)
        assert cycle.status is Status.MAX_STEPS, seed


def test_a_limit_cycle_is_not_convergence() -> None:
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert run(lambda h: h @ rotation, torch.ones(2), Picard(100, 1e-6)).status is Status.MAX_STEPS


def test_transient_growth_of_a_non_normal_map_is_not_divergence() -> None:
    # The spectral radius is 0.9, the norm far above 1.
    matrix = (0.9 * torch.eye(12) + torch.diag(torch.full((11,), 0.8), 1)).double()
    statuses = {
        steps: run(lambda h: h @ matrix + 1, torch.zeros(12).double(), Picard(steps, tol=0)).status
        for steps in range(160, 400, 20)  # after the transient growth
    }
    assert set(statuses.values()) <= {Status.MAX_STEPS, Status.CONVERGED}
    grows = run(lambda h: h @ (matrix / 0.85) + 1, torch.zeros(12).double(), Picard(300, tol=0))
    assert grows.status is Status.DIVERGED


def test_chaotic_iterates_are_a_failure() -> None:
    statuses = []
    for seed in range(20):
        matrix = 3 * torch.randn(50, 50, generator=torch.Generator().manual_seed(seed)) / 50**0.5
        statuses.append(
            run(lambda h, matrix=matrix: torch.tanh(h @ matrix + 0.1), torch.zeros(50), Picard(100, 1e-6)).status
        )
    assert Status.CONVERGED not in statuses
    assert set(statuses) <= {Status.DIVERGED, Status.MAX_STEPS}
    assert Status.DIVERGED in statuses  # which of the seeds these are depends on rounding


def test_a_leaf_may_be_empty() -> None:
    start = (torch.zeros(3, 2), torch.zeros(3, 0))
    result = run(lambda s: (0.5 * s[0] + 1, 0.5 * s[1]), start, Picard(100, 1e-5), batch_dims=1)
    assert result.status is Status.CONVERGED


def test_a_low_precision_start_at_the_fixed_point_is_not_divergence() -> None:
    start = torch.full((64,), 10.0, dtype=torch.bfloat16)
    noisy = torch.linspace(0.99, 1.01, 64).bfloat16()
    for tol in (0, 1e-6):
        result = run(lambda h: (0.9 * h + 1) * noisy, start, Picard(60, tol=tol))
        assert result.status is not Status.DIVERGED


def test_the_number_of_steps_does_not_depend_on_the_scale_of_the_state() -> None:
    steps = {
        scale: run(lambda h, scale=scale: 0.9 * h + scale, torch.zeros(3), Picard(500, 1e-5, atol=0.0)).steps
        for scale in (1e-15, 1e-6, 1.0, 1e6, 1e15)
    }
    assert len(set(steps.values())) == 1, steps


def test_residuals_of_low_precision_states_are_computed_in_float32() -> None:
    result = run(lambda h: 0.5 * h + 1, torch.zeros(4, 70000, dtype=torch.bfloat16), Picard(60, 1e-3), batch_dims=1)
    assert result.residual.dtype is torch.float32
    assert result.status is Status.CONVERGED
    assert result.state.dtype is torch.bfloat16


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_growth_until_overflow_is_divergence(size: int, batch_dims: int) -> None:
    torch.manual_seed(0)
    rotation = 1.05 * torch.linalg.qr(torch.randn(size, size))[0]
    start = torch.zeros(*[3] * batch_dims, size)
    assert run(lambda h: h @ rotation + 1, start, Picard(3000, 1e-6), batch_dims).status is Status.DIVERGED


def test_a_warm_start_at_rounding_is_not_divergence() -> None:
    """From there on rounding can only increase the residual."""
    weight = 0.9 * torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(0)))[0]
    cold = run(lambda h: h @ weight + 1, torch.zeros(8, 50), Picard(2000, 1e-7), 1)
    for steps in range(2, 12):
        warm = run(lambda h: h @ weight + 1, cold.state, Picard(steps, 1e-9), 1)
        assert warm.status is not Status.DIVERGED


class DampedPicard(FixedPointSolver):
    """h <- h + 0.3 (F(h) - h)."""

    def step(self, vector, image, memory):
        return [h + 0.3 * (f - h) for h, f in zip(vector, image, strict=True)], memory


def test_a_user_s_solver_converges_where_picard_iteration_does_not() -> None:
    """Damping turns the slope -2 into 0.1; the gradient is that of the fixed point."""
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(3, 1, dtype=torch.float64)
    assert run(lambda h: 1 - 2 * h, start, Picard(100), 1).status is Status.DIVERGED
    result = CGRBP(solver=DampedPicard(200, 1e-12))(lambda h: 1 - weight * h, start, 1)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.state.detach(), torch.full_like(start, 1 / 3), rtol=1e-10, atol=0)
    result.state.sum().backward()
    assert float(weight.grad) == pytest.approx(-3 / 9, rel=1e-9)  # h* = 1 / (1 + w)


class Momentum(FixedPointSolver):
    """Picard iteration with momentum, whose memory is the last change."""

    def init(self, vector, batch_dims):
        return [torch.zeros_like(leaf) for leaf in vector]

    def step(self, vector, image, memory):
        changes = [0.5 * m + f - h for h, f, m in zip(vector, image, memory, strict=True)]
        return [h + change for h, change in zip(vector, changes, strict=True)], changes


def test_a_solver_s_memory_belongs_to_one_solve() -> None:
    solver = Momentum(300, 1e-9)
    start = {"a": torch.zeros(2).double(), "b": torch.zeros(3).double()}
    found = [run(lambda h: {"a": 0.9 * h["a"] + 1, "b": 0.8 * h["b"] + 1}, start, solver) for _ in range(2)]
    plain = run(lambda h: {"a": 0.9 * h["a"] + 1, "b": 0.8 * h["b"] + 1}, start, Picard(300, 1e-9))
    assert found[0].steps == found[1].steps < plain.steps
    for one, other in zip(found[0].state.values(), plain.state.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("taped", [False, True])
def test_an_update_that_returns_the_same_buffer_is_refused(taped: bool) -> None:
    buffer = torch.zeros(2)
    with torch.set_grad_enabled(taped), pytest.raises(UserError, match="new one"):
        NeumannRBP()(lambda h: torch.add(0.5 * h.detach(), 1, out=buffer), torch.zeros(2))
