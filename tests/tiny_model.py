"""A language model so small that its training takes no time: to compare losses of runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TOKENS = 64
WIDTH = 12
"""Divides among all axes of the meshes of the tests."""


def make_parameters(mesh: Mesh, *, cut: bool = True) -> dict[str, jax.Array]:
    """Parameters, cut over the axis "model" where the mesh has one, or whole on each device."""
    random = np.random.default_rng(0)
    axis = "model" if cut and "model" in mesh.axis_names else None
    shapes = {"embed": ((TOKENS, WIDTH), PartitionSpec(None, axis)), "head": ((WIDTH, TOKENS), PartitionSpec(axis))}
    parameters = {}
    for name, (shape, spec) in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        parameters[name] = jax.make_array_from_callback(
            shape, NamedSharding(mesh, spec), lambda index, values=values: values[index]
        )
    return parameters


def loss(parameters, batch) -> jax.Array:
    """Mean cross-entropy over all real targets of the global batch."""
    logits = parameters["embed"][batch.inputs % TOKENS] @ parameters["head"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), (batch.targets % TOKENS)[..., None], axis=-1)[..., 0]
    real = batch.targets_segmentation > 0
    return -jnp.sum(chosen * real) / jnp.maximum(jnp.sum(real), 1)


@jax.jit
def train_step(parameters, batch):
    """One step of gradient descent: new parameters, and the loss before it."""
    value, gradients = jax.value_and_grad(loss)(parameters, batch)
    return jax.tree.map(lambda p, g: p - 0.5 * g, parameters, gradients), value


def train_step_on_whole_batches(parameters, batch):
    """The same, each device on the whole batch: then no sum depends on the devices, and losses are equal to the bit."""
    return train_step(parameters, _put_together(batch.inputs.sharding.mesh)(batch))


@functools.cache
def _put_together(mesh: Mesh):
    return jax.jit(lambda batch: batch, out_shardings=NamedSharding(mesh, PartitionSpec()))
