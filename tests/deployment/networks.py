"""A layer to deploy, and solvers with a fixed number of steps."""

import torch
from torch import Tensor, nn

from rbp_lightning import (
    Anderson,
    Auto,
    Broyden,
    Damped,
    FixedPointLayer,
    FixedPointSolver,
    NeumannRBP,
    NewtonKrylov,
    Picard,
    ReducedRankExtrapolation,
)

SOLVERS = [
    Picard(4, tol=0),
    Damped(Picard(4, tol=0), damping=0.7),
    Auto(4, tol=0),
    Anderson(4, tol=0, window=2),
    ReducedRankExtrapolation(6, tol=0, cycle=2),
    Broyden(4, tol=0, memory=2),
    NewtonKrylov(5, tol=0, krylov=2),
]


class TanhCell(nn.Module):
    """h <- tanh(h W + b + x)."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(size, size, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.mul_(0.8 / torch.linalg.matrix_norm(self.linear.weight, 2))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(h) + x)


def layer(solver: FixedPointSolver) -> FixedPointLayer:
    """A layer in evaluation mode."""
    return FixedPointLayer(TanhCell(), NeumannRBP(solver=solver)).eval()


def inputs(batch: int) -> Tensor:
    """Inputs of the layer."""
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def name(described: object) -> str:
    """The id of a test case."""
    return type(described).__name__
