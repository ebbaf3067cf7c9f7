"""What stands in the stores of tests/data/megatron, which Megatron's own code wrote (tools/check_megatron.py)."""

import itertools

import numpy as np

DOCUMENTS = [[(7 * number + place) % 100 for place in range(number * number % 23)] for number in range(12)]
"""Some of them empty, the first among them."""

STORES = {
    "uint8": (np.uint8, 1),
    "int16": (np.int16, 1),
    "int32": (np.int32, 1),
    "int64": (np.int64, 1),
    "uint16": (np.uint16, 1),
    "sequences": (np.int32, 3),
}
"""Name of each store: its dtype, and the number of sequences that make a document."""


def in_sequences(document: list[int], count: int) -> list[list[int]]:
    """A document in so many sequences, which together are the document."""
    bounds = [len(document) * part // count for part in range(count + 1)]
    return [document[begin:end] for begin, end in itertools.pairwise(bounds)]
