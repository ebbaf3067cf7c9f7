"""`xlstm-data prepare` against what it stands on, in one run on the same texts and the same cores.

Text is held against the tokenizer's own `encode_batch`, which does nothing else: in as many processes as `prepare` has
workers, and in one process with as many threads; the faster of the two counts. Tokens that are there already are held
against a copy of their files that is synced to the disk and hashed, as `prepare` does. The texts are the sources of
Python's standard library in documents of log-normal length, the tokenizer is a byte-level BPE that learns 32,000 tokens
from them. Starting (Python, the tokenizer, the workers), which a large input does not feel, is measured with a single
document, and taken off; the ratios with it stand in the JSON.
"""

import argparse
import itertools
import json
import os
import runpy
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import corpus
import watched
from measuring import circumstances, machine, versions

from xlstm_jax.dataset.sources.manifest import checksum

GOALS = {"prepare, JSONL": 0.85, "prepare, Parquet": 0.85}
"""Shares of `encode_batch` that are asked for."""
TOKENS_PER_SECOND = 100_000_000
"""Asked for where the input is tokens."""
VOCABULARY = 32_000
ROUNDS = 3
"""At least so many, in which all take turns: a machine that changes its speed changes it for all."""
TEXTS_PER_CALL = 1_000
MB = 1_000_000
THREADS, PROCESSES, FAST = "encode_batch, threads", "encode_batch, processes", "encode_batch_fast, processes"
demo = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "corpus.py"))


