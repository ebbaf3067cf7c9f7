"""Check against Megatron's own code that stores written here open there, and that stores it writes open here.

    python tools/check_megatron.py            # checks; needs megatron-core and PyTorch
    python tools/check_megatron.py --write    # writes tests/data/megatron anew, which the ordinary tests read

The documents are those of tests/megatron_documents.py, the same in all checks.
"""

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.dataset.sources import TokenStore, write_token_store
from xlstm_jax.prepare import PrepareConfig, prepare, read_manifest, verify

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "megatron"
sys.path.insert(0, str(ROOT / "tests"))

from megatron_documents import DOCUMENTS, STORES, in_sequences  # noqa: E402 - beside the tests that read the data

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of optional parts that are not installed.
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder


def main() -> int:
    """Check both ways; the exit code tells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write tests/data/megatron anew")
    if parser.parse_args().write:
        DATA.mkdir(parents=True, exist_ok=True)
        for name in STORES:
            write_there(DATA / name, name)
        print(f"Written to {DATA}.")
        return 0
    print(f"With megatron-core {version('megatron-core')} and torch {version('torch')}:")
    checks = (check_ours_there, check_theirs_here, check_prepared_there, check_prepared_from_theirs)
    with tempfile.TemporaryDirectory() as folder:
        for check in checks:
            target = Path(folder) / check.__name__
            target.mkdir()
            check(target)
            print(f"  passed: {check.__doc__}", flush=True)
    print(f"All {len(checks)} checks have passed, on {len(DOCUMENTS)} documents, {DOCUMENTS.count([])} of them empty.")
    return 0


def write_there(prefix: Path, name: str) -> None:
    """Write the documents as Megatron's pre-processing does."""
    dtype, sequences = STORES[name]
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in DOCUMENTS:
        parts = in_sequences(document, sequences)
        # Not of the target's dtype, which PyTorch may not have; the builder converts.
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(part) for part in parts])
    builder.finalize(f"{prefix}.idx")


def check_ours_there(folder: Path) -> None:
    """Stores of five dtypes that are written here open in Megatron, with the same documents."""
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.uint16):
        prefix = folder / np.dtype(dtype).name
        write_token_store(prefix, DOCUMENTS, dtype=dtype)
        equal(read_there(prefix), DOCUMENTS)


def check_theirs_here(folder: Path) -> None:
    """Stores of six kinds that Megatron writes open here, and are to the byte those that the tests read."""
    for name, (dtype, _) in STORES.items():
        write_there(folder / name, name)
        store = TokenStore(folder / name)
        equal([store[number] for number in range(len(store))], DOCUMENTS)
        for suffix in (".bin", ".idx"):
            written, kept = ((place / f"{name}{suffix}").read_bytes() for place in (folder, DATA))
            assert written == kept, f"{name}{suffix} is not what tests/data/megatron holds; {dtype}"


def check_prepared_there(folder: Path) -> None:
    """Shards that prepare writes of text, as uint16 and as int32, open in Megatron, with the same tokens."""
    texts = [f"document {number} " * (number % 7 + 1) for number in range(200)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(byte_tokenizer()))
    for dtype in ("uint16", "int32"):
        config = PrepareConfig(
            inputs=[str(folder / "a.jsonl")],
            output=folder / dtype,
            tokenizer=str(tokenizer),
            dtype=dtype,
            shard_bytes=10_000,
            workers=0,
        )
        manifest = prepare(config)
        assert len(manifest.shards) > 1
        documents = [tokens for shard in manifest.shards for tokens in read_there(config.output / shard.name)]
        equal(documents, [[*text.encode(), 256] for text in texts])


def check_prepared_from_theirs(folder: Path) -> None:
    """Stores that Megatron writes are merged here, one of several sequences a document, and open there again."""
    for name in ("int32", "sequences"):
        write_there(folder / name, name)
    inputs = [str(folder / name) for name in ("int32", "sequences")]
    output = folder / "merged"
    prepare(PrepareConfig(inputs=inputs, output=output, workers=0))
    assert verify(output) == []
    (shard,) = read_manifest(output).shards
    equal(read_there(output / shard.name), [*DOCUMENTS, *DOCUMENTS])


def read_there(prefix: Path) -> list[list[int]]:
    """All documents, as Megatron's data set gives them, mapped and not."""
    read = []
    for mapped in (True, False):
        dataset = IndexedDataset(str(prefix), mmap=mapped)
        bounds = dataset.document_indices.tolist()
        assert dataset.sequence_lengths.tolist() == [len(dataset[number]) for number in range(len(dataset))]
        read.append(
            [
                [int(token) for number in range(*pair) for token in dataset[number]]
                for pair in itertools.pairwise(bounds)
            ]
        )
    assert read[0] == read[1]
    return read[0]


def byte_tokenizer() -> dict[str, Any]:
    """A tokenizer whose tokens are the bytes of ASCII texts; 256 ends a document."""
    vocabulary = {chr(byte): byte for byte in range(256)} | {"<|endoftext|>": 256}
    end = {"id": 256, "content": "<|endoftext|>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [end | flags],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def equal(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Fail where documents differ."""
    assert len(found) == len(expected), f"{len(found)} documents instead of {len(expected)}"
    for number, (tokens, wanted) in enumerate(zip(found, expected, strict=True)):
        assert [int(token) for token in tokens] == list(wanted), f"document {number}: {tokens} instead of {wanted}"


if __name__ == "__main__":
    sys.exit(main())
