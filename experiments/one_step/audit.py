"""What the library's audit says of a training."""

import io
import math
import warnings
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from experiments.one_step.tasks import Model
from experiments.runs import label
from rbp_lightning import UserError
from rbp_lightning.diagnostics.audit import AuditTrainer
from rbp_lightning.diagnostics.audit.advice import TAPED

AUDITED = [f"audit: {name}" for name in ("settled", "residual", "radius", "error", "implicit error", "advice")]
"""Whether the forward solve converges (1 or 0), its residual and spectral radius, the relative error of the configured
estimator, the smallest one of an implicit estimator, and the estimator that is recommended, ``none`` or ``refused``."""

STEPS = (1, 5, 20)
"""The numbers of steps of the estimators in the audit, fewer than by default to take a few seconds."""


def audited(model: Model, batch: dict[str, Tensor], estimator: str) -> dict[str, Any]:
    """Audits a model with its estimator on one batch.

    Args:
        model: The model after a training; it keeps its parameters.
        batch: The training batch.
        estimator: Its estimator, as ``NAME`` or ``NAME:STEPS``.

    Returns:
        The figures named ``AUDITED``. Where the audit refuses, all but the advice are NaN.
    """
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = AuditTrainer(accelerator="cpu", callbacks=[model.estimator], **quiet)  # type: ignore[arg-type]
    model.train()
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers|GPU available but not used")
        try:
            audit = trainer.audit(model, DataLoader([batch], batch_size=None), steps=STEPS)  # type: ignore[arg-type]
        except UserError:
            return {**dict.fromkeys(AUDITED, math.nan), AUDITED[-1]: "refused"}
    (reference,) = audit.references
    *others, own = audit.measurements
    implicit = [one.relative_error for one in others if not one.gradient.startswith(TAPED)]
    name = "none" if audit.recommended is None else audit.recommended.gradient
    advice = label(estimator) if name == own.gradient else name
    figures = [int(reference.settled), reference.residual, reference.spectral_radius, own.relative_error]
    figures.append(min((error for error in implicit if error >= 0), default=math.nan))
    return dict(zip(AUDITED, [*(f"{figure:.4g}" for figure in figures), advice], strict=True))
