"""What can go wrong with the input, and how it is said."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SAMPLES_PER_REASON", "BadRecord", "PrepareError", "Skipped"]

SAMPLES_PER_REASON = 100
"""Skipped records of each reason that are described in the error file; all are counted."""
_EXCERPT = 200


class PrepareError(RuntimeError):
    """The store cannot be prepared as asked; the message says why, where, and what to do."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that holds no document."""

    reason: str
    """A few words that are the same for all records of this kind."""
    message: str
    """What is wrong with this one."""
    excerpt: str = ""
    """The beginning of what was read."""

    @classmethod
    def of(cls, reason: str, message: str, content: str | bytes = "") -> "BadRecord":
        """A bad record with the beginning of its content."""
        head = content[:_EXCERPT]
        return cls(reason, message, head.decode("utf-8", "backslashreplace") if isinstance(head, bytes) else head)


@dataclass(slots=True)
class Skipped:
    """Bad records: how many of each reason, and the first ones of each."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    """Of the file that the parts merged so far end in."""

    def add(self, bad: BadRecord, path: str, place: int) -> None:
        """Count a bad record, at a place of a file as shown to people; the first of its reason are described."""
        self.counts[bad.reason] += 1
        if self.counts[bad.reason] <= SAMPLES_PER_REASON:
            sample = {
                "path": path,
                "place": place,
                "reason": bad.reason,
                "message": bad.message,
                "excerpt": bad.excerpt,
            }
            self.samples.append(sample)

    def merge(self, counts: dict[str, int], samples: list[dict[str, Any]], *, lines: int, continued: bool) -> None:
        """Add what the next part skipped.

        Args:
            counts: Of each reason.
            samples: Of its first ones; a line that a sample says to be of a continued file is counted from the
                beginning of the part.
            lines: Of the file that the part ends in.
            continued: Whether that file was begun by an earlier part.
        """
        before = Counter(sample["reason"] for sample in self.samples)
        for sample in samples:
            if sample.pop("continued", False):
                sample["line"] += self.lines
            before[sample["reason"]] += 1
            if before[sample["reason"]] <= SAMPLES_PER_REASON:
                self.samples.append(sample)
        self.counts.update(counts)
        self.lines = lines + (self.lines if continued else 0)
