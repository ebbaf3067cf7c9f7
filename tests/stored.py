"""The same documents in every kind of source, for tests of sources."""

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from array_record.python import array_record_module

from xlstm_jax.dataset import (
    ArrayRecordSource,
    HuggingFaceSource,
    JsonLinesSource,
    MemorySource,
    ParquetSource,
    TokenStore,
    write_token_store,
)

datasets.disable_progress_bars()

TOKENS = [np.arange(n * 7 % 13, dtype=np.int32) + 100 * n for n in range(120)]
"""Documents of 0 to 12 tokens, all of them different."""
TEXTS = [f"Text {n}: " + "ä word " * (n % 5) for n in range(120)]
SPLIT = 47
"""Where those kinds that lie in two files are cut."""


def write_array_record(path: Path, records, group_size: int = 1, options: str = "") -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:{group_size}{options}")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def write_parquet(path: Path, columns: dict, rows: int = 10, **options) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows, write_page_checksum=True, **options)
    return path


def write_dataset(path: Path, columns: dict, **options) -> Path:
    datasets.Dataset.from_dict(columns).save_to_disk(path, **options)
    return path


def json_lines(records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _token_store(folder):
    write_token_store(folder / "a", TOKENS[:SPLIT], vocab_size=60_000)
    write_token_store(folder / "b", TOKENS[SPLIT:], dtype=np.int32)
    return TokenStore(folder)


def _array_record(dtype, group_size=1, options=""):
    def write(folder):
        parts = {
            folder / "a.array_record": [tokens.astype(dtype).tobytes() for tokens in TOKENS[:SPLIT]],
            folder / "b.array_record": [tokens.astype(dtype).tobytes() for tokens in TOKENS[SPLIT:]],
        }
        paths = [write_array_record(path, records, group_size, options) for path, records in parts.items()]
        return ArrayRecordSource(paths, dtype=dtype)

    return write


def _parquet(folder):
    parts = {"a": TOKENS[:SPLIT], "b": TOKENS[SPLIT:]}
    paths = [
        write_parquet(folder / f"{name}.parquet", {"id": list(range(len(part))), "input_ids": part})
        for name, part in parts.items()
    ]
    return ParquetSource(paths)


def _hugging_face(folder):
    return HuggingFaceSource(write_dataset(folder / "set", {"tokens": [t.tolist() for t in TOKENS]}, num_shards=2))


def _memory(_):
    return MemorySource(TOKENS)


PLANNED = {
    "memory": _memory,
    "token store": _token_store,
    "int32 array record": _array_record("int32"),
    "uint16 array record": _array_record("uint16"),
    "uint16 array record, uncompressed": _array_record("uint16", options=",uncompressed"),
    "uint32 array record, grouped": _array_record("uint32", 8),
    "parquet": _parquet,
    "hugging face": _hugging_face,
}
"""Kinds of planned sources; each gives `TOKENS`."""


def _text_array_record(folder):
    encoded = [text.encode() for text in TEXTS]
    paths = [
        write_array_record(folder / "a.array_record", encoded[:SPLIT]),
        write_array_record(folder / "b.array_record", encoded[SPLIT:], 8),
    ]
    return ArrayRecordSource(paths)


def _text_parquet(folder):
    paths = [
        write_parquet(folder / "a.parquet", {"text": TEXTS[:SPLIT]}),
        write_parquet(folder / "b.parquet", {"text": TEXTS[SPLIT:], "url": TEXTS[SPLIT:]}),
    ]
    return ParquetSource(paths)


def _text_hugging_face(folder):
    return HuggingFaceSource(write_dataset(folder / "set", {"text": TEXTS, "n": [1] * len(TEXTS)}))


def _json_lines(suffix, compress=bytes):
    def write(folder):
        lines = json_lines({"text": text, "n": n} for n, text in enumerate(TEXTS))
        cut = lines.index(json_lines([{"text": TEXTS[SPLIT], "n": SPLIT}]))
        paths = [folder / f"a{suffix}", folder / f"b{suffix}"]
        paths[0].write_bytes(compress(b"\xef\xbb\xbf" + lines[:cut]))
        # No newline at the end, and lines of white space.
        paths[1].write_bytes(
            compress(b"\n \t\n" + lines[cut:].replace(b'{"text": "Text 90', b'\r\n{"text": "Text 90')[:-1])
        )
        return JsonLinesSource(paths, column="text")

    return write


STREAMED = {
    "text array record": _text_array_record,
    "text parquet": _text_parquet,
    "text hugging face": _text_hugging_face,
    "json lines": _json_lines(".jsonl"),
    "json lines, gzip": _json_lines(".jsonl.gz", gzip.compress),
    "json lines, zstandard": _json_lines(".jsonl.zst", zstandard.compress),
}
"""Kinds of streamed sources; each gives `TEXTS`."""
