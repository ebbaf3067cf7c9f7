"""This library against Grain's own pipeline, on the same documents, in one run, as a ratio.

Grain's pipeline is `map → to_iter_dataset(ReadOptions(0, 0)) → FirstFitPackIterDataset → shift → batch`, its fastest
setting: no threads, since handing single documents between threads costs more than it saves. Ours is the loader as a
user makes it: packed by best fit, shuffled, delivered as `jax.Array`s on the device.

Each figure is the median of several repeats; the two alternate, so that a machine that changes its speed changes both.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from xlstm_jax.dataset import LLMBatch, TokenStore, make_grain_llm_iterator, write_token_store

LENGTH = 2048
BATCH = 32
FEATURES = {"inputs": LENGTH, "targets": LENGTH}


def make_documents(count: int) -> list[np.ndarray]:
    """Log-normal lengths, median 400 tokens, tail to 30,000."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(400), 1.0, count), 1, 30_000).astype(int)
    tokens = rng.integers(1, 50_000, lengths.sum(), dtype=np.uint16)
    return np.split(tokens, np.cumsum(lengths)[:-1])


class Cut:
    """The documents of a store, those longer than a row cut off: Grain's packing refuses them."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.store[index][:LENGTH]


def shift(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Targets are the next token of the row, as public pipelines do it."""
    return {**row, "targets": np.concatenate([row["targets"][1:], [0]])}


def grain_tokens_per_s(store: TokenStore, seconds: float) -> float:
    """Tokens a second of Grain's pipeline, over whole batches."""
    dataset = (
        grain.MapDataset.source(Cut(store))
        .shuffle(seed=0)
        .map(lambda tokens: {"inputs": tokens.astype(np.int32), "targets": tokens.astype(np.int32)})
        .to_iter_dataset(grain.ReadOptions(0, 0))
    )
    packed = grain.experimental.FirstFitPackIterDataset(dataset, length_struct=FEATURES, num_packing_bins=BATCH)
    batches = iter(packed.map(shift).batch(BATCH))
    next(batches)
    return _rate(lambda: int(np.count_nonzero(next(batches)["inputs_segment_ids"])), seconds)


def our_tokens_per_s(store: TokenStore, seconds: float) -> float:
    """Tokens a second of our loader, batches on the device."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with make_grain_llm_iterator(
        0, 1, mesh, store, BATCH, LENGTH, True, 0, grain_packing=True, num_shards=1, worker_buffer_size=4
    ) as loader:
        batches = iter(loader)
        jax.block_until_ready(next(batches))

        def take() -> int:
            batch: LLMBatch = jax.block_until_ready(next(batches))
            return batch.inputs.size

        rate = _rate(take, seconds)
        filled = np.mean([np.mean(np.asarray(next(batches).inputs_segmentation) > 0) for _ in range(20)])
        return float(rate * filled)


def _rate(take: Callable[[], int], seconds: float) -> float:
    start, tokens = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        tokens += take()
    return tokens / spent


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(".bench/bench.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = write_token_store(Path(folder) / "store", make_documents(options.documents), dtype=np.uint16)
        measured = {"grain": [], "ours": []}
        for repeat in range(options.repeats):
            measured["grain"].append(grain_tokens_per_s(store, options.seconds))
            measured["ours"].append(our_tokens_per_s(store, options.seconds))
            print(f"repeat {repeat + 1} of {options.repeats}: " + ", ".join(
                f"{name} {values[-1] / 1e6:.1f} M tokens/s" for name, values in measured.items()
            ), flush=True)  # fmt: skip
    medians = {name: statistics.median(values) for name, values in measured.items()}
    ratio = medians["ours"] / medians["grain"]
    print(f"\n{'pipeline':<42}{'M tokens/s':>12}{'ratio':>8}")
    print(f"{'Grain first-fit, fastest setting':<42}{medians['grain'] / 1e6:>12.1f}{1.0:>8.1f}")
    print(f"{'this library, best-fit, jax arrays':<42}{medians['ours'] / 1e6:>12.1f}{ratio:>8.1f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "tokens_per_s": measured,
        "medians": medians,
        "ratio": ratio,
        "machine": {"platform": platform.platform(), "processor": platform.processor()},
        "versions": {name: version(name) for name in ("jax", "grain", "numpy", "numba")},
    }
    options.output.write_text(json.dumps(result, indent=2))
    print(f"\nWritten to {options.output}.")


if __name__ == "__main__":
    main()
