"""`prepare`: from documents of any kind to a folder of token-store shards."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from xlstm_jax.dataset.sources.fingerprint import digest
from xlstm_jax.dataset.sources.manifest import MANIFEST, Manifest, Shard, read_manifest
from xlstm_jax.dataset.sources.whole_file import json_bytes, printable, whole_file
from xlstm_jax.prepare.config import ERRORS, PrepareConfig
from xlstm_jax.prepare.course import Course
from xlstm_jax.prepare.engines import run
from xlstm_jax.prepare.errors import PrepareError, Skipped
from xlstm_jax.prepare.inputs import InputFile, list_inputs, refuse_changed
from xlstm_jax.prepare.progress import Progress, Watch, log_lines
from xlstm_jax.prepare.settle import settle
from xlstm_jax.prepare.splits import SplitRule
from xlstm_jax.prepare.storage import public, resource
from xlstm_jax.prepare.tasks import cut_into_tasks
from xlstm_jax.prepare.worker import Job
from xlstm_jax.prepare.workspace import Workspace, read_json

__all__ = ["prepare", "written_by"]

LOGGER = logging.getLogger(__name__)

_CHECKED_AT_A_TIME = 16
"""Files whose store is asked about them; most of the time goes by waiting."""


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
    inputs = [_entry(file) for file in files]
    summary: dict[str, Any] = {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "digest": digest(*(json.dumps(entry).encode() for entry in inputs)),
    }
    workspace = Workspace(config.output)
    if (config.output / MANIFEST).is_file() and not workspace.folder.is_dir():
        workspace.clear_rest()
        return _finished(config, settings, summary)
    with workspace.locked():
        if (config.output / MANIFEST).is_file():
            manifest = _finished(config, settings, summary)
        else:
            read = _counted(len(files), "file")
            LOGGER.info("%.1f MB in %s go to %s.", summary["bytes"] / 1e6, read, printable(config.output))
            workspace.begin(settings, inputs)
            head = _Head(job, settings, summary, command)
            try:
                manifest = _run(head, files, watch or log_lines())
            finally:
                workspace.sweep(settings)
        workspace.end()
    return manifest


def _entry(file: InputFile) -> dict[str, Any]:
    """What is written down of an input file."""
    entry = {"path": public(file.path), "size": file.size, "identity": file.identity}
    # The path is shown without the query, which may be all that tells two files apart.
    named = resource(file.path)
    return entry if named == entry["path"] else entry | {"resource": digest(named.encode())}


def _finished(config: PrepareConfig, settings: dict[str, Any], inputs: dict[str, Any]) -> Manifest:
    """The manifest of a store that is finished, was made as is asked now, and is still there."""
    manifest = read_manifest(config.output)
    now = json.loads(json.dumps(settings))
    changed = sorted(key for key in now.keys() | manifest.settings.keys() if now.get(key) != manifest.settings.get(key))
    if manifest.inputs != inputs:
        changed.append("input files")
    if changed:
        raise PrepareError(
            f"{config.output} holds a finished store, made with other {', '.join(changed)}; name another output folder."
        )
    for split in manifest.splits or ("",):
        for shard in read_manifest(config.output / split).shards:
            for name, facts in shard.files.items():
                Workspace(config.output).refuse_damaged(config.output / split / name, facts["bytes"])
    LOGGER.info("%s is finished already.", printable(config.output))
    return manifest


class _Head:
    """What all manifests of one preparation say."""

    def __init__(self, job: Job, settings: dict[str, Any], inputs: dict[str, Any], command: str | None) -> None:
        self.job = job
        self._common: dict[str, Any] = {
            "format": job.config.output_format,
            "written_by": written_by(),
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
    progress = Progress(total_bytes=sum(file.size for file in files))
    course = Course(job, cut_into_tasks(files, job.config), progress)
    with closing(run(job, course.worklist())) as results:
        for work, done in results:
            course.finished(work, done)
            watch(progress)
    # What changed while it was read, or since, is in no part as it is now.
    with ThreadPoolExecutor(_CHECKED_AT_A_TIME) as pool:
        for _ in pool.map(lambda file: refuse_changed(file.path, file.format, file.identity, job.config), files):
            pass
    return _write_manifests(head, course.parts)


def _write_manifests(head: _Head, parts: int) -> Manifest:
    output = head.job.config.output
    workspace = Workspace(output)
    skipped = Skipped()
    documents: Counter[str] = Counter()
    read: Counter[str] = Counter()
    for part in range(parts):
        marker = read_json(workspace.part_marker(part))
        lines, continued = marker["lines"], marker["continued"]
        skipped.merge(marker["skipped"], marker["samples"], lines=lines, continued=continued)
        documents.update(marker["documents"])
        read.update({key: marker[key] for key in ("text_bytes", "text_tokens")})
    if skipped.counts:
        with whole_file(output / ERRORS, durable=True) as file:
            file.writelines(map(json_bytes, skipped.samples))
    found = {"text_bytes": read["text_bytes"], "text_tokens": read["text_tokens"], "skipped": dict(skipped.counts)}
    manifests = {}
    for split in SplitRule(head.job.config.splits, 0).names:
        manifests[split] = _manifest_of_split(head, split, documents[split], found)
        manifests[split].write(workspace.split_folder(split))
    if not head.job.config.splits:
        return manifests[""]
    whole = head.manifest(
        documents=sum(manifest.documents for manifest in manifests.values()),
        tokens=sum(manifest.tokens for manifest in manifests.values()),
        duplicates=sum(manifest.duplicates for manifest in manifests.values()),
        length_histogram=_ascending(Counter(manifest.length_histogram) for manifest in manifests.values()),
        splits=tuple(manifests),
        **found,
    )
    whole.write(output)
    return whole


def _manifest_of_split(head: _Head, split: str, documents: int, found: dict[str, Any]) -> Manifest:
    markers = list(Workspace(head.job.config.output).finished_shards(split))
    shards = tuple(Shard(**marker["shard"]) for marker in markers)
    stored = sum(shard.documents for shard in shards)
    return head.manifest(
        documents=stored,
        tokens=sum(shard.tokens for shard in shards),
        duplicates=documents - stored,
        length_histogram=_ascending(Counter(marker["histogram"]) for marker in markers),
        split=split or None,
        shards=shards,
        **found,
    )


def _ascending(histograms: Iterable[Counter[str]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return dict(sorted(total.items(), key=lambda entry: int(entry[0])))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def written_by() -> str:
    """This library and its version."""
    try:
        return f"xlstm-data {version('xlstm-data')}"
    except PackageNotFoundError:
        return "xlstm-data"
