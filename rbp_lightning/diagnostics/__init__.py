"""Checks of fixed points and their gradients: failure policy, monitor and gradient audit."""

from rbp_lightning.diagnostics.audit import AuditTrainer, GradientAudit
from rbp_lightning.diagnostics.monitor import EquilibriumMonitor
from rbp_lightning.diagnostics.policy import FailurePolicy

__all__ = ["AuditTrainer", "EquilibriumMonitor", "FailurePolicy", "GradientAudit"]
