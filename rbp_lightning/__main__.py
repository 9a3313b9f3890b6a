"""The command line as a program: ``rbp-lightning``, or ``python -m rbp_lightning``."""

import sys

from rbp_lightning.overview import answer


def run() -> None:
    """Runs the command line with the arguments of the process."""
    answer(sys.argv[1:])
    from rbp_lightning.cli import console  # takes seconds to import

    console()


if __name__ == "__main__":
    run()
