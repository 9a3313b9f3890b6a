"""A callback that logs the norms of hypergradients."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from rbp_lightning import UserError


class HypergradientNorms(Callback):
    """Logs the norm of each hyperparameter's gradient.

    A run with nothing to learn is an error, and so is a gradient that is not finite.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is something to learn.

        Raises:
            UserError: If there is no hyperparameter to learn.
        """
        if stage == "fit" and not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise UserError(
                f"{type(pl_module).__name__}: there is nothing to learn: set learn_optimizer to True, or give it "
                "hyperparameters."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Logs the norms.

        Raises:
            UserError: If one of them is not finite.
        """
        norms = {name: leaf.grad.norm() for name, leaf in pl_module.named_parameters() if leaf.grad is not None}
        # With a loss scale, overflow only lowers the scale.
        if norms and trainer.precision != "16-mixed" and not torch.stack(list(norms.values())).isfinite().all():
            bad = [name for name, norm in norms.items() if not norm.isfinite()]
            raise UserError(
                f"The hypergradient of {', '.join(bad)} is not finite in outer step {trainer.global_step + 1}: the "
                "adjoint grows from step to step where the inner training is far from an optimum; lower the "
                "estimator's steps or inner_learning_rate."
            )
        pl_module.log_dict({f"hypergradient/{name}": norm for name, norm in norms.items()}, batch_size=1)
