"""`python -m xlstm_jax`: the command line, where `xlstm-data` is not on the path."""

import sys

from xlstm_jax.cli import main

sys.exit(main())