def repeated(texts: Sequence[str], size: int) -> Iterator[str]:
    """Texts from all over the corpus, again and again with another first line, until they have so many characters."""
    stride = max(1, sum(map(len, texts)) // size)
    for cycle in itertools.count():
        for text in texts[cycle % stride :: stride]:
            yield f"# {cycle}\n{text}"
            size -= len(text)
            if size <= 0:
                return


def write_jsonl(path: Path, texts: Iterator[str]) -> Path:
    """A record a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return path


def write_parquet(path: Path, texts: list[str]) -> Path:
    """Row groups of about 2 MB."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    pq.write_table(pa.table({"text": texts}), path, row_group_size=500)
    return path


# --- The tokenizer on its own ------------------------------------------------------------------------------------

_encode: Callable[[list[str]], Any]


def _load(tokenizer: str, method: str, threads: int) -> None:
    global _encode  # noqa: PLW0603 - of a process that does nothing else
    os.environ |= {"TOKENIZERS_PARALLELISM": str(threads > 1).lower(), "RAYON_NUM_THREADS": str(threads)}
    import tokenizers  # noqa: PLC0415

    _encode = getattr(tokenizers.Tokenizer.from_file(tokenizer), method)


def _encode_all(texts: list[str]) -> float:
    begun = time.perf_counter()
    for at in range(0, len(texts), TEXTS_PER_CALL):
        _encode(texts[at : at + TEXTS_PER_CALL])
    return time.perf_counter() - begun


def encode(tokenizer: Path, texts: list[str], method: str, *, processes: int, threads: int) -> float:
    """Seconds that the slowest of the processes takes for its share; loading the tokenizer does not count."""
    with ExitStack() as stack:
        loading = get_context("spawn"), _load, (str(tokenizer), method, threads)
        pools = [stack.enter_context(ProcessPoolExecutor(1, *loading)) for _ in range(processes)]
        for ready in [pool.submit(_encode_all, texts[:1]) for pool in pools]:
            ready.result()
        shares = [pool.submit(_encode_all, texts[place::processes]) for place, pool in enumerate(pools)]
        return max(share.result() for share in shares)


# --- The command -------------------------------------------------------------------------------------------------


def prepare(folder: Path, given: Path, *options: object, workers: int) -> watched.Run:
    """Run the command as a user does, into a folder that is removed afterwards."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "xlstm_jax", "prepare", given, "--output", output, "--workers", workers, *options]
    done = watched.run(command)
    shutil.rmtree(output)
    return done


def text(folder: Path, texts: list[str], tokenizer: Path, *, workers: int, seconds: float) -> dict[str, Any]:
    """Seconds of each, by turns, and what follows from them."""
    options = "--tokenizer", tokenizer
    one = write_jsonl(folder / "one.jsonl", iter(texts[:1]))
    jsonl = write_jsonl(folder / "texts.jsonl", iter(texts))
    parquet = write_parquet(folder / "texts.parquet", texts)
    turns: dict[str, Callable[[], float]] = {
        THREADS: lambda: encode(tokenizer, texts, "encode_batch", processes=1, threads=workers),
        PROCESSES: lambda: encode(tokenizer, texts, "encode_batch", processes=workers, threads=1),
        FAST: lambda: encode(tokenizer, texts, "encode_batch_fast", processes=workers, threads=1),
        "start": lambda: prepare(folder, one, *options, workers=workers).seconds,
        "prepare, JSONL": lambda: prepare(folder, jsonl, *options, "--task-size", "1M", workers=workers).seconds,
        "prepare, Parquet": lambda: prepare(folder, parquet, *options, "--task-size", "1M", workers=workers).seconds,
    }
    rounds: list[dict[str, float]] = []
    begun = time.monotonic()
    while len(rounds) < ROUNDS or time.monotonic() - begun < seconds:
        rounds.append({name: turn() for name, turn in turns.items()})
        print("  " + ", ".join(f"{name} {taken:.1f} s" for name, taken in rounds[-1].items()), flush=True)
    return judged(rounds, sum(map(len, texts)))


def judged(rounds: list[dict[str, float]], size: int) -> dict[str, Any]:
    """Medians of rates and of the ratios of each round, printed as a table."""
    medians = {name: statistics.median(taken[name] for taken in rounds) for name in rounds[0]}
    start, peer = medians["start"], min(THREADS, PROCESSES, key=lambda name: medians[name])
    heads = f"{'MB/s':>8}{'of encode_batch':>17}{'goal':>7}{'of _fast':>10}"
    print(f"\n{f'{size / MB:.1f} M characters of text':<32}{heads}")
    table = {}
    for name in (THREADS, PROCESSES, FAST, *GOALS):
        own = [taken[name] - (start if name in GOALS else 0) for taken in rounds]
        table[name] = row = {
            "MB per s": size / MB / statistics.median(own),
            "of encode_batch": _ratio([taken[peer] for taken in rounds], own),
            "of encode_batch_fast": _ratio([taken[FAST] for taken in rounds], own),
            "of encode_batch, start included": _ratio(
                [taken[peer] for taken in rounds], [taken[name] for taken in rounds]
            ),
        }
        goal = f"{GOALS[name]:.0%}" if name in GOALS else ""
        shown = f"{row['MB per s']:>8.2f}{row['of encode_batch']:>17.0%}{goal:>7}{row['of encode_batch_fast']:>10.0%}"
        print(f"{name:<32}{shown}")
    print(f"{'start, s':<32}{start:>8.2f}\n", flush=True)
    return {"characters": size, "start, s": start, "rates": table, "rounds, s": rounds}


def _ratio(alone: list[float], with_more: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(alone, with_more, strict=True))


def tokens(folder: Path, *, count: int, workers: int) -> dict[str, Any]:
    """A token store written anew, against a copy of its files."""
    store, one = folder / "tokens", folder / "one"
    corpus.store_path(store, count)
    corpus.store_path(one, 1)
    size = int(corpus.lengths(count).sum())
    rounds = [
        (
            copied(store, folder / "copy"),
            prepare(folder, one, workers=workers).seconds,
            prepare(folder, store, "--shard-size", "64M", workers=workers).seconds,
        )
        for _ in range(ROUNDS)
    ]
    copying, start, whole = map(statistics.median, zip(*rounds, strict=True))
    found = {
        "tokens": size,
        "tokens per s": size / (whole - start),
        "tokens per s, start included": size / whole,
        "of a copy": copying / (whole - start),
        "copy, tokens per s": size / copying,
        "rounds, s": rounds,
    }
    heads = f"{'M tokens/s':>12}{'goal':>7}{'of a copy':>11}"
    print(f"{f'{size / MB:.0f} M tokens, uint16':<32}{heads}")
    print(f"{'copy, sync, sha256 on one core':<32}{found['copy, tokens per s'] / MB:>12.0f}")
    rate, goal = found["tokens per s"] / MB, TOKENS_PER_SECOND / MB
    print(f"{'prepare':<32}{rate:>12.0f}{goal:>7.0f}{found['of a copy']:>11.0%}\n", flush=True)
    return found


def copied(store: Path, to: Path) -> float:
    """Seconds of a copy that is safe on the disk, and whose checksums are known."""
    begun = time.perf_counter()
    shutil.copytree(store, to)
    for path in to.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        checksum(path)
    spent = time.perf_counter() - begun
    shutil.rmtree(to)
    return spent


def memory(folder: Path, texts: list[str], tokenizer: Path, sizes: Sequence[int], *, workers: int) -> dict[str, Any]:
    """Peak memory for inputs of several sizes, all of enough tasks for all workers."""
    found = {}
    print(f"{'memory at most, MB':<32}{'all processes':>14}{'largest':>9}{'MB/s':>8}")
    for size in sizes:
        path = write_jsonl(folder / "sized.jsonl", repeated(texts, size))
        size_bytes = path.stat().st_size
        task = min(8 * MB, size // (4 * workers))
        done = prepare(folder, path, "--tokenizer", tokenizer, "--task-size", task, workers=workers)
        path.unlink()
        found[str(size_bytes)] = done._asdict()
        shown = (
            f"{done.peak_bytes / MB:>14.0f}{done.peak_of_one_bytes / MB:>9.0f}{size_bytes / MB / done.seconds:>8.2f}"
        )
        print(f"{f'{size_bytes / MB:,.1f} MB of JSONL':<32}{shown}", flush=True)
    return found


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All that is asked for."""
    texts = corpus.texts()
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        print("Learning a tokenizer ...", flush=True)
        demo["train_tokenizer"](texts, VOCABULARY, 4 * MB, tokenizer)
    packages = versions("xlstm-data", "tokenizers", "pyarrow", "numpy")
    results: dict[str, Any] = {"machine": machine(), "versions": packages, "workers": options.workers}
    if options.large:
        sizes = options.large // 10, options.large
        return results | {"memory": memory(folder, texts, tokenizer, sizes, workers=options.workers)}
    size = int(options.megabytes * MB)
    given = list(repeated(texts, size))
    results["text"] = text(folder, given, tokenizer, workers=options.workers, seconds=options.seconds)
    results["tokens"] = tokens(folder, count=options.documents, workers=options.workers)
    results["memory"] = memory(folder, texts, tokenizer, (size, 4 * size), workers=options.workers)
    return results


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=len(cores), help="and cores that all of it is held to")
    parser.add_argument("--megabytes", type=float, default=12, help="of text")
    parser.add_argument("--seconds", type=float, default=60, help="in which text is measured, by turns")
    parser.add_argument("--documents", type=int, default=600_000, help="of the token store; 400 M tokens by default")
    parser.add_argument("--large", type=int, metavar="BYTES", help="only memory, for a tenth and all of this")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else that of temporary files")
    parser.add_argument("--output", type=Path, default=Path(".bench/prepare.json"))
    options = parser.parse_args()
    os.sched_setaffinity(0, cores[: options.workers])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, circumstances() as beside:
        results = measured(Path(folder), options)
    options.output.write_text(json.dumps(results | {"circumstances": beside}, indent=2))
    print(f"\nCores taken by others meanwhile: {beside['cores taken by others']}. Written to {options.output}.")


if __name__ == "__main__":
    main()
