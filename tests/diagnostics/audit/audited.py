"""A module whose exact gradient is known, and helpers to audit it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import AuditTrainer, GradientAudit, GradientEstimator
from tests.cells import dense, loss_of, tanh_cell
from tests.training import QUIET


class Exact(LightningModule):
    """The tanh cell of the other tests as a module; it ignores its batches."""

    def __init__(self, norm: float = 0.8) -> None:
        super().__init__()
        self.cell = tanh_cell(0, norm)
        self.weight, self.drive = (torch.nn.Parameter(tensor.detach().float()) for tensor in self.cell.tensors)

    def training_step(self, batch: Any) -> Tensor:
        start = torch.zeros_like(self.drive)
        state = self.estimator(lambda h: torch.tanh(h @ self.weight + self.drive), start, batch_dims=1).state
        return loss_of(state)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def exact(self) -> Tensor:
        """The exact gradient of all parameters, from a dense solution in float64."""
        cell = tanh_cell(0, 0.8)
        with torch.no_grad():
            cell.tensors[0].copy_(self.weight)
            cell.tensors[1].copy_(self.drive)
        return torch.cat([gradient.flatten() for gradient in dense(cell).gradients])


def batches(count: int = 5) -> DataLoader:
    return DataLoader(torch.arange(float(count)), batch_size=1)


def make_trainer(*callbacks: Any, **options: Any) -> AuditTrainer:
    return AuditTrainer(callbacks=list(callbacks), **{**QUIET, **options})


def audit(
    module: LightningModule, estimator: GradientEstimator, logger: Any = False, data: Any = None, **arguments: Any
) -> GradientAudit:
    data = batches() if data is None else data
    return make_trainer(estimator, logger=logger).audit(module, data, **arguments)
