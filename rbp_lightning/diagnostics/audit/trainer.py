"""A Trainer with an ``audit`` method."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from rbp_lightning.checkpoint_file import load_checkpoint, refuse_unsafe_loading
from rbp_lightning.diagnostics.audit.gradient_audit import GradientAudit
from rbp_lightning.errors import UserError, check_count, check_number
from rbp_lightning.estimators import GradientEstimator


class AuditTrainer(Trainer):
    """A Lightning Trainer with an additional method, ``audit``.

    Example:
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = AuditTrainer(callbacks=[NeumannRBP()], **quiet)
    """

    def audit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        batches: int = 1,
        error: float = 0.01,
        steps: Sequence[int] = (1, 2, 5, 10, 20, 50),
    ) -> GradientAudit:
        """Compares the gradients of the estimators with the exact gradient on training batches, without training.

        The exact gradient is computed in float64, at a fixed point solved to 1e-12, by a dense solution of the adjoint
        equation or, for more than 512 elements in a sample, by GMRES. If the forward solve does not converge, the
        reference is BPTT through the configured steps. Prints a table and one sentence of advice, writes ``audit.csv``,
        ``audit.json`` and ``audit.png`` into the log folder, and logs the plot.

        Args:
            model: The module, whose training step calls ``self.estimator`` or a ``FixedPointLayer`` without an
                estimator of its own.
            train_dataloaders: The training data, as for ``fit``.
            datamodule: A data module, instead of ``train_dataloaders``.
            ckpt_path: A checkpoint whose parameters to audit; ``None`` for the module's own.
            weights_only: As for ``fit``, whose configuration has it; a checkpoint is always loaded with ``True``.
            batches: The number of training batches, at least 1.
            error: The relative error of the gradient to reach, above 0.
            steps: The numbers of steps to try, for estimators that have one.

        Returns:
            The audit, with its references, measurements and advice.

        Raises:
            UserError: If an argument is out of its range, the Trainer has no estimator or several processes, or the
                module cannot be audited.
        """
        check_count(self.audit, "batches", batches, 1)
        refuse_unsafe_loading(weights_only)
        check_number(self.audit, "error", error, 0.0, 1.0, low_allowed=False)
        for count in steps:
            check_count(self.audit, "steps", count, 1)
        if self.world_size > 1:
            raise UserError(f"audit: runs in one process, not in {self.world_size}: set devices and num_nodes to 1.")
        callbacks: list[Callback] = cast(Any, self).callbacks
        found = [callback for callback in callbacks if isinstance(callback, GradientEstimator)]
        if not found:
            raise UserError("audit: the Trainer has no gradient estimator: pass the one to audit as a callback.")
        audit = GradientAudit(found[0], error, steps)
        if ckpt_path is not None:
            checkpoint = load_checkpoint(ckpt_path)
            self.precision_plugin.convert_module(model)  # loading into lower precision would round
            model.load_state_dict(checkpoint["state_dict"])
            model.on_load_checkpoint(checkpoint)
        # No other callbacks, of the Trainer or of the module: they would act on a training.
        kept = [found[0], audit, *(one for one in callbacks if isinstance(one, SaveConfigCallback))]
        trainer = {"callbacks": kept, "limit_train_batches": batches, "limit_val_batches": 0}
        trainer |= {"num_sanity_val_steps": 0, "accumulate_grad_batches": 1}
        module = {"training_step": audit.audited_step(model), "configure_callbacks": list}
        module["configure_optimizers"] = lambda: None
        progress = copy.deepcopy(self.fit_loop.state_dict())
        # A Trainer that has trained needs one more epoch.
        epochs = cast(Any, self.fit_loop.epoch_progress.current).processed + 1
        with (
            _attributes(self, **trainer),
            _attributes(self.fit_loop, max_epochs=epochs, min_epochs=None),
            _attributes(self.fit_loop.epoch_loop, max_steps=-1, min_steps=None),
            _attributes(model, **module),
            warnings.catch_warnings(),
        ):
            for message in (
                "`training_step` returned `None`",
                "smaller than the logging",
                "run with no optimizer",
                "have no `val_dataloader`",
            ):
                warnings.filterwarnings("ignore", f".*{message}")
            try:
                self.fit(model, train_dataloaders, datamodule=datamodule)
            finally:
                self.fit_loop.load_state_dict(progress)
        return audit


@contextmanager
def _attributes(owner: object, **values: Any) -> Iterator[None]:
    """Sets attributes temporarily, and restores or removes them afterwards."""
    own = {name: vars(owner)[name] for name in values if name in vars(owner)}
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in own or isinstance(getattr(type(owner), name, None), property):
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)
