"""A training loop whose step takes longer than loading: how long it waits, and what the loader takes from it."""

import statistics
import threading
import time
from pathlib import Path

import corpus
import jax
import jax.numpy as jnp
from pipelines import BATCH, loader, one_device

WIDTH = 1536


@jax.jit
def step(weights: jax.Array, tokens: jax.Array) -> jax.Array:
    """Stands for a training step; it takes all cores of the CPU."""
    for _ in range(2):
        weights = jnp.tanh(weights @ weights / WIDTH) + tokens.mean() * 1e-9
    return weights


def measure(folder: Path, *, repeats: int, steps: int = 10, length: int = 2048) -> dict[str, float]:
    """Waiting as a share of the step, cores that the loader takes, and steps with a loader against steps without."""
    weights = jnp.ones((WIDTH, WIDTH))
    waited = with_loader = taken = 0.0
    ratios = []
    with loader([corpus.token_store(folder)], length, one_device()) as batches:
        batch = next(batches)
        weights = jax.block_until_ready(step(weights, batch.inputs))
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(steps):
                weights = jax.block_until_ready(step(weights, batch.inputs))
            alone = time.perf_counter() - start
            start, cpu = time.perf_counter(), _loader_seconds()
            for _ in range(steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                weights = jax.block_until_ready(step(weights, batch.inputs))
            spent = time.perf_counter() - start
            with_loader += spent
            taken += _loader_seconds() - cpu
            ratios.append(spent / alone)
    return {
        "step, ms": 1e3 * with_loader / (steps * repeats),
        "waiting, share of step": waited / with_loader,
        "cores taken by the loader": taken / with_loader,
        "loader, ms of one core per batch": 1e3 * taken / (steps * repeats),
        "step with the loader, of one without": statistics.median(ratios),
        "positions per step": BATCH * length,
    }


def _loader_seconds() -> float:
    """CPU seconds of the loader's threads so far."""
    total = 0.0
    for thread in threading.enumerate():
        if thread.name.startswith("xlstm-data") and thread.ident is not None:
            total += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return total
