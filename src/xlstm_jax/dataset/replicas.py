"""Whether devices that should hold the same part of a batch do."""

import hashlib
from collections import defaultdict
from typing import Any

import jax
import numpy as np

from xlstm_jax.dataset.agreement import gather_json

__all__ = ["ReplicaError", "check_replicas"]


class ReplicaError(RuntimeError):
    """Devices that should hold the same part of an array hold different values."""


def check_replicas(batch: Any) -> None:
    """Check that equal parts of a batch are equal on all devices of all processes.

    The loader gives each device what the number of its rows says, so that replicas agree by construction. This looks
    whether they do, by a hash of each part: a guard against a process with other data or other software, to be called
    at steps of the caller's choice. With several processes it is a collective.

    Args:
        batch: A batch, or any pytree of global arrays.

    Raises:
        ReplicaError: Replicas differ; the message names array, part and processes. Raised on all processes.
    """
    own: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, array in jax.tree_util.tree_leaves_with_path(batch):
        for shard in array.addressable_shards:
            bounds = [cut.indices(size)[:2] for cut, size in zip(shard.index, array.shape, strict=True)]
            values = np.ascontiguousarray(shard.data)
            said = hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
            own[jax.tree_util.keystr(path)][" x ".join(f"{low}:{high}" for low, high in bounds)].append(said)
    holders: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for process, arrays in enumerate(gather_json(own)):
        for name, parts in arrays.items():
            for part, digests in parts.items():
                for said in set(digests):
                    holders[name, part][said].append(process)
    wrong = [
        f"{name}[{part}]: " + ", other values on ".join(f"processes {found}" for found in digests.values())
        for (name, part), digests in sorted(holders.items())
        if len(digests) > 1
    ]
    if wrong:
        raise ReplicaError("Replicas of a batch differ:\n  " + "\n  ".join(wrong))
