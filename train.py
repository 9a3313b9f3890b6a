"""Entry of a checkout: the same as the console script ``rbp-lightning``."""

from rbp_lightning.cli import main

if __name__ == "__main__":
    main()
