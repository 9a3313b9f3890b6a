"""Entry of a checkout: ``rbp-lightning`` with this checkout's tasks."""

# Imported so that the command line knows their classes by short names.
import datamodules  # noqa: F401
import models  # noqa: F401
from rbp_lightning.cli import console

if __name__ == "__main__":
    console()
