"""Everything that is measured, in one run on the same documents: printed, written as JSON, and drawn.

Speed is a ratio against a named peer in the same run: Grain's own pipeline at its fastest, and the copy limit.
`--quick` measures less, takes under a minute, and fails where a ratio falls below a wide margin.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import corpus
import growth
import overlap
import planning
from measuring import Pipeline, machine, rates
from pipelines import copy_limit, grain_fastest, on_device, on_host

from xlstm_jax.dataset import ArrayRecordSource, TokenStore

GRAIN = "Grain, first_fit, fastest setting"
HOST = "token store, host arrays"
DEVICE = "token store, jax arrays"
MIXTURE = "mixture of 50 datasets, jax arrays"
RECORDS = "ArrayRecord, jax arrays"
COPY = "copy limit, six np.copyto"
TARGETS = {HOST: 60, DEVICE: 40, MIXTURE: 25, RECORDS: 8}
"""Ratios to Grain's pipeline that are asked for."""
GUARDS = {DEVICE: 8, MIXTURE: 3}
"""Ratios below which the quick run fails: far below what a machine that does other things as well still reaches."""
BIG = 100_000_000


def pipelines(store: TokenStore, length: int, records: Path | None) -> dict[str, Pipeline]:
    """What takes turns."""
    found: dict[str, Pipeline] = {
        GRAIN: partial(grain_fastest, store, length),
        HOST: partial(on_host, [store], length),
        DEVICE: partial(on_device, [store], length),
        MIXTURE: partial(on_device, [store] * 50, length),
        COPY: partial(copy_limit, length),
    }
    if records is not None:
        found[RECORDS] = partial(on_device, [ArrayRecordSource(records, dtype="int32")], length)
    return found


def throughput(store: TokenStore, length: int, records: Path | None, *, seconds: float, repeats: int) -> dict[str, Any]:
    """Tokens a second, and ratios."""
    print(f"context {length}:", flush=True)
    found = rates(pipelines(store, length, records), seconds=seconds, repeats=repeats)
    table = {
        name: {
            "tokens per s": rate.per_second,
            "tokens per CPU s": rate.per_cpu_second,
            "ratio to Grain": rate.per_second / found[GRAIN].per_second,
            "ratio to Grain, per CPU s": rate.per_cpu_second / found[GRAIN].per_cpu_second,
            "share of copy limit": rate.per_second / found[COPY].per_second,
        }
        for name, rate in found.items()
    }
    heads = f"{'M tokens/s':>11}{'to Grain':>10}{'target':>8}{'per CPU s':>11}{'of copy':>9}"
    title = f"context {length}"
    print(f"\n{title:<36}{heads}")
    for name, row in table.items():
        ratio, per_cpu = row["ratio to Grain"], row["ratio to Grain, per CPU s"]
        shown = f"{row['tokens per s'] / 1e6:>11.1f}{ratio:>10.1f}{TARGETS.get(name, ''):>8}{per_cpu:>11.1f}"
        print(f"{name:<36}{shown}{row['share of copy limit']:>9.1%}")
    print(flush=True)
    return table


def starting(prefix: Path) -> dict[str, Any]:
    """See `starting.py`."""
    script = Path(__file__).parent / "starting.py"
    done = subprocess.run([sys.executable, script, prefix], check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def everything(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All sections."""
    seconds, repeats = options.seconds, options.repeats
    store = corpus.token_store(folder, options.documents)
    records = corpus.array_record(folder, store)
    big = corpus.token_store(folder, options.big_documents, median=12, tail=64)
    results: dict[str, Any] = {"machine": machine(), "tokens": int(store.lengths.sum()), "documents": len(store)}
    results["throughput"] = {
        str(length): throughput(store, length, records, seconds=seconds, repeats=repeats) for length in (2048, 8192)
    }
    results["planning"] = planning.rates()
    results["padding"] = planning.padding(len(store))
    results["start"] = starting(folder / f"store-{len(big)}-12-64")
    results["overlap"] = overlap.measure(store, 2048)
    results["growth, ns per token"] = growth.curves(folder, big, seconds=seconds / 2, repeats=3)
    for section in ("planning", "padding", "start", "overlap", "growth, ns per token"):
        print(f"\n{section}:")
        for name, value in results[section].items():
            print(f"  {name:<44}{_shown(value)}")
    return results


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name}: {_shown(part)}" for name, part in value.items())
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


def quick(folder: Path) -> dict[str, Any]:
    """A short run with guards."""
    store = corpus.token_store(folder, 20_000)
    table = throughput(store, 2048, None, seconds=1, repeats=3)
    for name, least in GUARDS.items():
        ratio = table[name]["ratio to Grain"]
        if ratio < least:
            sys.exit(f"{name}: {ratio:.1f} times Grain's pipeline, and at least {least} is expected.")
    return {"machine": machine(), "throughput": {"2048": table}}


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; fails below a wide margin")
    parser.add_argument("--documents", type=int, default=200_000, help="132 M tokens by default")
    parser.add_argument("--big-documents", type=int, default=BIG, help="of the store for start and memory; small ones")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where stores are kept between runs; else they are made anew")
    parser.add_argument("--output", type=Path, default=Path(".bench/bench.json"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        results = quick(folder) if options.quick else everything(folder, options)
    options.output.write_text(json.dumps(results, indent=2))
    if not options.quick:
        growth.draw(results["growth, ns per token"], options.output.with_suffix(".png"))
    print(f"\nWritten to {options.output}.")


if __name__ == "__main__":
    main()
