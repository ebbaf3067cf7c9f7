"""All that is measured here, a part at a time, on the same documents: printed, written as JSON, and drawn.

Speed is a ratio to a named peer in the same run: Grain's own pipeline at its fastest, and the copy limit. After each
part the results are written, so that a run that is cut off keeps what it has; `--only PART` measures one part anew.
`--quick` takes under a minute, and fails where a ratio falls below a wide margin.
"""

import argparse
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import corpus
import growth
import on_the_fly
import overlap
import picture
import planning
import report
import starting
import throughput
from goals import goals, show
from measuring import circumstances, machine, versions

OUTPUT = Path(".bench")
PACKAGES = ("xlstm-data", "jax", "jaxlib", "grain", "numpy", "numba", "array_record", "tokenizers")
GUARDS = {throughput.HOST: 25, throughput.DEVICE: 15, throughput.MIXTURE: 10}
"""Ratios below which the quick run fails: far below what a machine that does other things as well still reaches."""


def main() -> None:
    """Measure, print, write and draw."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    stores = options.output / "stores"
    if options.quick:
        _guard(throughput.quick(stores)["2048"])
        return
    measures = {
        "throughput": partial(throughput.measure, stores, seconds=options.seconds, repeats=options.repeats),
        "on the fly": partial(on_the_fly.measure, stores, seconds=2 * options.seconds, repeats=options.repeats),
        "planning": partial(planning.rates, 2 * options.repeats),
        "padding": partial(planning.padding, corpus.DOCUMENTS),
        "start": partial(starting.measure, stores, repeats=3),
        "overlap": partial(overlap.measure, stores, repeats=options.repeats),
        "growth": partial(growth.measure, stores, seconds=options.seconds / 2, repeats=3),
    }
    _run(measures, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; fails below a wide margin")
    parser.add_argument("--only", metavar="PART", help="throughput, on the fly, planning, padding, start, …")
    parser.add_argument("--minutes", type=float, default=15, help="no part begins later than that")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="stores, results and pictures")
    return parser.parse_args()


def _run(measures: dict[str, Any], options: argparse.Namespace) -> None:
    if options.only and options.only not in measures:
        sys.exit(f"There is no part {options.only!r}; parts are: {', '.join(measures)}.")
    path = options.output / "bench.json"
    # A single part joins those that were measured before; each says when, and beside what load.
    results = _before(path) if options.only and path.is_file() else {"measured": {}, "parts": {}}
    results |= {"machine": machine(), "versions": versions(*PACKAGES)}
    failed: list[str] = []
    begun = time.monotonic()
    for name in [options.only] if options.only else measures:
        if time.monotonic() - begun > 60 * options.minutes:
            print(f"\n{name}: left out after {options.minutes:g} minutes; measure it with --only {name!r}.", flush=True)
            continue
        print(f"\n{name} ({(time.monotonic() - begun) / 60:.1f} minutes so far)", flush=True)
        try:
            with circumstances() as beside:
                results["parts"][name] = measures[name]()
        except Exception:  # noqa: BLE001 - the other parts are worth having
            traceback.print_exc()
            failed.append(name)
            continue
        results["measured"][name] = beside
        results["goals"] = [goal._asdict() for goal in goals(results["parts"])]
        path.write_text(json.dumps(results, indent=2) + "\n")
        if name in report.BENCH and name != "throughput":  # That one has printed its tables.
            print(report.BENCH[name](results))
        print(show(goals({name: results["parts"][name]})), flush=True)
    picture.draw(results["parts"], options.output / "bench.png")
    print(f"\nAll goals, on {results['machine']['cores']} cores:\n{show(goals(results['parts']))}")
    print(f"\nWritten to {path} and {options.output / 'bench.png'}; `make clean` removes them, and 8 GB of stores.")
    if failed:
        sys.exit(f"Failed, see above: {', '.join(failed)}.")


def _before(path: Path) -> dict[str, Any]:
    """What was measured before, but for parts that another version of these benchmarks has written otherwise."""
    results: dict[str, Any] = json.loads(path.read_text())
    for name, part in list(results["parts"].items()):
        try:
            goals({name: part})
        except LookupError:
            del results["parts"][name], results["measured"][name]
    return results


def _guard(table: dict[str, Any]) -> None:
    for name, least in GUARDS.items():
        # Other work takes more from whoever has more threads, so the better of both ratios counts.
        ratio = max(table[name]["ratio to Grain"], table[name]["ratio to Grain, per CPU s"])
        if ratio < least:
            sys.exit(f"{name}: {ratio:.1f} times Grain's pipeline, and at least {least} is expected.")
        print(f"  {name}: {ratio:.0f} times Grain's pipeline, at least {least} expected")


if __name__ == "__main__":
    main()
