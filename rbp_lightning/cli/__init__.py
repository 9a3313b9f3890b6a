"""The command line."""

from rbp_lightning.cli.main import RBPLightningCLI, console, main

__all__ = ["RBPLightningCLI", "console", "main"]
