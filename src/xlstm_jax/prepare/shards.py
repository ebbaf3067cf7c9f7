"""Parts become shards: in the order of the input, cut by documents and tokens alone."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources import TokenStoreWriter
from xlstm_jax.dataset.sources.manifest import LENGTHS, Shard, checksum
from xlstm_jax.prepare.array_record_output import ArrayRecordShardWriter
from xlstm_jax.prepare.token_documents import open_store, read_tokens
from xlstm_jax.prepare.worker import Job
from xlstm_jax.prepare.workspace import Workspace, read_json, write_json

__all__ = ["ShardWriter", "histogram_of"]


class _Writer(Protocol):
    def add_many(self, flat_tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None: ...


def histogram_of(lengths: NDArray[np.int64]) -> Counter[str]:
    """Documents by the power of two at or below their token count; "0" counts empty ones."""
    # frexp gives 0.5 <= m < 1 with length = m * 2^e, exactly.
    exponents = np.frexp(lengths.astype(np.float64))[1]
    counts = np.bincount(exponents)
    return Counter({str(1 << e - 1 if e else 0): int(n) for e, n in enumerate(counts.tolist()) if n})


@dataclass(slots=True)
class _Place:
    """The next document to be written."""

    part: int = 0
    document: int = 0
    """In its part."""
    passed: int = 0
    """Documents of this split in all parts before."""


class ShardWriter:
    """Writes the shards of one split; a context manager, which leaves no half shard behind.

    Each finished shard has a marker that says where the next begins, so that work goes on there. The files of parts
    whose documents all stand in finished shards are deleted.

    Args:
        job: What is done.
        split: Name of the split; "" where there is only one.
    """

    def __init__(self, job: Job, split: str) -> None:
        self._job = job
        self._split = split
        self._workspace = Workspace(job.config.output)
        self._folder = self._workspace.split_folder(split)
        self._target = job.config.shard_bytes // np.dtype(job.dtype).itemsize
        self._markers: list[dict[str, Any]] = []
        while (marker := self._workspace.shard_marker(split, len(self._markers))).is_file():
            self._markers.append(read_json(marker))
        self._place = _Place(**self._markers[-1]["next"]) if self._markers else _Place()
        self._freed = self._place.part
        self._stack = ExitStack()
        self._writer: _Writer | None = None
        self._documents = self._tokens = 0
        self._histogram: Counter[str] = Counter()
        self._source: dict[str, str] = {}

    @property
    def next_part(self) -> int:
        """The part that is wanted next."""
        return self._place.part

    @property
    def shards(self) -> list[Shard]:
        """The finished shards."""
        return [Shard(**marker["shard"]) for marker in self._markers]

    @property
    def histogram(self) -> Counter[str]:
        """Token counts of the documents in finished shards; see `histogram_of`."""
        return sum((Counter(marker["histogram"]) for marker in self._markers), Counter())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is open here is half a shard.
        if self._writer is not None:
            self._stack.__exit__(kind or RuntimeError, error or RuntimeError(), trace)

    def add_part(self, marker: dict[str, Any], kept: NDArray[np.uint8] | None) -> None:
        """Append the documents of the next part.

        Args:
            marker: What the part holds.
            kept: [documents of the split] whether each is the first of its kind; None keeps all.
        """
        index = self._workspace.part_files(self._place.part, self._split)[1]
        pieces = marker["pieces"] or [(str(index), 0, marker["documents"][self._split])]
        before = 0
        for path, begin, end in pieces:
            written = min(max(0, self._place.document - before), end - begin)
            if begin + written < end:
                for tokens, lengths in read_tokens(open_store(path), begin + written, end):
                    self._add_run(tokens, lengths, marker, kept)
            before += end - begin
        self._place = _Place(self._place.part + 1, 0, self._place.passed + before)

    def _add_run(
        self, tokens: NDArray[Any], lengths: NDArray[np.int64], marker: dict[str, Any], kept: NDArray[np.uint8] | None
    ) -> None:
        first = self._place.document
        wanted = np.ones(len(lengths), dtype=bool)
        if kept is not None:
            begin = self._place.passed + first
            wanted = kept[begin : begin + len(lengths)] == 1
        begins = np.concatenate([[0], np.cumsum(lengths)])
        stored = np.concatenate([[0], np.cumsum(np.where(wanted, lengths, 0))])
        done = 0
        while done < len(lengths):
            room = self._target - self._tokens
            end = int(np.searchsorted(stored, stored[done] + room, side="right")) - 1
            if end <= done and self._documents == 0:
                end = done + 1
            if end > done:
                run = slice(done, end)
                self._append(tokens[begins[done] : begins[end]], lengths[run], wanted[run], marker)
                self._place.document = first + end
                done = end
            if done < len(lengths):
                self._close()

    def _append(
        self, tokens: NDArray[Any], lengths: NDArray[np.int64], wanted: NDArray[np.bool_], marker: dict[str, Any]
    ) -> None:
        if not wanted.all():
            tokens, lengths = tokens[np.repeat(wanted, lengths)], lengths[wanted]
        if not len(lengths):
            return
        self._open().add_many(tokens, lengths)
        self._documents += len(lengths)
        self._tokens += len(tokens)
        self._histogram += histogram_of(lengths)
        self._source = {"first": self._source.get("first", marker["first"]), "last": marker["last"]}

    def _open(self) -> _Writer:
        if self._writer is None:
            if self._job.config.output_format == "array_record":
                self._writer = self._stack.enter_context(ArrayRecordShardWriter(self._prefix))
            else:
                writer = TokenStoreWriter(self._prefix, dtype=self._job.dtype, vocab_size=self._job.vocab_size)
                self._writer = self._stack.enter_context(writer)
        return self._writer

    @property
    def _prefix(self) -> Path:
        return self._folder / f"shard-{len(self._markers):05d}"

    def _close(self) -> None:
        prefix = self._prefix
        self._open()
        self._stack.close()
        suffixes = (".array_record", LENGTHS) if self._job.config.output_format == "array_record" else (".bin", ".idx")
        files = [prefix.with_name(prefix.name + suffix) for suffix in suffixes]
        shard = Shard(
            name=prefix.name,
            documents=self._documents,
            tokens=self._tokens,
            files={file.name: {"bytes": file.stat().st_size, "blake2b": checksum(file)} for file in files},
            source=self._source,
        )
        marker = {"shard": asdict(shard), "histogram": dict(self._histogram), "next": asdict(self._place)}
        write_json(self._workspace.shard_marker(self._split, len(self._markers)), marker)
        self._markers.append(marker)
        self._writer = None
        self._documents = self._tokens = 0
        self._histogram, self._source = Counter(), {}
        for part in range(self._freed, self._place.part):
            for file in self._workspace.part_files(part, self._split):
                file.unlink(missing_ok=True)
        self._freed = self._place.part

    def finish(self) -> None:
        """Close the last shard; a store without documents is one empty shard."""
        if self._writer is not None or not self._markers:
            self._close()
