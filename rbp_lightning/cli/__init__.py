"""The command line."""

from rbp_lightning.cli.main import RBPLightningCLI, main

__all__ = ["RBPLightningCLI", "main"]
