"""Entry of a checkout: ``rbp-lightning`` with this checkout's tasks."""

import sys

from rbp_lightning.overview import answer, explained_imports

if __name__ == "__main__":
    answer(sys.argv[1:])  # before what takes seconds to import

with explained_imports():
    # Imported so that the command line knows their classes by short names.
    import datamodules  # noqa: F401
    import models  # noqa: F401
    from rbp_lightning.cli import console

if __name__ == "__main__":
    console()
