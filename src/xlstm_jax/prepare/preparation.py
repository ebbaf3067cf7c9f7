"""`prepare`: from documents of any kind to a folder of token-store shards."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.cache import whole_file
from xlstm_jax.dataset.sources.fingerprint import digest
from xlstm_jax.dataset.sources.manifest import MANIFEST, Manifest, read_manifest
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.duplicates import mark_first
from xlstm_jax.prepare.engines import run_tasks
from xlstm_jax.prepare.errors import PrepareError, Skipped
from xlstm_jax.prepare.inputs import InputFile, list_inputs
from xlstm_jax.prepare.progress import Progress, Watch, log_lines
from xlstm_jax.prepare.settle import settle
from xlstm_jax.prepare.shards import ShardWriter
from xlstm_jax.prepare.splits import SplitRule
from xlstm_jax.prepare.storage import public
from xlstm_jax.prepare.tasks import Task, cut_into_tasks
from xlstm_jax.prepare.worker import Job
from xlstm_jax.prepare.workspace import Workspace, read_json

__all__ = ["ERRORS", "prepare"]

LOGGER = logging.getLogger(__name__)

ERRORS = "errors.jsonl"


def prepare(config: PrepareConfig, *, command: str | None = None, watch: Watch | None = None) -> Manifest:
    """Tokenise documents into a folder of token-store shards, or what else the config asks for.

    The shards depend on the input, its order and the config's `settings` alone. Stopped at any moment, the same call
    goes on where it stood; on a finished store it changes nothing.

    Args:
        config: What to do.
        command: As given by the user, for the manifest.
        watch: Is shown the progress after each task; by default it is logged.

    Returns:
        What the store holds; of all splits together where there are splits.

    Raises:
        PrepareError: The input is bad, or has changed since the store was begun; the message says where and how.
        FileNotFoundError: There is no tokenizer of this name.
        OSError: The disk is full, or a file cannot be read.
    """
    files = list_inputs(config)
    job, settings = settle(config, files)
    inputs = [{"path": public(file.path), "size": file.size, "identity": file.identity} for file in files]
    summary = {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "digest": digest(*(json.dumps(entry).encode() for entry in inputs)),
    }
    workspace = Workspace(config.output)
    if (config.output / MANIFEST).is_file() and not workspace.folder.is_dir():
        return _finished(config, settings, summary)
    with workspace.locked():
        if (config.output / MANIFEST).is_file():
            manifest = _finished(config, settings, summary)
        else:
            workspace.begin(settings, inputs)
            head = _Head(job, settings, summary, command)
            try:
                manifest = _run(head, files, watch or log_lines())
            finally:
                workspace.sweep(settings)
        workspace.end()
    return manifest


def _finished(config: PrepareConfig, settings: dict[str, Any], inputs: dict[str, Any]) -> Manifest:
    manifest = read_manifest(config.output)
    now = json.loads(json.dumps(settings))
    changed = sorted(key for key in now.keys() | manifest.settings.keys() if now.get(key) != manifest.settings.get(key))
    if manifest.inputs != inputs:
        changed.append("input files")
    if changed:
        raise PrepareError(
            f"{config.output} holds a finished store, made with other {', '.join(changed)}; name another output folder."
        )
    LOGGER.info("%s is finished already.", config.output)
    return manifest


class _Head:
    """What all manifests of one preparation say."""

    def __init__(self, job: Job, settings: dict[str, Any], inputs: dict[str, Any], command: str | None) -> None:
        self.job = job
        self._common: dict[str, Any] = {
            "format": job.config.output_format,
            "written_by": _written_by(),
            "command": command,
            "tokenizer": job.config.tokenizer,
            **{key: settings[key] for key in ("tokenizer_fingerprint", "vocab_size", "eod_token_id", "bos_token_id")},
            "dtype": job.dtype if job.config.output_format == "token_store" else "int32",
            "settings": settings,
            "inputs": inputs,
        }

    def manifest(self, **found: Any) -> Manifest:
        return Manifest(**self._common, **found)


def _run(head: _Head, files: list[InputFile], watch: Watch) -> Manifest:
    job = head.job
    workspace = Workspace(job.config.output)
    progress = Progress(total_bytes=sum(file.size for file in files))
    names = SplitRule(job.config.splits, job.config.split_seed).names
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(job, split)) for split in names}
        tasks = _undone(cut_into_tasks(files, job.config), workspace, progress)
        engine = stack.enter_context(closing(run_tasks(job, tasks)))
        for done in engine:
            progress.add(done)
            watch(progress)
            if not job.config.drop_duplicates:
                for writer in writers.values():
                    _add_parts(workspace, writer, None)
        count = progress.tasks
        kept = {split: _first_ones(job, split, count) for split in names} if job.config.drop_duplicates else {}
        for split, writer in writers.items():
            _add_parts(workspace, writer, kept.get(split))
            assert writer.next_part == count
            writer.finish()
        return _write_manifests(head, writers, count)


def _undone(tasks: Iterator[Task], workspace: Workspace, progress: Progress) -> Iterator[Task]:
    for task in tasks:
        progress.tasks += 1
        if workspace.part_marker(task.number).is_file():
            progress.resumed_bytes += task.size
        else:
            yield task


def _add_parts(workspace: Workspace, writer: ShardWriter, kept: NDArray[np.uint8] | None) -> None:
    """Append to the shards all parts that are there, in the order of the input."""
    while (marker := workspace.part_marker(writer.next_part)).is_file():
        writer.add_part(read_json(marker), kept)


def _first_ones(job: Job, split: str, parts: int) -> NDArray[np.uint8]:
    """[documents of a split] whether each is the first of its kind."""
    workspace = Workspace(job.config.output)
    out = workspace.kept_documents(split)
    if not out.is_file():
        documents = sum(read_json(workspace.part_marker(part))["documents"][split] for part in range(parts))
        mark_first([workspace.part_files(part, split)[2] for part in range(parts)], documents, out)
    return np.memmap(out, dtype=np.uint8, mode="r") if out.stat().st_size else np.zeros(0, dtype=np.uint8)


def _write_manifests(head: _Head, writers: dict[str, ShardWriter], parts: int) -> Manifest:
    output = head.job.config.output
    workspace = Workspace(output)
    skipped = Skipped()
    documents: Counter[str] = Counter()
    read: Counter[str] = Counter()
    for part in range(parts):
        marker = read_json(workspace.part_marker(part))
        skipped.merge(marker["skipped"], marker["samples"])
        documents.update(marker["documents"])
        read.update({key: marker[key] for key in ("text_bytes", "text_tokens")})
    if skipped.counts:
        with whole_file(output / ERRORS) as file:
            file.writelines(json.dumps(sample, ensure_ascii=False).encode() + b"\n" for sample in skipped.samples)
    found = {"text_bytes": read["text_bytes"], "text_tokens": read["text_tokens"], "skipped": dict(skipped.counts)}
    manifests = []
    for split, writer in writers.items():
        manifests.append(_manifest_of_split(head, writer, documents[split], found))
        manifests[-1].write(workspace.split_folder(split))
    if not head.job.config.splits:
        return manifests[0]
    whole = head.manifest(
        documents=sum(manifest.documents for manifest in manifests),
        tokens=sum(manifest.tokens for manifest in manifests),
        duplicates=sum(manifest.duplicates for manifest in manifests),
        length_histogram=_ascending(sum((writer.histogram for writer in writers.values()), Counter())),
        splits=tuple(writers),
        **found,
    )
    whole.write(output)
    return whole


def _manifest_of_split(head: _Head, writer: ShardWriter, documents: int, found: dict[str, Any]) -> Manifest:
    shards = writer.shards
    stored = sum(shard.documents for shard in shards)
    return head.manifest(
        documents=stored,
        tokens=sum(shard.tokens for shard in shards),
        duplicates=documents - stored,
        length_histogram=_ascending(writer.histogram),
        shards=tuple(shards),
        **found,
    )


def _ascending(histogram: Counter[str]) -> dict[str, int]:
    return dict(sorted(histogram.items(), key=lambda entry: int(entry[0])))


def _written_by() -> str:
    try:
        return f"xlstm-data {version('xlstm-data')}"
    except PackageNotFoundError:
        return "xlstm-data"
