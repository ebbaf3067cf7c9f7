"""Put the figures of the last runs into `docs/performance.md`: `make bench-report`.

Between a line `<!-- NAME -->` and the line `<!-- end -->` stands what is made here of `.bench/bench.json` and
`.bench/peers.json`; all else is written by hand. Where a file is missing, its figures stay as they are.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from goals import RATIOS

RESULTS = Path(".bench")
DOCUMENT = Path("docs/performance.md")
PICTURE = Path("docs/images/performance.png")
QUIET = 0.2
"""Cores that other work may take before it is told."""


def main() -> None:
    """Write the document anew."""
    text = DOCUMENT.read_text()
    for name, sections in (("bench", BENCH), ("peers", PEERS)):
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            print(f"There is no {path}; its figures stay.")
            continue
        results = json.loads(path.read_text())
        for section, write in sections.items():
            if section in (results.keys() | results.get("parts", {}).keys() | ALWAYS):
                text = _put(text, section, write(results))
    DOCUMENT.write_text(text)
    if (RESULTS / "bench.png").is_file():
        shutil.copyfile(RESULTS / "bench.png", PICTURE)
    print(f"{DOCUMENT} holds the figures of {RESULTS}.")


def _put(text: str, section: str, written: str) -> str:
    found = re.search(rf"(<!-- {section} -->\n).*?(<!-- end -->)", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"{DOCUMENT} has no place for this: a line <!-- {section} -->, and <!-- end --> after it.")
    return f"{text[: found.end(1)]}\n{written}\n\n{text[found.start(2) :]}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine(results: dict[str, Any]) -> str:
    machine, measured = results["machine"], results["measured"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    others = max(part["cores taken by others"] for part in measured.values())
    busy = f" **Other work took up to {others:.1f} cores meanwhile.**" if others > QUIET else ""
    return (
        f"Measured on {min(part['at'] for part in measured.values())[:10]}, on {machine['cores']} cores of "
        f"{machine['processor']} with {machine['memory, GiB']} GiB ({machine['platform']}); "
        f"Python {machine['python']}, {versions}.{busy}"
    )


def _goals(results: dict[str, Any]) -> str:
    rows = [[g["what"], g["asked"], g["got"], "yes" if g["reached"] else "**no**"] for g in results["goals"]]
    return table(["", "asked", "measured", "reached"], rows)


def _throughput(results: dict[str, Any]) -> str:
    return "\n\n".join(_context(*item) for item in results["parts"]["throughput"].items())


def _context(context: str, found: dict[str, Any]) -> str:
    head = [
        f"context {context}",
        "M tokens/s",
        "of all repeats",
        "asked",
        "x Grain",
        "per CPU s",
        "x its defaults",
        "x copy",
    ]
    rows = []
    for name, row in sorted(found.items(), key=lambda item: -item[1]["tokens per s"]):
        ratios = ("ratio to Grain", "ratio to Grain, per CPU s", "ratio to Grain's defaults", "ratio to copy limit")
        spread = " to ".join(figure(rate / 1e6) for rate in row["slowest and fastest repeat"])
        asked = str(RATIOS.get(name, ""))
        rows.append([name, figure(row["tokens per s"] / 1e6), spread, asked, *(figure(row[ratio]) for ratio in ratios)])
    return table(head, rows)


def _on_the_fly(results: dict[str, Any]) -> str:
    found = results["parts"]["on the fly"]
    return table(
        ["", "M tokens/s", "of `encode_batch`", "per CPU s"],
        [
            [
                name,
                f"{row['tokens per s'] / 1e6:.2f}",
                f"{row['share of encode_batch']:.0%}",
                f"{row['share of encode_batch, per CPU s']:.0%}",
            ]
            for name, row in found.items()
        ],
    )


def _padding(results: dict[str, Any]) -> str:
    found = results["parts"]["padding"]
    sizes = list(next(iter(found.values())))
    rows = [[f"`{rule}`", *(f"{shares[size]:.3%}" for size in sizes)] for rule, shares in found.items()]
    return table(["rule", *(f"{size} rows" for size in sizes)], rows)


def _start(results: dict[str, Any]) -> str:
    found = results["parts"]["start"]
    (name,) = [name for name in found if name.endswith(" documents")]
    warm, cold = found[name], found["files not in memory"]
    rows = [[what, figure(warm[what]), figure(cold[what])] for what in warm]
    imports = [[what, f"{spent:.2f}"] for what, spent in found["import, s"].items()]
    memory = ", ".join(f"{int(size):,}: {mib} MiB" for size, mib in found["memory above jax's own, MiB"].items())
    return (
        f"{table([f'a store of {name}', 'files in memory', 'files on disk'], rows)}\n\n"
        f"Memory above JAX's own, by number of documents: {memory}.\n\n"
        f"{table(['import', 's'], imports)}"
    )


def _overlap(results: dict[str, Any]) -> str:
    found = results["parts"]["overlap"]
    return (
        f"A step of {found['step, ms']:.0f} ms with batches of {found['positions per step']:,} positions waited for "
        f"{found['waiting, share of step']:.2%} of its time. The loader's threads took "
        f"{found['cores taken by the loader']:.2%} of one core, {found['loader, ms of one core per batch']:.2f} ms a "
        f"batch; a step with the loader took {found['step with the loader, of one without']:.3f} times as long as one "
        "without, where the step itself wants all cores."
    )


def _growth(results: dict[str, Any]) -> str:
    rows = []
    for what, points in results["parts"]["growth"].items():
        values = "; ".join(f"{int(point):,}: {value:.3g}" for point, value in points.items())
        rows.append([what, values])
    return table(["what grows", "ns of one core per token"], rows)


def _peers(results: dict[str, Any]) -> str:
    found = sorted(results["context 2048"].items(), key=lambda item: -item[1]["per_second"])
    rows = [
        [
            name,
            figure(row["per_second"] / 1e6),
            figure(row["per_cpu_second"] / 1e6),
            figure(row["ours, as a ratio"]),
        ]
        for name, row in found
    ]
    return table(["context 2048, host arrays", "M tokens/s", "M tokens/CPU s", "this library is x as fast"], rows)


BENCH: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": _machine,
    "goals": _goals,
    "throughput": _throughput,
    "on the fly": _on_the_fly,
    "padding": _padding,
    "start": _start,
    "overlap": _overlap,
    "growth": _growth,
}
ALWAYS = {"peers machine", "peers"}
PEERS: dict[str, Callable[[dict[str, Any]], str]] = {"peers machine": _machine, "peers": _peers}

if __name__ == "__main__":
    main()
