"""One task: read its pieces, tokenise them, write the documents to a part. The same on every engine."""

import functools
import os
import pickle
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources import TokenStoreWriter
from xlstm_jax.dataset.sources.whole_file import whole_file, write_json
from xlstm_jax.dataset.tokenizer import Tokenize
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.copies import local_store
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.inputs import refuse_changed
from xlstm_jax.prepare.splits import CONTENT_HASH_BYTES, SplitRule, contents_of_tokens
from xlstm_jax.prepare.storage import public
from xlstm_jax.prepare.tasks import Piece, Task
from xlstm_jax.prepare.token_documents import framed_otherwise, open_store, read_tokens
from xlstm_jax.prepare.tokenizing import Cores, Reading, one_core, tokenized
from xlstm_jax.prepare.workspace import Workspace

__all__ = ["Done", "Job", "refuse_framed_otherwise", "run_task", "this_worker"]

_NO_HASHES = np.zeros((0, CONTENT_HASH_BYTES), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all tasks share, settled once."""

    config: PrepareConfig
    tokenize: bytes = field(repr=False)
    """The pickled operation that makes tokens of text; empty where all input is tokens already."""
    vocab_size: int | None
    eod_token_id: int | None
    """Ends each document."""
    bos_token_id: int | None
    dtype: str
    """Of the stored tokens."""

    @property
    def needs_hashes(self) -> bool:
        """Whether the content of documents decides where they go."""
        return self.config.drop_duplicates or bool(self.config.splits)

    def only_refers_to(self, task: Task) -> bool:
        """Whether a task's documents can be taken from where they are, and need no copy."""
        return not self.needs_hashes and all(piece.format == "token_store" for piece in task.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a piece of work has done, for whoever watches; counted once, where the input is read."""

    worker: str
    """Host and process."""
    input_bytes: int
    documents: int
    tokens: int
    skipped: int = 0


def this_worker() -> str:
    """Host and process, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


class _Part:
    """The documents of a task, dealt to the splits."""

    def __init__(self, job: Job, task: Task, stack: ExitStack) -> None:
        workspace = Workspace(job.config.output)
        self._rule = SplitRule(job.config.splits, job.config.split_seed)
        self._hashed = job.needs_hashes
        self._keep_hashes = job.config.drop_duplicates
        self._writers: list[TokenStoreWriter] = []
        self._hashes: list[BinaryIO] = []
        self.documents = dict.fromkeys(self._rule.names, 0)
        self.tokens = dict.fromkeys(self._rule.names, 0)
        for split in self._rule.names:
            if self._keep_hashes:
                self._hashes.append(stack.enter_context(whole_file(workspace.part_files(task.number, split)[2])))
            prefix = workspace.part_prefix(task.number, split)
            # The prefix has a dot in it; as a name of one of its files it is taken as it is.
            writer = TokenStoreWriter(
                prefix.with_name(prefix.name + ".bin"), dtype=job.dtype, vocab_size=job.vocab_size
            )
            self._writers.append(stack.enter_context(writer))

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int64], contents: Iterable[bytes | memoryview]) -> None:
        """Append documents that lie end to end; their contents are asked for where they are needed."""
        if not self._hashed:
            self._append(0, tokens, lengths, _NO_HASHES)
            return
        hashes, dealt = self._rule.deal(contents)
        for split in range(len(self._writers)):
            here = dealt == split
            if here.all():
                self._append(split, tokens, lengths, hashes)
            elif here.any():
                self._append(split, tokens[np.repeat(here, lengths)], lengths[here], hashes[here])

    def _append(self, split: int, tokens: NDArray[Any], lengths: NDArray[np.int64], hashes: NDArray[np.uint8]) -> None:
        self._writers[split].add_many(tokens, lengths)
        if self._keep_hashes:
            self._hashes[split].write(hashes.tobytes())
        name = self._rule.names[split]
        self.documents[name] += len(lengths)
        self.tokens[name] += len(tokens)


