"""A shard is written: planned documents, from parts or from token stores of the input."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources import TokenStoreWriter
from xlstm_jax.dataset.sources.manifest import LENGTHS, Shard, checksum
from xlstm_jax.dataset.sources.whole_file import sync, write_json
from xlstm_jax.prepare.array_record_output import ArrayRecordShardWriter
from xlstm_jax.prepare.plan import Run, ShardPlan
from xlstm_jax.prepare.token_documents import open_store, read_tokens
from xlstm_jax.prepare.worker import Done, Job, refuse_framed_otherwise, this_worker
from xlstm_jax.prepare.workspace import Workspace

__all__ = ["histogram_of", "write_shard"]


def histogram_of(lengths: NDArray[np.int64]) -> Counter[str]:
    """Documents by the power of two at or below their token count; "0" counts empty ones."""
    # frexp gives 0.5 <= m < 1 with length = m * 2^e, exactly.
    exponents = np.frexp(lengths.astype(np.float64))[1]
    counts = np.bincount(exponents)
    return Counter({str(1 << e - 1 if e else 0): int(n) for e, n in enumerate(counts.tolist()) if n})


def write_shard(job: Job, plan: ShardPlan) -> Done:
    """Write a shard's files, and last of all the marker that says what it holds and where the next one begins."""
    workspace = Workspace(job.config.output)
    prefix = workspace.split_folder(plan.split) / f"shard-{plan.number:05d}"
    kept = workspace.kept_documents(plan.split) if job.config.drop_duplicates else None
    documents = tokens = 0
    # What comes straight from the input; parts were counted when they were made.
    copied = {"documents": 0, "tokens": 0, "input_bytes": 0}
    histogram: Counter[str] = Counter()
    source: dict[str, str] = {}
    with _writer(job, prefix) as writer:
        for run in plan.runs:
            first = run.begin
            for flat, lengths in _stored(run, kept):
                writer.add_many(flat, lengths)
                documents += len(lengths)
                tokens += len(flat)
                histogram += histogram_of(lengths)
                source = {"first": source.get("first", run.first), "last": run.last}
                if run.of_input:  # All of them: where documents are left out, tasks have read them.
                    named = run.first if run.first == run.last else run.path
                    refuse_framed_otherwise(job, named, first, flat, lengths)
                    first += len(lengths)
                    copied["documents"] += len(lengths)
                    copied["tokens"] += len(flat)
                    copied["input_bytes"] += flat.nbytes
    suffixes = (".array_record", LENGTHS) if job.config.output_format == "array_record" else (".bin", ".idx")
    files = [prefix.with_name(prefix.name + suffix) for suffix in suffixes]
    for file in files:
        sync(file)
    shard = Shard(
        name=prefix.name,
        documents=documents,
        tokens=tokens,
        files={file.name: {"bytes": file.stat().st_size, "sha256": checksum(file)} for file in files},
        source=source,
    )
    done = Done(worker=this_worker(), **copied)
    marker = {"shard": asdict(shard), "histogram": dict(histogram), "next": list(plan.next), "done": asdict(done)}
    # Afterwards what the shard was made of may go.
    write_json(workspace.shard_marker(plan.split, plan.number), marker, durable=True)
    return done


def _writer(job: Job, prefix: Path) -> AbstractContextManager[Any]:
    if job.config.output_format == "array_record":
        return ArrayRecordShardWriter(prefix)
    return TokenStoreWriter(prefix, dtype=job.dtype, vocab_size=job.vocab_size)


def _stored(run: Run, kept: Path | None) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """The documents of a run that go to the shard: tokens end to end, and token counts."""
    number = run.number
    for flat, lengths in read_tokens(open_store(run.path), run.begin, run.end):
        wanted = np.ones(len(lengths), dtype=bool)
        if kept is not None:
            wanted = np.fromfile(kept, dtype=np.uint8, count=len(lengths), offset=number) == 1
            number += len(lengths)
        if wanted.all():
            yield flat, lengths
        elif wanted.any():
            yield flat[np.repeat(wanted, lengths)], lengths[wanted]
