"""`python -m autoloss_jax` is `autoloss`."""

import sys

from autoloss_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
