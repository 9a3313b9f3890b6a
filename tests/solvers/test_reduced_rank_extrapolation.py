"""Reduced rank extrapolation: its equivalence to GMRES for linear maps, and its safeguards."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import NeumannRBP, Picard, ReducedRankExtrapolation, Status, ignoring
from tests.solvers.iterates import iterates
from tests.zoo import draw, named, rotation, symmetric


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(0.2, 2.0), cycle=st.integers(2, 5))
def test_a_cycle_equals_gmres_for_a_linear_map(seed: int, radius: float, cycle: int) -> None:
    """A cycle of q steps ends one Picard step after the iterate of q - 1 steps of GMRES."""
    matrix, inputs = radius * draw(8, 8, seed=seed) / 8**0.5, draw(1, 8, seed=seed + 1)
    found = iterates(
        ReducedRankExtrapolation(cycle=cycle), lambda h: h @ matrix + inputs, torch.zeros_like(inputs), cycle
    )[-1]
    system = np.eye(8) - matrix.T.numpy()
    expected, _ = scipy.sparse.linalg.gmres(system, inputs[0].numpy(), rtol=1e-14, restart=cycle - 1, maxiter=1)
    expected = torch.from_numpy(expected) @ matrix + inputs[0]
    assert float((found[0] - expected).norm()) < 1e-6 * (1 + float(expected.norm()))


def test_a_sample_whose_extrapolation_is_worse_continues_from_its_picard_step() -> None:
    """The first sample's update jumps at the extrapolated state; the second one's is linear."""

    def update(h: torch.Tensor) -> torch.Tensor:
        jumped = torch.where(h > 6.0, h + 100.0, 0.9 * h + 0.7)  # the linear part has the fixed point 7
        return torch.cat([jumped[:1], 0.9 * h[1:] + 0.7])

    steps = iterates(ReducedRankExtrapolation(cycle=3), update, torch.zeros(2, 1).double(), 4)
    plain = iterates(Picard(), update, torch.zeros(2, 1).double(), 4)
    torch.testing.assert_close(steps[3], torch.full((2, 1), 7.0).double(), rtol=1e-5, atol=0)  # both were extrapolated
    torch.testing.assert_close(steps[4][0], plain[3][0])  # F of the iterate before the extrapolation
    torch.testing.assert_close(steps[4][1], torch.tensor([7.0]).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["linear 0.99", "tanh 0.99", "rotation"])
def test_takes_a_fraction_of_picard_s_steps(name: str) -> None:
    problem = named(name)
    with torch.no_grad():
        plain, cycles = (
            NeumannRBP(0, solver(5000, 1e-9))(problem.update, problem.start, batch_dims=1).steps
            for solver in (Picard, ReducedRankExtrapolation)
        )
    assert cycles < plain / 3


@settings(max_examples=15, deadline=None)
@given(slope=st.floats(-4.0, -1.2), radius=st.floats(1.1, 2.0))
def test_finds_fixed_points_of_expanding_maps(slope: float, radius: float) -> None:
    inputs = draw(2, 6, seed=3)
    for matrix in (slope * torch.eye(6).double(), rotation(radius)):
        with torch.no_grad(), ignoring():
            found = NeumannRBP(0, ReducedRankExtrapolation(200, 1e-9))(
                lambda h, matrix=matrix: h @ matrix + inputs, torch.zeros_like(inputs), batch_dims=1
            )
        assert found.status is Status.CONVERGED
        exact = torch.linalg.inv(torch.eye(6).double() - matrix)
        torch.testing.assert_close(found.state, inputs @ exact, rtol=1e-6, atol=1e-7)


def test_warm_up_steps_are_picard_steps() -> None:
    matrix, inputs = symmetric(0.9, 8), draw(1, 8, seed=0)
    update = lambda h: h @ matrix + inputs  # noqa: E731
    found = iterates(ReducedRankExtrapolation(cycle=2, warm_up=4), update, torch.zeros_like(inputs), 6)
    plain = iterates(Picard(), update, torch.zeros_like(inputs), 6)
    assert all(torch.equal(one, other) for one, other in zip(found[:6], plain[:6], strict=True))
    assert not torch.allclose(found[6], plain[6])
