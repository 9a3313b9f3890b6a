"""Whether fixed points and their gradients can be trusted, and what happens where they cannot."""

from rbp_lightning.diagnostics.audit import AuditTrainer, GradientAudit
from rbp_lightning.diagnostics.monitor import EquilibriumMonitor
from rbp_lightning.diagnostics.policy import FailurePolicy

__all__ = ["AuditTrainer", "EquilibriumMonitor", "FailurePolicy", "GradientAudit"]
