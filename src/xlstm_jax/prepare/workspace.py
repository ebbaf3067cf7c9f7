"""The state of an unfinished store: what was asked, which parts are done, which shards; and that only one works on it.

Everything lies in `.unfinished` in the output folder, and every file appears under its name only when it is whole:

| file | what |
|---|---|
| `settings.json` | what was asked |
| `inputs.jsonl` | path, size and identity of each input file |
| `parts/00000012.json` | what task 12 read; written last of its files |
| `parts/00000012.<split>.bin`, `.idx`, `.hashes` | its documents, and 16 bytes of each one's content |
| `copies/` | remote files that can only be read in place |
| `shards/<split>-00003.json` | shard 3 of a split: what it holds, and where the next one begins |
"""

import fcntl
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xlstm_jax.dataset.sources.cache import whole_file
from xlstm_jax.dataset.sources.manifest import UNFINISHED
from xlstm_jax.prepare.errors import PrepareError

__all__ = ["Workspace", "read_json", "sync", "write_json"]

LOGGER = logging.getLogger(__name__)

_SHARDS = ("*.idx", "*.bin", "*.array_record")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        PrepareError: It is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise PrepareError(f"{path} is damaged: {error}. Delete it to make it anew.") from error


def sync(path: Path) -> None:
    """Have a file and its name on the disk: what is not may be empty, or gone, after a power failure."""
    _fsync(path)
    # Some file systems of clusters cannot do this to a folder.
    with suppress(OSError):
        _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Workspace:
    """Names the files of an unfinished store.

    Args:
        output: Folder of the store.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / UNFINISHED

    @property
    def copies(self) -> Path:
        """Where copies of remote files lie."""
        return self.folder / "copies"

    def part_prefix(self, task: int, split: str) -> Path:
        """Where the documents of a split that a task read lie."""
        return self.folder / "parts" / f"{task:08d}.{split or 'all'}"

    def part_files(self, task: int, split: str) -> list[Path]:
        """All files of a part."""
        prefix = self.part_prefix(task, split)
        return [prefix.with_name(prefix.name + kind) for kind in (".bin", ".idx", ".hashes")]

    def part_marker(self, task: int) -> Path:
        """Says that a task is done, and what it read."""
        return self.folder / "parts" / f"{task:08d}.json"

    def forget_damaged_parts(self, split: str, first: int) -> None:
        """Forget those parts from `first` on that are not whole: parts are not synced to the disk, for speed."""
        for marker in sorted((self.folder / "parts").glob("*.json")):
            if int(marker.stem) >= first and not self._is_whole(marker, split):
                LOGGER.warning("%s is damaged, and is done again.", marker.stem)
                marker.unlink()

    def _is_whole(self, marker: Path, split: str) -> bool:
        try:
            sizes = json.loads(marker.read_bytes())["file_bytes"]
        except ValueError:
            return False
        files = self.part_files(int(marker.stem), split)
        return all(file.is_file() and file.stat().st_size == sizes[file.name] for file in files if file.name in sizes)

    def shard_marker(self, split: str, shard: int) -> Path:
        """Says that a shard is done."""
        return self.folder / "shards" / f"{split or 'all'}-{shard:05d}.json"

    def finished_shards(self, split: str) -> Iterator[dict[str, Any]]:
        """The markers of a split's shards, up to the first that is not done.

        Raises:
            PrepareError: Files of a shard that was done are not there, or not whole.
        """
        for shard in itertools.count():
            marker = self.shard_marker(split, shard)
            if not marker.is_file():
                return
            content = read_json(marker)
            for name, expected in content["shard"]["files"].items():
                self._refuse_damaged(self.split_folder(split) / name, expected["bytes"])
            yield content

    def _refuse_damaged(self, file: Path, size: int) -> None:
        found = f"has {file.stat().st_size:,} bytes" if file.is_file() else "is gone"
        if found != f"has {size:,} bytes":
            raise PrepareError(
                f"{file} was finished with {size:,} bytes, and {found}. Bring it back; or, since what it was made of "
                f"may be gone too, delete {self.output} and begin again."
            )

    def kept_documents(self, split: str) -> Path:
        """[documents] uint8: whether a document of a split is the first of its kind."""
        return self.folder / f"{split or 'all'}.keep"

    def split_folder(self, split: str) -> Path:
        """Where the shards of a split go."""
        return self.output / split

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Work on this store alone.

        Raises:
            PrepareError: Another process does, or the folder holds the store of someone else.
        """
        if not self.folder.is_dir() and any(found for kind in _SHARDS for found in self.output.glob(kind)):
            raise PrepareError(f"{self.output} holds shards that are not of this tool; name an empty folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PrepareError(f"Another process prepares {self.output}; wait for it, or stop it.") from None
            except OSError as error:  # Some file systems of clusters know no locks.
                LOGGER.warning("%s cannot be locked (%s); see that only one process works on it.", self.output, error)
            yield

    def begin(self, settings: dict[str, Any], inputs: list[dict[str, Any]]) -> None:
        """Write down what was asked, or check that it is what was asked before.

        Raises:
            PrepareError: Something differs; the message names it.
        """
        asked = self.folder / "settings.json"
        listed = self.folder / "inputs.jsonl"
        if asked.is_file() and listed.is_file():
            self._refuse_other_settings(read_json(asked), json.loads(json.dumps(settings)))
            self._refuse_other_inputs(listed, inputs)
            LOGGER.info("%s is unfinished; the work goes on where it stood.", self.output)
        else:
            with whole_file(listed) as file:
                file.writelines(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in inputs)
            write_json(asked, settings)
        for folder in self._folders(settings):
            folder.mkdir(exist_ok=True)
        self.sweep(settings)

    def sweep(self, settings: dict[str, Any]) -> None:
        """Clear away files that are half written; whoever wrote them is gone."""
        for folder in self._folders(settings):
            for half_written in folder.glob(".*.part"):
                half_written.unlink(missing_ok=True)

    def _folders(self, settings: dict[str, Any]) -> list[Path]:
        splits = [self.split_folder(split) for split, _ in settings["splits"]]
        return [self.output, self.folder, self.folder / "parts", self.folder / "shards", *splits]

    def _refuse_other_settings(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        keys = sorted(before.keys() | now.keys())
        changed = [
            f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)
        ]
        if changed:
            raise PrepareError(
                f"{self.output} was begun otherwise: {'; '.join(changed)}. "
                "Repeat the command as it was, or name another output folder."
            )

    def _refuse_other_inputs(self, listed: Path, inputs: list[dict[str, Any]]) -> None:
        with listed.open("rb") as file:
            before = list(map(json.loads, file))
        if before == inputs:
            return
        # A file may be named more than once; each time counts.
        paths_before = Counter(entry["path"] for entry in before)
        paths = Counter(entry["path"] for entry in inputs)
        entries_before = {tuple(entry.values()) for entry in before}
        changes = {
            "new": list((paths - paths_before).elements()),
            "gone": list((paths_before - paths).elements()),
            "changed": [
                entry["path"]
                for entry in inputs
                if entry["path"] in paths_before and tuple(entry.values()) not in entries_before
            ],
        }
        found = [f"{len(those)} {what} (such as {those[0]})" for what, those in changes.items() if those]
        raise PrepareError(
            f"{self.output} was begun with other input files: {', '.join(found) or 'in another order'}. "
            "Name another output folder, or bring the input back to what it was."
        )

    def end(self) -> None:
        """Clear away all that was needed only for the work."""
        # The lock goes last, with the folder.
        for entry in sorted(self.folder.iterdir(), key=lambda found: found.name == "lock"):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.folder.rmdir()
