"""A training process: reads batches, trains, saves. Killed at any time, it goes on where its checkpoint stands.

    python examples/train.py SETTINGS.json CHECKPOINTS

Model and position of the data are saved together by Orbax. This is the file to copy from.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from model import init_params, make_train_step

from xlstm_jax.dataset import MultiHostDataLoadIterator, make_grain_llm_iterator, open_source
from xlstm_jax.dataset.checkpoint import PositionRestore, PositionSave

__all__ = ["Settings", "make_loader", "make_mesh", "restrict_to_cpu", "train"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a run; shared by all processes of the demo."""

    store: str
    vocab_size: int
    eod_token_id: int
    steps: int
    save_every: int
    batch_size: int
    row_length: int
    width: int
    layers: int
    heads: int = 2
    learning_rate: float = 3e-3
    seed: int = 1

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def restrict_to_cpu() -> None:
    """The demo is small: an accelerator would gain nothing, and need not be there."""
    jax.config.update("jax_platforms", "cpu")


def make_mesh() -> Mesh:
    """All devices cut the batch."""
    return Mesh(np.array(jax.devices()), ("data",))


def make_loader(settings: Settings, num_epochs: int | None = None) -> MultiHostDataLoadIterator:
    """The loader of the demo: packed rows of the token store, the same on any cluster."""
    return make_grain_llm_iterator(
        jax.process_index(),
        jax.process_count(),
        make_mesh(),
        open_source(settings.store),
        settings.batch_size,
        settings.row_length,
        shuffle=True,
        data_shuffle_seed=settings.seed,
        num_epochs=num_epochs,
        grain_packing=True,
        eod_token_id=settings.eod_token_id,
        num_shards=1,
        worker_buffer_size=4,
    )


def train(settings: Settings, checkpoints: Path) -> None:
    """Train until the last step, from the newest checkpoint on if there is one; reports each step on stdout."""
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.steps // 10, settings.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    params, opt_state = _begin(settings, optimizer)
    train_step = make_train_step(optimizer, settings.heads)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with make_loader(settings) as loader, ocp.CheckpointManager(checkpoints.absolute(), options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            params, opt_state = _restore(manager, done, (params, opt_state), loader)
        asked = time.perf_counter()
        for batch in loader:
            got = time.perf_counter()
            params, opt_state, loss = train_step(params, opt_state, batch)
            done += 1
            loss_now = float(loss)
            ended = time.perf_counter()
            _report(
                step=done,
                loss=loss_now.hex(),
                tokens=int(np.count_nonzero(batch.inputs_segmentation)),
                wait_s=got - asked,
                step_s=ended - asked,
            )
            if done % settings.save_every == 0:
                # The model and the place in the data are one thing: saved together, restored together.
                model = ocp.args.StandardSave((params, opt_state))
                manager.save(done, args=ocp.args.Composite(model=model, data=PositionSave(loader)))
            if done == settings.steps:
                break
            asked = time.perf_counter()


def _begin(settings: Settings, optimizer: optax.GradientTransformation) -> Any:
    """Weights and optimizer state of a new run."""

    def begin() -> Any:
        params = init_params(
            jax.random.key(settings.seed),
            vocab_size=settings.vocab_size,
            row_length=settings.row_length,
            width=settings.width,
            layers=settings.layers,
        )
        return params, optimizer.init(params)

    # On the mesh from the start: placed otherwise, the second step would compile once more.
    return jax.jit(begin, out_shardings=NamedSharding(make_mesh(), PartitionSpec()))()


def _restore(manager: ocp.CheckpointManager, step: int, model: Any, loader: MultiHostDataLoadIterator) -> Any:
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, model)
    items = ocp.args.Composite(model=ocp.args.StandardRestore(like), data=PositionRestore(loader))
    return manager.restore(step, args=items).model


def _report(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    restrict_to_cpu()
    train(Settings.load(Path(sys.argv[1])), Path(sys.argv[2]))
