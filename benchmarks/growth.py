"""Cost per token as things grow: documents, shards, datasets, row length."""

from pathlib import Path
from typing import Any

import corpus
from measuring import rates
from pipelines import on_device

DOCUMENTS = 100_000


def curves(folder: Path, big: Any, *, seconds: float, repeats: int) -> dict[str, dict[str, float]]:
    """What grows → how far → nanoseconds of processor time per token."""
    store = corpus.token_store(folder, DOCUMENTS)
    sources: dict[str, dict[str, tuple[list[Any], int, dict[str, Any]]]] = {
        "documents": {
            **{str(n): ([corpus.token_store(folder, n, median=12, tail=64)], 2048, {}) for n in (10**5, 10**6)},
            str(len(big)): ([big], 2048, {}),
        },
        "lanes": {str(n): ([store], 2048, {"shards": n}) for n in (1, 8, 64)},
        "files": {str(n): ([corpus.shards(folder, DOCUMENTS, n)], 2048, {}) for n in (1, 8, 64)},
        "datasets": {str(n): ([store] * n, 2048, {}) for n in (1, 10, 50)},
        "row length": {str(n): ([store], n, {}) for n in (512, 2048, 8192, 32_768, 131_072)},
    }
    table = {}
    for what, points in sources.items():
        pipelines = {
            point: lambda made=made, length=length, options=options: on_device(made, length, **options)
            for point, (made, length, options) in points.items()
        }
        print(f"growth: {what}", flush=True)
        found = rates(pipelines, seconds=seconds, repeats=repeats)
        table[what] = {point: 1e9 / rate.per_cpu_second for point, rate in found.items()}
    return table


def draw(table: dict[str, dict[str, float]], path: Path) -> None:
    """The curves as a picture."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(table), figsize=(3.2 * len(table), 3), sharey=True, layout="constrained")
    for axis, (what, points) in zip(axes, table.items(), strict=True):
        axis.plot([int(point) for point in points], list(points.values()), "o-", color="#2a6f97")
        axis.set(xscale="log", xlabel=what, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ns of one core per token")
    figure.suptitle("Cost per token, batches of 32 rows as jax arrays; each point is a median")
    figure.savefig(path, dpi=110)
    plt.close(figure)
