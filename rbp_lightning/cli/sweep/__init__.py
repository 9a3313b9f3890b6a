"""The ``sweep`` subcommand: runs many combinations of options and seeds, and compares them."""

from rbp_lightning.cli.sweep.sweep import sweep

__all__ = ["sweep"]
