"""What a user would pick instead, on the same tokens: run by `make bench-peers` in an environment of its own.

LitData's `TokensLoader` gives bare blocks: no packing, no segments, no positions, and documents cut anywhere. So does
Mosaic's `StreamingDataset`, here with samples of one block. Both are read in shuffled order by one process and stacked
to batches of 32 blocks.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 2048
BATCH = 32
BLOCKS = 20_000


def tokens() -> np.ndarray:
    """The same for all: 41 M tokens in blocks."""
    return np.random.default_rng(1).integers(1, 50_000, (BLOCKS, LENGTH + 1)).astype(np.int32)


def litdata(folder: Path, blocks: np.ndarray) -> Iterator[Any]:
    """Blocks of LitData's `TokensLoader`, shuffled."""
    from litdata import StreamingDataset, TokensLoader  # noqa: PLC0415
    from litdata.streaming.cache import Cache  # noqa: PLC0415

    cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(block_size=LENGTH + 1))
    for number, block in enumerate(blocks):
        cache[number] = block
    cache.done()
    cache.merge()
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True)
    while True:
        yield from (np.asarray(item) for item in dataset)


def mosaic(folder: Path, blocks: np.ndarray) -> Iterator[Any]:
    """Samples of Mosaic's `StreamingDataset`, shuffled."""
    from streaming import MDSWriter, StreamingDataset  # noqa: PLC0415

    with MDSWriter(out=str(folder), columns={"tokens": "ndarray:int32"}) as writer:
        for block in blocks:
            writer.write({"tokens": block})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    while True:
        yield from (item["tokens"] for item in dataset)


PEERS: dict[str, tuple[str, Callable[[Path, np.ndarray], Iterator[Any]]]] = {
    "LitData TokensLoader": ("litdata", litdata),
    "Mosaic StreamingDataset": ("mosaicml-streaming", mosaic),
}


def rate(blocks: Iterator[Any], seconds: float) -> float:
    """Tokens a second, in batches."""
    start, taken = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        batch = np.stack([next(blocks) for _ in range(BATCH)])
        taken += batch[:, :LENGTH].size
    return taken / spent


def main() -> None:
    """Measure each peer that is installed; say which is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(".bench/peers.json"))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    data = tokens()
    for name, (package, peer) in PEERS.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                blocks = peer(Path(folder) / "data", data)
                next(blocks)
                found = [rate(blocks, options.seconds) for _ in range(options.repeats)]
        except ImportError as error:
            print(f"{name:<28}not installed: {error}", flush=True)
            continue
        results[name] = {"tokens per s": statistics.median(found), "version": version(package)}
        print(f"{name:<28}{results[name]['tokens per s'] / 1e6:>10.1f} M tokens/s", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
