"""The gradient audit: compares the gradients of the estimators with the exact gradient."""

from rbp_lightning.diagnostics.audit.advice import advise
from rbp_lightning.diagnostics.audit.gradient_audit import GradientAudit
from rbp_lightning.diagnostics.audit.measurement import Measurement
from rbp_lightning.diagnostics.audit.reference import Reference
from rbp_lightning.diagnostics.audit.trainer import AuditTrainer

__all__ = ["AuditTrainer", "GradientAudit", "Measurement", "Reference", "advise"]
