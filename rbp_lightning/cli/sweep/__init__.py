"""``sweep``: trainings of many combinations and seeds, and what they say of each other."""

from rbp_lightning.cli.sweep.sweep import sweep

__all__ = ["sweep"]
