"""Loading that is killed again and again, and held against loading that is not.

Real JAX processes load mixed, packed, prefetched data. At random moments (of a seed) they are killed with SIGKILL, and
as many others as chance has it go on from the last saved position, on another mesh. Every row that they loaded up to a
saved position is compared with those of one process that is never killed. That one also makes an hour's worth of steps,
and its memory after the first minute's is compared with that at the end.

The exit code is 0 if nothing was lost, repeated or changed, and memory stayed within 5 %.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "benchmarks")]

import meshes  # noqa: E402 - the harness of the tests
import processes  # noqa: E402
from loading import FIELDS, Job  # noqa: E402
from xlstm_jax.dataset import TokenStore, write_token_store  # noqa: E402

SAVE_EVERY = 5
COUNTS = (1, 2, 3, 4)
MESHES = ("one axis", "permuted devices", "processes in reverse", "a model axis across processes")
LONGEST_LIFE_S = 8.0
MINUTE, HOUR = 60, 3600
"""Steps, at one a second."""
DATASETS = {"web": 20_000, "code": 6_000, "books": 1_000}
WEIGHTS = [5.0, 2.0, 1.0]
GROWTH_ALLOWED = 0.05


def write_data(folder: Path) -> None:
    """Token stores of log-normal documents, median 100 tokens."""
    random_numbers = np.random.default_rng(0)
    for name, count in DATASETS.items():
        lengths = np.clip(random_numbers.lognormal(np.log(100), 1.0, count), 1, 5000).astype(int)
        tokens = random_numbers.integers(1, 50_000, lengths.sum(), dtype=np.uint16)
        write_token_store(folder / name, np.split(tokens, np.cumsum(lengths)[:-1]), dtype=np.uint16)


def make_job(data: Path, ahead: int) -> Job:
    """The run: three datasets, packed, with a batch that doubles on the way."""
    stores = {name: TokenStore(data / name) for name in DATASETS}
    return Job(stores, batch=24, length=256, shards=3, weights=WEIGHTS, bins=64, factors={"300": 2}, prefetch=ahead)


def endless(loader: Any) -> Iterator[Any]:
    """Batches, pass after pass."""
    while True:
        yield from loader


def digest(parts: list[np.ndarray], row: int) -> str:
    """Says what all fields of a row hold."""
    return hashlib.blake2b(b"".join(part[row].tobytes() for part in parts), digest_size=8).hexdigest()


def load_in_a_process(data: str, folder: str, mesh: str, ahead: int) -> None:
    """Load from the saved position on, until killed; write down a digest of each row, and now and then the position."""
    total = jax.jit(jnp.sum)
    position = Path(folder) / "position.json"
    rows = Path(folder) / f"rows-{os.getpid()}.txt"
    with meshes.make_loader(make_job(Path(data), ahead), *meshes.make_mesh(mesh)) as loader, rows.open("w") as log:
        if position.exists():
            loader.set_state(json.loads(position.read_text()))
        step = loader.get_state()["step"]
        for batch in endless(loader):
            step += 1
            held = meshes.held(batch)
            for number, (index, _) in enumerate(held["inputs"][1]):
                parts = [held[name][1][number][1] for name in FIELDS]
                log.writelines(f"{step} {row} {digest(parts, row - index[0][0])}\n" for row in range(*index[0]))
            log.flush()
            # As in training: no process goes on before all have their part of this step.
            jax.block_until_ready(total(batch.inputs))
            if step % SAVE_EVERY == 0 and jax.process_index() == 0:
                whole = position.with_suffix(".part")
                whole.write_text(json.dumps(loader.get_state()))
                whole.replace(position)


class Reference:
    """One process that is never killed: this one."""

    def __init__(self, data: Path) -> None:
        self.loader = make_job(data, ahead=2).loader()
        self.batches = endless(self.loader)
        self.step = 0
        self.memory: dict[int, int] = {}

    def next_batch(self) -> Any:
        """The batch of the next step."""
        batch = next(self.batches)
        self.step += 1
        if self.step in (MINUTE, HOUR):
            gc.collect()
            self.memory[self.step] = resident_bytes()
        return batch

    def next_digests(self) -> list[str]:
        """Digests of the rows of the next step."""
        batch = self.next_batch()
        parts = [np.asarray(getattr(batch, name)) for name in FIELDS]
        return [digest(parts, row) for row in range(len(parts[0]))]


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_once(chance: random.Random, data: Path, folder: Path) -> dict[str, Any]:
    """Start processes, and kill them at a random moment: one first, as machines fail, then the rest."""
    life = {
        "count": chance.choice(COUNTS),
        "mesh": chance.choice(MESHES),
        "ahead": chance.randrange(4),
        "seconds": round(chance.uniform(0, LONGEST_LIFE_S), 2),
    }
    options = {"mesh": life["mesh"], "ahead": life["ahead"], "data": str(data), "folder": str(folder)}
    with processes.Group(
        "soak.load_in_a_process",
        life["count"],
        folder / "errors",
        devices=meshes.DEVICES // life["count"],
        **options,
    ) as group:
        ended = group.first_end(life["seconds"])
        if ended is not None:
            raise RuntimeError(f"A process ended by itself:\n{group.errors(ended)[-3000:]}")
        group.processes[chance.randrange(life["count"])].kill()
    return life


def read_rows(folder: Path, first: int, last: int) -> dict[tuple[int, int], set[str]]:
    """(step, row) → digests that the killed processes wrote down, for the steps after `first` up to `last`."""
    rows: dict[tuple[int, int], set[str]] = {}
    for log in folder.glob("rows-*.txt"):
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # The last line may have been cut by the kill.
                step, row, said = line.split()
                if first < int(step) <= last:
                    rows.setdefault((int(step), int(row)), set()).add(said)
        log.unlink()
    return rows


def saved_step(folder: Path) -> int:
    """The step of the saved position."""
    position = folder / "position.json"
    return int(json.loads(position.read_text())["step"]) if position.exists() else 0


def soak(seconds: float, seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """Kill and compare for so long; what came of it."""
    chance = random.Random(seed)  # noqa: S311 - chance, not secrets
    reference = Reference(data)
    found = {"restarts": 0, "rows_checked": 0, "rows_wrong": 0}
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        before = saved_step(folder)
        life = live_once(chance, data, folder)
        after = saved_step(folder)
        rows = read_rows(folder, before, after)
        for step in range(before + 1, after + 1):
            expected = reference.next_digests()
            wrong = [row for row, said in enumerate(expected) if rows.pop((step, row), None) != {said}]
            found["rows_checked"] += len(expected)
            found["rows_wrong"] += len(wrong)
        found["rows_wrong"] += len(rows)
        found["restarts"] += 1
        print(f"{life['count']} processes, {life['seconds']} s, {life['mesh']}: steps {before} to {after}, "
              f"{found['rows_checked']} rows checked, {found['rows_wrong']} wrong", flush=True)  # fmt: skip
    found["steps"] = reference.step
    while reference.step < HOUR:
        reference.next_batch()
    reference.loader.close()
    found["memory_start"], found["memory_end"] = reference.memory[MINUTE], reference.memory[HOUR]
    found["seconds"] = round(time.monotonic() - started, 1)
    return found


def main() -> int:
    """Soak, report, and tell by the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long processes are started and killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, numbers of processes and meshes")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        data.mkdir()
        run.mkdir()
        write_data(data)
        found = soak(options.seconds, options.seed, data, run)
    growth = found["memory_end"] / found["memory_start"] - 1
    print(json.dumps(found, indent=2))
    print(f"Memory grew by {growth:.1%} from step {MINUTE} to step {HOUR}; {found['rows_wrong']} rows were wrong.")
    return int(found["rows_wrong"] > 0 or found["rows_checked"] == 0 or growth > GROWTH_ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
