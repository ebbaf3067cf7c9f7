"""Imported once by the server that test processes are forked from: all that each would import and compile itself."""

import orbax.checkpoint  # noqa: F401 - for the processes
import pytest  # noqa: F401 - for the processes

from loading import Job, make_documents
from xlstm_jax.dataset.mixing import MixtureSequence


def _load_kernels() -> None:
    for packing in (None, "best_fit", "first_fit", "concat_split"):
        (dataset,) = Job({"d": make_documents(0, 40, 40)}, packing=packing, shards=2).datasets_of(0)
        next(iter(dataset))
    MixtureSequence((1, 2), (0, 0)).take(8)


_load_kernels()
