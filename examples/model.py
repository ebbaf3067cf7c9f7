"""A small transformer that reads packed rows: documents of one row do not see each other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xlstm_jax.dataset import LLMBatch

__all__ = ["init_params", "loss_of", "make_train_step"]

Params = dict[str, Any]


def init_params(key: jax.Array, *, vocab_size: int, row_length: int, width: int, layers: int) -> Params:
    """Weights of the model; the embedding is also the output layer."""

    def normal(*shape: int) -> jax.Array:
        nonlocal key
        key, own = jax.random.split(key)
        return jax.random.normal(own, shape) * shape[-2] ** -0.5

    return {
        "tokens": 0.02 * jax.random.normal(key, (vocab_size, width)),
        "positions": 0.02 * jax.random.normal(jax.random.fold_in(key, 1), (row_length, width)),
        "blocks": [
            {
                "qkv": normal(width, 3 * width),
                "out": normal(width, width) / layers,
                "up": normal(width, 4 * width),
                "down": normal(4 * width, width) / layers,
            }
            for _ in range(layers)
        ],
    }


def loss_of(params: Params, batch: LLMBatch, heads: int) -> jax.Array:
    """Mean cross entropy over the positions that have a target."""
    # Positions restart with each document, so a document looks the same wherever it stands in a row.
    x = params["tokens"][batch.inputs] + params["positions"][batch.inputs_position]
    segments = batch.inputs_segmentation
    # A position sees what stands before it in its own document. Padding has segment 0 and sees padding only.
    visible = jnp.tril(segments[:, :, None] == segments[:, None, :])
    for block in params["blocks"]:
        x = x + _attention(block, _normalised(x), visible, heads)
        x = x + jax.nn.gelu(_normalised(x) @ block["up"]) @ block["down"]
    logits = _normalised(x) @ params["tokens"].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    # The mask comes from the segments, never from token values: the last token of a document has no target.
    has_target = batch.targets_segmentation != 0
    return jnp.sum(losses * has_target) / jnp.maximum(1, jnp.sum(has_target))


def make_train_step(
    optimizer: optax.GradientTransformation, heads: int
) -> Callable[[Params, optax.OptState, LLMBatch], tuple[Params, optax.OptState, jax.Array]]:
    """A compiled step: weights, state of the optimizer, batch → weights, state, loss."""

    @jax.jit
    def train_step(params: Params, state: optax.OptState, batch: LLMBatch) -> tuple[Params, optax.OptState, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, batch, heads)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return train_step


def _normalised(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _attention(block: Params, x: jax.Array, visible: jax.Array, heads: int) -> jax.Array:
    rows, length, width = x.shape
    qkv = (x @ block["qkv"]).reshape(rows, length, 3, heads, width // heads)
    query, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, keys) * (width // heads) ** -0.5
    scores = jnp.where(visible[:, None], scores, -jnp.inf)
    mixed = jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), values)
    return mixed.reshape(rows, length, width) @ block["out"]
