"""Start, resume and memory on a store of many small documents; run as a process of its own, which prints JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xlstm_jax.dataset import TokenStore, make_grain_llm_iterator

MIB = 1024


def memory_mib() -> dict[str, int]:
    """Resident memory of this process: its own, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) // MIB for line in lines if line.startswith("Rss")}
    return {"own": found["RssAnon"], "mapped": found["RssFile"]}


def make(store: TokenStore) -> Any:
    """The loader, with default settings."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return make_grain_llm_iterator(0, 1, mesh, store, 32, 2048, True, 0, grain_packing=True, num_shards=1)


def middle_of_third_epoch(state: dict[str, Any], store: TokenStore) -> dict[str, Any]:
    """A position in the middle of the third epoch: at a window that begins with its middle document."""
    (dataset,) = state["datasets"].values()
    # The window that holds the middle is found by packing from there: any document may begin one.
    dataset["cursors"] = [[2, len(store) // 2, 0, 5]]
    return state


def main(prefix: str) -> None:
    """Measure and print."""
    jax.block_until_ready(jax.numpy.zeros(3))
    found: dict[str, Any] = {"memory before": memory_mib()}
    start = time.perf_counter()
    store = TokenStore(prefix)
    found["opening the store, s"] = time.perf_counter() - start
    start = time.perf_counter()
    loader = make(store)
    jax.block_until_ready(next(loader))
    found["first batch after making the loader, s"] = time.perf_counter() - start
    state = middle_of_third_epoch(loader.get_state(), store)
    loader.close()
    start = time.perf_counter()
    loader = make(store)
    loader.set_state(state)
    jax.block_until_ready(next(loader))
    found["resuming in the third epoch, s"] = time.perf_counter() - start
    for _ in range(50):
        next(loader)
    found["memory after"] = memory_mib()
    found["memory above jax's own, MiB"] = found["memory after"]["own"] - found["memory before"]["own"]
    found["documents"] = len(store)
    loader.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
