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
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from xlstm_jax.dataset.sources.manifest import MANIFEST, UNFINISHED
from xlstm_jax.dataset.sources.whole_file import json_bytes, printable, sync_folder, whole_file, write_json
from xlstm_jax.prepare.errors import PrepareError

__all__ = ["Workspace", "appears", "read_json"]

LOGGER = logging.getLogger(__name__)

_SHARDS = ("*.idx", "*.bin", "*.array_record")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        PrepareError: It is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise PrepareError(f"{path} is damaged: {error}. Delete it to make it anew.") from error


def appears(path: Path, within_s: float) -> bool:
    """Whether a file that another machine has written is there, or comes in sight within this time.

    A network file system remembers that a name was not there; reading in the folder makes it ask again, at once on NFS.
    """
    begun = time.monotonic()
    pause_s = 0.0
    while not path.is_file():
        if time.monotonic() - begun > within_s:
            return False
        time.sleep(pause_s)
        pause_s = min(2.0, 2 * pause_s + 0.01)
        # Not all of it: there may be a hundred thousand.
        with suppress(FileNotFoundError), os.scandir(path.parent) as entries:
            next(entries, None)
    return True


class Workspace:
    """Names the files of an unfinished store.

    Args:
        output: Folder of the store.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / UNFINISHED
        self._rest = output / ".finished"

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
        """Forget the parts that are not whole: parts are not synced to the disk, for speed.

        Those before `first` stand in finished shards, and of them only the markers are needed.
        """
        for marker in sorted((self.folder / "parts").glob("*.json")):
            if not self._is_whole(marker, split, only_marker=int(marker.stem) < first):
                LOGGER.warning("Part %d is damaged, and is made again.", int(marker.stem))
                marker.unlink()

    def _is_whole(self, marker: Path, split: str, *, only_marker: bool) -> bool:
        try:
            sizes = json.loads(marker.read_bytes())["file_bytes"]
        except ValueError:
            return False
        if only_marker:
            return True
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
                self.refuse_damaged(self.split_folder(split) / name, expected["bytes"])
            yield content

    def refuse_damaged(self, file: Path, size: int) -> None:
        """See that a file of a finished shard is still there, with all its bytes.

        Raises:
            PrepareError: It is not.
        """
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
        begun = self.folder.is_dir() or (self.output / MANIFEST).is_file()
        if not begun and any(found for kind in _SHARDS for found in self.output.glob(kind)):
            raise PrepareError(f"{self.output} holds shards that are not of this tool; name an empty folder.")
        while (lock := self._lock()) is None:
            LOGGER.debug("%s was finished by another process meanwhile.", self.output)
        with lock:
            yield

    def _lock(self) -> TextIO | None:
        """The locked file; None where another process has cleared it away before it was locked."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "lock"
        try:
            lock = path.open("w")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise PrepareError(f"Another process prepares {self.output}; wait for it, or stop it.") from None
        except OSError as error:  # Some file systems of clusters know no locks.
            LOGGER.warning(
                "%s cannot be locked (%s); see that only one process works on it.", printable(self.output), error
            )
        # A lock on a file that has lost its name keeps nobody out.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
        lock.close()
        return None

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
            LOGGER.info("%s is unfinished; the work goes on where it stood.", printable(self.output))
        else:
            # Of what was made nobody knows how.
            for made in ("parts", "shards"):
                shutil.rmtree(self.folder / made, ignore_errors=True)
            with whole_file(listed, durable=True) as file:
                file.writelines(map(json_bytes, inputs))
            write_json(asked, settings, durable=True)
        for folder in self._folders(settings):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
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
        """Clear away all that was needed only for the work, the lock included, at once."""
        self.clear_rest()
        self.folder.rename(self._rest)
        self.clear_rest()

    def clear_rest(self) -> None:
        """Clear away what an interrupted end has left."""
        # On NFS the lock's file keeps the folder until it is closed.
        shutil.rmtree(self._rest, ignore_errors=True)
