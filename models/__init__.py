"""LightningModules, one per task."""

from models.hopfield import HopfieldMemory

__all__ = ["HopfieldMemory"]
