"""Import, start, resume and memory; what a process does is measured in processes of their own.

python benchmarks/starting.py STORE    # measures a loader of this store, and prints JSON
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from measuring import answer_of

MIB = 1024
SIZES = (10**5, 10**6, 10**7, 10**8)
"""Documents of the stores; the last one is that of the goals."""
BATCHES = 50
"""Drawn before memory is looked at."""
IMPORTS = {
    "jax and grain": "import jax, grain",
    "xlstm_jax.dataset": "import jax, grain, xlstm_jax.dataset",
    "what a training script takes from it": (
        "import jax, grain; from xlstm_jax.dataset import make_grain_llm_iterator, open_source"
    ),
}


def measure(folder: Path, *, repeats: int) -> dict[str, Any]:
    """Import, then the largest store with its files in memory and not, then memory against the number of documents."""
    found: dict[str, Any] = {"import, s": imports(repeats + 2)}
    table = {}
    for size in SIZES:
        prefix = corpus.store_path(folder, size, **corpus.SMALL)
        print(f"  {size:,} documents", flush=True)
        runs = [answer_of(__file__, prefix) for _ in range(repeats if size == SIZES[-1] else 1)]
        table[size] = runs[-1] | {
            name: statistics.median(run[name] for run in runs) for name in runs[0] if name.endswith(", s")
        }
    found["memory above jax's own, MiB"] = {
        str(size): run["memory above jax's own, MiB"] for size, run in table.items()
    }
    found[f"{SIZES[-1]:,} documents"] = table[SIZES[-1]]
    print("  the same, none of its files in memory", flush=True)
    corpus.forget(prefix.with_suffix(".bin"), prefix.with_suffix(".idx"))
    found["files not in memory"] = answer_of(__file__, prefix)
    return found


def imports(repeats: int) -> dict[str, float]:
    """Median seconds of a process that imports, in turns; beyond jax and grain also of processor time.

    An installed package has its bytecode from the start, and Python keeps that of a checkout, unless it is told not to
    (`PYTHONDONTWRITEBYTECODE`). So the first round, which may compile, does not count.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for repeat, (name, statement) in itertools.product(range(-1, repeats), IMPORTS.items()):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-c", statement], check=True, env=environment)  # noqa: S603
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        if repeat >= 0:
            spent[name].append((time.perf_counter() - start, cpu))
    clock, cpu = ({name: statistics.median(run[kind] for run in spent[name]) for name in IMPORTS} for kind in (0, 1))
    base, *others = IMPORTS
    beyond = {f"{name}, beyond": clock[name] - clock[base] for name in others}
    return clock | beyond | {f"{name}, beyond, of CPU": cpu[name] - cpu[base] for name in others}


def _memory_mib() -> dict[str, int]:
    """Resident memory of this process: its own, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) // MIB for line in lines if line.startswith("Rss")}
    return {"own": found["RssAnon"], "mapped": found["RssFile"]}


def _middle_of_third_epoch(state: dict[str, Any], documents: int) -> dict[str, Any]:
    """A position in the middle of the third epoch: at a window that begins with its middle document."""
    (dataset,) = state["datasets"].values()
    # Any document may begin a window; the rows of the fifth and on are still to come.
    dataset["cursors"] = [[2, documents // 2, 0, 5]]
    return state


def main(prefix: str) -> None:
    """Measure and print."""
    import jax  # noqa: PLC0415 - what takes time here is not what is measured
    from jax.sharding import Mesh  # noqa: PLC0415

    from xlstm_jax.dataset import TokenStore, make_grain_llm_iterator  # noqa: PLC0415

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    jax.block_until_ready(jax.numpy.zeros(3))
    before = _memory_mib()
    found: dict[str, Any] = {}
    start = time.perf_counter()
    store = TokenStore(prefix)
    found["opening the store, s"] = time.perf_counter() - start

    def make() -> Any:
        return make_grain_llm_iterator(0, 1, mesh, store, 32, 2048, True, 0, grain_packing=True, num_shards=1)

    start = time.perf_counter()
    with make() as loader:
        jax.block_until_ready(next(loader))
        found["first batch after making the loader, s"] = time.perf_counter() - start
        state = _middle_of_third_epoch(loader.get_state(), len(store))
    start = time.perf_counter()
    with make() as loader:
        loader.set_state(state)
        jax.block_until_ready(next(loader))
        found["resuming in the third epoch, s"] = time.perf_counter() - start
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        for _ in itertools.islice(endless, BATCHES):
            pass
        after = _memory_mib()
    found["memory above jax's own, MiB"] = after["own"] - before["own"]
    found["mapped files, MiB"] = after["mapped"] - before["mapped"]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