def run_task(job: Job, task: Task, cores: Cores = one_core) -> Done:
    """Read a task's input, and write its part; the part's marker comes last.

    Raises:
        PrepareError: The input is bad and the config says to raise; or the worker is not set up as it must be.
    """
    _refuse_changed(job, task)
    marker = _refer(job, task) if job.only_refers_to(task) else _write_part(job, task, cores)
    # What changed under the reader is in no part.
    _refuse_changed(job, task)
    workspace = Workspace(job.config.output)
    files = [file for split in marker["documents"] for file in workspace.part_files(task.number, split)]
    marker |= {"file_bytes": {file.name: file.stat().st_size for file in files if file.is_file()}}
    marker |= {"task": task.identity, "first": public(task.pieces[0].path), "last": public(task.pieces[-1].path)}
    done = Done(
        worker=this_worker(),
        input_bytes=task.size,
        documents=sum(marker["documents"].values()),
        tokens=sum(marker["tokens"].values()),
        skipped=sum(marker["skipped"].values()),
    )
    write_json(workspace.part_marker(task.number), marker | {"done": asdict(done)})
    return done


def _refuse_changed(job: Job, task: Task) -> None:
    files = {(piece.path, piece.format, piece.identity) for piece in task.pieces}
    for path, data_format, identity in files:
        refuse_changed(path, data_format, identity, job.config)


def _marker(documents: dict[str, int], tokens: dict[str, int]) -> dict[str, Any]:
    return {
        "documents": documents,
        "tokens": tokens,
        "pieces": [],
        "text_bytes": 0,
        "text_tokens": 0,
        "skipped": {},
        "samples": [],
        "lines": 0,
        "continued": False,
    }


def _refer(job: Job, task: Task) -> dict[str, Any]:
    """A part without files: its documents stand in token stores already, and go from there to the shards."""
    pieces = [(local_store(piece.path, job.config), piece.begin, piece.end) for piece in task.pieces]
    tokens = sum(int(open_store(path).lengths[begin:end].sum(dtype=np.int64)) for path, begin, end in pieces)
    return _marker({"": sum(end - begin for _, begin, end in pieces)}, {"": tokens}) | {"pieces": pieces}


def _write_part(job: Job, task: Task, cores: Cores) -> dict[str, Any]:
    reading = Reading()
    with ExitStack() as stack:
        part = _Part(job, task, stack)
        pool = stack.enter_context(ThreadPoolExecutor(thread_name_prefix="xlstm-data-tokenize"))
        for piece in task.pieces:
            reading.begin(piece)
            if piece.format == "token_store":
                _copy_tokens(job, piece, part)
                continue
            for batch in tokenized(piece, job.config, _unpickled(job.tokenize), reading, pool, cores):
                part.add(batch.tokens, batch.lengths, (text.encode() for text in batch.texts))
    return _marker(part.documents, part.tokens) | {
        "text_bytes": reading.text_bytes,
        "text_tokens": reading.text_tokens,
        "skipped": dict(reading.skipped.counts),
        "samples": reading.skipped.samples,
        "lines": reading.lines,
        "continued": reading.continued,
    }


def refuse_framed_otherwise(job: Job, path: str, first: int, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
    """See that documents of a store begin and end as all of what is prepared: a store without a manifest does not say.

    Args:
        job: What is prepared.
        path: Of the store, as it may be shown.
        first: Place in the store of the first document.
        tokens: Of the documents, end to end.
        lengths: [documents] token counts.

    Raises:
        PrepareError: One does not; it would run into its neighbour.
    """
    for where, token, others in framed_otherwise(tokens, lengths, job.bos_token_id, job.eod_token_id):
        if len(others):
            option = "--eod-token" if where == "end" else "--bos-token"
            raise PrepareError(
                f"{path}, document {first + int(others[0])} (from 0 on) does not {where} with token {token}, and all "
                f"documents of one store {where} alike. Say how these do ({option} ID, or none), or prepare them on "
                "their own."
            )


def _copy_tokens(job: Job, piece: Piece, part: _Part) -> None:
    begin = piece.begin
    for tokens, lengths in read_tokens(open_store(local_store(piece.path, job.config)), piece.begin, piece.end):
        refuse_framed_otherwise(job, public(piece.path), begin, tokens, lengths)
        part.add(tokens, lengths, contents_of_tokens(tokens, lengths))
        begin += len(lengths)


@functools.lru_cache(maxsize=1)
def _unpickled(tokenize: bytes) -> Tokenize:
    """The operation; kept, since a large vocabulary takes a while to load."""
    operation: Tokenize = pickle.loads(tokenize)  # noqa: S301 - it comes from `prepare` itself
    return operation
