"""A training loop whose step takes longer than loading: how long it waits, and what the loader takes from it."""

import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
from pipelines import BATCH, loader


def measure(store: Any, length: int, steps: int = 60) -> dict[str, float]:
    """Waiting time as a share of step time, and cores that the loader takes."""
    weights = jnp.ones((1536, 1536))

    @jax.jit
    def step(weights: jax.Array, tokens: jax.Array) -> jax.Array:
        for _ in range(2):
            weights = jnp.tanh(weights @ weights / 1536) + tokens.mean() * 1e-9
        return weights

    with loader([store], length) as batches:
        weights = jax.block_until_ready(step(weights, next(batches).inputs))
        waited = 0.0
        start, cpu = time.perf_counter(), _loader_seconds()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            weights = jax.block_until_ready(step(weights, batch.inputs))
        spent = time.perf_counter() - start
        taken = _loader_seconds() - cpu
    return {
        "step, ms": 1e3 * spent / steps,
        "waiting, share of step": waited / spent,
        "cores taken by the loader": taken / spent,
        "tokens per step": BATCH * length,
    }


def _loader_seconds() -> float:
    """CPU seconds of the loader's threads so far."""
    total = 0.0
    for thread in threading.enumerate():
        if thread.name.startswith("xlstm-data") and thread.ident is not None:
            total += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return total
