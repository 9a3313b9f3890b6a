"""The command line of a checkout: ``rbp-lightning`` with the example tasks."""

import sys

from rbp_lightning.overview import answer, explained_imports

if __name__ == "__main__":
    answer(sys.argv[1:])  # before the slow imports

with explained_imports():
    # Imported so that their classes can be named without their modules.
    import datamodules  # noqa: F401
    import models  # noqa: F401
    from rbp_lightning.cli import console

if __name__ == "__main__":
    console()
