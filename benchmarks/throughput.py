"""The table: tokens a second of each path, against Grain's pipeline and the copy limit in the same run.

python benchmarks/throughput.py STORES LENGTH NAME SECONDS    # measures one of them, and prints JSON
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import corpus
import grain
from measuring import Pipeline, Rate, answer_of, rate_once, rates, rates_here
from pipelines import copy_limit, grain_pipeline, on_device, on_host

from xlstm_jax.dataset import ArrayRecordSource, TokenStore

GRAIN = "Grain, its fastest setting"
GRAIN_DEFAULTS = "Grain, its defaults"
HOST = "token store, host arrays"
DEVICE = "token store, jax arrays"
MIXTURE = "mixture of 50 datasets, jax arrays"
RECORDS = "ArrayRecord of tokens, jax arrays"
COPY = "copy limit, six np.copyto"
NAMES = (GRAIN, COPY, HOST, DEVICE, GRAIN_DEFAULTS, MIXTURE, RECORDS)
CONTEXTS = (2048, 8192)

# Handing single documents between threads costs more than it saves.
WITHOUT_THREADS = grain.ReadOptions(0, 0)


def measure(folder: Path, *, seconds: float, repeats: int) -> dict[str, Any]:
    """Context → name → rates, each of which is measured in a process of its own: what ran before has no part in it."""
    stores = [corpus.store_path(folder), *corpus.shards(folder, corpus.DOCUMENTS, 50)]
    corpus.read_once(
        corpus.array_record(folder, corpus.token_store(folder)), *(store.with_suffix(".bin") for store in stores)
    )
    table = {}
    for length in CONTEXTS:
        print(f"context {length}", flush=True)
        measures = {name: partial(answer_of, __file__, folder, length, name, seconds) for name in NAMES}
        table[str(length)] = against_grain(rates(measures, repeats))
    return table


def quick(folder: Path) -> dict[str, Any]:
    """The ratios that a short run guards."""
    parts = [TokenStore(part) for part in corpus.shards(folder, 20_000, 10)]
    pipelines = {**compared(corpus.store_path(folder, 20_000), 2048), MIXTURE: partial(on_device, parts * 5, 2048)}
    return {"2048": against_grain(rates_here(pipelines, seconds=0.7, repeats=3))}


def compared(prefix: Path, length: int) -> dict[str, Pipeline]:
    """What every comparison holds."""
    store = TokenStore(prefix)
    return {
        GRAIN: partial(grain_pipeline, prefix, length, WITHOUT_THREADS),
        COPY: partial(copy_limit, length),
        HOST: partial(on_host, [store], length),
        DEVICE: partial(on_device, [store], length),
    }


def _all(folder: Path, length: int) -> dict[str, Pipeline]:
    """Of each of `NAMES`."""
    prefix = corpus.store_path(folder)
    records = ArrayRecordSource(corpus.array_record(folder, TokenStore(prefix)), dtype="int32")
    parts = [TokenStore(part) for part in corpus.shards(folder, corpus.DOCUMENTS, 50)]
    return {
        **compared(prefix, length),
        GRAIN_DEFAULTS: partial(grain_pipeline, prefix, length, grain.ReadOptions()),
        MIXTURE: partial(on_device, parts, length),
        RECORDS: partial(on_device, [records], length),
    }


def against_grain(found: dict[str, Rate]) -> dict[str, Any]:
    """Name → rates and ratios; printed."""
    fastest = found[GRAIN]
    table = {}
    print(f"  {'':<36}{'M tokens/s':>11}{'x Grain':>9}{'per CPU s':>11}{'x copy':>8}")
    for name, rate in found.items():
        table[name] = {
            "tokens per s": rate.per_second,
            "tokens per CPU s": rate.per_cpu_second,
            "slowest and fastest repeat": [rate.slowest, rate.fastest],
            "ratio to Grain": rate.per_second / fastest.per_second,
            "ratio to Grain, per CPU s": rate.per_cpu_second / fastest.per_cpu_second,
            "ratio to Grain's defaults": rate.per_second / found.get(GRAIN_DEFAULTS, fastest).per_second,
            "ratio to copy limit": rate.per_second / found[COPY].per_second,
        }
        row = table[name]
        ratios = f"{row['ratio to Grain']:>9.1f}{row['ratio to Grain, per CPU s']:>11.1f}"
        print(f"  {name:<36}{rate.per_second / 1e6:>11.1f}{ratios}{row['ratio to copy limit']:>8.2f}", flush=True)
    return table


def main(folder: str, length: str, name: str, seconds: str) -> None:
    """Measure one of all, and print."""
    print(json.dumps(rate_once(_all(Path(folder), int(length))[name], float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
