"""The command line."""

from rbp_lightning.cli.main import RBPLightningCLI, main
from rbp_lightning.cli.program import console

__all__ = ["RBPLightningCLI", "console", "main"]
