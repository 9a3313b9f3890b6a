"""``python -m rbp_lightning``: the same as the console script ``rbp-lightning``."""

from rbp_lightning.cli import console

if __name__ == "__main__":
    console()
