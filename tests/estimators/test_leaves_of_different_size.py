"""States whose leaves differ by many orders of magnitude."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import BPTT, CGRBP, RBP, ExactAdjoint, GradientEstimator, NeumannRBP, Picard, Status, ignoring

MAKERS = {
    "RBP": lambda solver: RBP(3000, 1e-6, solver=solver),
    "CGRBP": lambda solver: CGRBP(1000, 1e-6, solver=solver),
    "NeumannRBP": lambda solver: NeumannRBP(300, solver),
    "BPTT": BPTT,
    "ExactAdjoint": lambda solver: ExactAdjoint(solver=solver),
}


def errors(estimator: GradientEstimator, ratio: float, rates: tuple[float, float]) -> tuple[list[float], list[float]]:
    """The relative errors of the state's leaves, and of the gradients of their weights."""
    drives = {"one": ratio, "other": 3.0}
    weights = {name: torch.tensor(1.0, dtype=torch.float64, requires_grad=True) for name in drives}
    rate = dict(zip(drives, rates, strict=True))
    found = estimator(
        lambda h: {name: rate[name] * weights[name] * h[name] + drive for name, drive in drives.items()},
        {name: torch.zeros(4, dtype=torch.float64) for name in drives},
    )
    assert found.converged
    (found.state["one"].square().mean() + found.state["other"].mean()).backward()
    exact = {name: drive / (1 - rate[name]) for name, drive in drives.items()}
    slopes = {name: exact[name] * rate[name] / (1 - rate[name]) for name in drives}
    slopes["one"] *= 2 * exact["one"]
    states = [abs(float(found.state[name][0].detach()) / exact[name] - 1) for name in drives]
    return states, [abs(float(weights[name].grad) / slopes[name] - 1) for name in drives]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=6, deadline=None)
@given(exponent=st.floats(-8, 8), rates=st.tuples(st.floats(0.1, 0.95), st.floats(0.1, 0.95)))
def test_every_leaf_and_its_gradient_converge(name: str, exponent: float, rates: tuple[float, float]) -> None:
    states, slopes = errors(MAKERS[name](Picard(3000, 1e-7, atol=0.0)), 10**exponent, rates)
    assert max(states) < 1e-7 / (1 - max(rates)) * 1.01
    assert max(slopes) < 1e-3


def test_per_leaf_false_uses_one_norm_over_all_leaves() -> None:
    apart, together = (NeumannRBP(300, Picard(3000, 1e-6, per_leaf=leaf)) for leaf in (True, False))
    assert errors(together, 1e8, (0.5, 0.97))[0][1] > 0.1
    assert errors(apart, 1e8, (0.5, 0.97))[0][1] < 1e-4


def test_the_residual_is_that_of_the_leaf_with_the_largest_one() -> None:
    solver = Picard(7, 1e-12)
    with torch.no_grad(), pytest.warns(match="max_steps"):
        found = BPTT(solver)(
            lambda h: (0.1 * h[0] + 1e6, 0.9 * h[1] + 1), (torch.zeros(2, 3), torch.zeros(2)), batch_dims=1
        )
    slow = found.state[1]
    torch.testing.assert_close(found.absolute_residual, (1 - 0.1 * slow).abs())
    torch.testing.assert_close(found.residual, found.history[-1].relative)


@pytest.mark.parametrize("estimator", [RBP(60, 1e-4), CGRBP(60, 1e-4)], ids=["RBP", "CGRBP"])
def test_a_leaf_whose_adjoint_is_zero_up_to_rounding_is_not_a_failure(estimator: GradientEstimator) -> None:
    """The second leaf changes only the mean of what is normalised, which layer_norm subtracts."""
    torch.manual_seed(0)
    weight = (0.1 * torch.randn(16, 16)).requires_grad_()
    inputs = torch.randn(4, 16)

    def update(state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        one, other = state
        normed = torch.nn.functional.layer_norm(one + other, (16,))
        return torch.tanh(normed @ weight + inputs), 0.5 * other + inputs[:, :1]

    found = estimator(update, (torch.zeros(4, 16), torch.zeros(4, 1)), batch_dims=1)
    found.state[0].sum().backward()
    assert found.adjoint is not None
    assert found.adjoint.converged


def test_a_leaf_whose_residual_still_declines_has_not_stalled() -> None:
    def update(state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        large, small = state
        return 2e8 - large, 0.6 * small + 0.4

    start = torch.full((2,), 1e8), torch.zeros(2)
    start[0][0] += 16
    for max_steps in (24, 25, 26):
        with torch.no_grad(), ignoring():
            found = NeumannRBP(solver=Picard(max_steps, 1e-6, check_every=1))(update, start)
        assert found.status is not Status.STALLED
