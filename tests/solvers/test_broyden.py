"""Broyden's method, against SciPy's."""

import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import Broyden
from tests.solvers.iterates import iterates
from tests.solvers.test_anderson import scipy_iterates
from tests.zoo import draw, symmetric


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(0.2, 0.9))
def test_iterates_equal_scipy_s(seed: int, radius: float) -> None:
    matrix, inputs = symmetric(radius, 8, seed), draw(8, seed=seed)

    def update(h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(h @ matrix) + inputs

    expected = scipy_iterates(scipy.optimize.broyden1, update, torch.zeros(8).double(), 6)
    found = iterates(Broyden(), update, torch.zeros(1, 8).double(), 6)
    for one, other in zip(found, expected, strict=True):
        assert float((one[0] - other).norm()) < 1e-6 * (1 + float(other.norm()))


def test_the_method_converges_after_its_memory_is_full() -> None:
    matrix, inputs = symmetric(0.9, 40), draw(3, 40, seed=0)
    found = iterates(Broyden(memory=4), lambda h: h @ matrix + inputs, torch.zeros_like(inputs), 120)
    residual = (found[-1] @ matrix + inputs - found[-1]).norm(dim=1) / found[-1].norm(dim=1)
    assert float(residual.max()) < 1e-3
