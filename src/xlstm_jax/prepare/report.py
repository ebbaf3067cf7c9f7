"""A manifest for people."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from xlstm_jax.dataset.sources.manifest import Manifest, read_manifest

__all__ = ["describe", "info"]

_BAR = 40


def info(folder: Path) -> str:
    """What the store in a folder holds, in lines of text.

    Raises:
        FileNotFoundError: The folder holds no finished store.
        ValueError: Its manifest is damaged, or of another version.
    """
    manifest = read_manifest(folder)
    lines = [describe(manifest)]
    for split in manifest.splits:
        part = read_manifest(folder / split)
        lines.append(f"{split}: {part.documents:,} documents, {part.tokens:,} tokens in {len(part.shards)} shards")
    lines += [f"{shard.name}: {shard.documents:,} documents, {shard.tokens:,} tokens" for shard in manifest.shards]
    return "\n".join(lines)


def describe(manifest: Manifest) -> str:
    """A store's documents, tokens, lengths, fertility, and what was left out, in lines of text."""
    return "\n".join(_lines(manifest))


def _lines(manifest: Manifest) -> Iterator[str]:
    yield f"{manifest.documents:,} documents, {manifest.tokens:,} tokens of {manifest.dtype}"
    if manifest.text_bytes:
        fertility = manifest.text_tokens / manifest.text_bytes
        yield f"{manifest.text_bytes:,} bytes of text, {fertility:.3f} tokens a byte"
    if manifest.tokenizer_fingerprint is not None:
        yield (
            f"tokenizer {manifest.tokenizer or '(of the input)'}, fingerprint {manifest.tokenizer_fingerprint}, "
            f"{manifest.vocab_size} ids, documents end with {manifest.eod_token_id}"
        )
    if manifest.duplicates:
        yield f"{manifest.duplicates:,} documents left out that have stood before"
    if manifest.skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.skipped.items())
        yield f"{sum(manifest.skipped.values()):,} records skipped ({reasons}); see errors.jsonl"
    yield from _histogram(manifest.length_histogram)


def _histogram(counts: Mapping[str, int]) -> Iterator[str]:
    most = max(counts.values(), default=0)
    for low, count in counts.items():
        bar = "#" * round(_BAR * count / most)
        lengths = low if int(low) <= 1 else f"{low}-{2 * int(low) - 1}"
        yield f"{lengths:>15} tokens {count:>12,} {bar}".rstrip()
