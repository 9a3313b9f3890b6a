"""The estimators on a CUDA device."""

import copy

import pytest
import torch

from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, GradientEstimator, NeumannRBP, Picard
from tests.cells import loss_of, tanh_cell

SOLVER = Picard(300, tol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize(
    "estimator",
    [BPTT(SOLVER), TBPTT(20, SOLVER), RBP(20, tol=0, solver=SOLVER), NeumannRBP(20, SOLVER), CGRBP(20, solver=SOLVER)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_gradients_are_those_of_the_cpu(estimator: GradientEstimator) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        weight, drive = (tensor.detach().to(device).requires_grad_() for tensor in tanh_cell(0).tensors)
        start = torch.zeros_like(drive, requires_grad=False)
        # RBP draws the same start on every device.
        own = copy.deepcopy(estimator)

        def update(h: torch.Tensor, weight: torch.Tensor = weight, drive: torch.Tensor = drive) -> torch.Tensor:
            return torch.tanh(h @ weight + drive)

        loss_of(own(update, start, batch_dims=1).state.cpu()).backward()
        found[device] = (weight.grad.cpu(), drive.grad.cpu())
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-9, atol=1e-11)
