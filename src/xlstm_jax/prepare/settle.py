"""What a job needs to know before it begins: token ids, the size of the vocabulary, the dtype."""

import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

from xlstm_jax.dataset.sources.manifest import MANIFEST, Manifest, read_manifest
from xlstm_jax.dataset.sources.token_index import HEADER, stored_dtype
from xlstm_jax.dataset.tokenizer import Tokenize, Tokenizer
from xlstm_jax.prepare.access import copy_file, open_file
from xlstm_jax.prepare.config import AUTO, PrepareConfig
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.inputs import InputFile
from xlstm_jax.prepare.storage import exists, is_url
from xlstm_jax.prepare.worker import Job

__all__ = ["settle"]

_END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_document|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<eod>",
    "<|eod|>",
    "[EOD]",
)
_UINT16_IDS = 1 << 16


def settle(config: PrepareConfig, files: list[InputFile]) -> tuple[Job, dict[str, Any]]:
    """The job for this input, and what decides the store, JSON-clean.

    Raises:
        PrepareError: There is text and no tokenizer, tokens of another tokenizer, or no end token.
        ValueError: A named token is none of the tokenizer's.
    """
    stores = _manifests(files, config)
    tokenizer = None if config.tokenizer is None else Tokenizer.load(config.tokenizer)
    has_text = any(file.format != "token_store" for file in files)
    if has_text and tokenizer is None:
        raise PrepareError("The input is text; name the tokenizer (--tokenizer FILE, FOLDER or NAME).")
    fingerprint = _agreed("tokenizer_fingerprint", [tokenizer and tokenizer.fingerprint], stores)
    vocab_size = _agreed("vocab_size", [tokenizer and tokenizer.vocab_size], stores)
    # Stores on their own say what their documents end and begin with, unless something else is asked for.
    eod_is_told = bool(stores) and not has_text and config.eod_token == AUTO
    bos_is_told = bool(stores) and not has_text and config.bos_token is None
    eod = _framing("eod_token_id", [] if eod_is_told else [_token_id(tokenizer, config.eod_token)], stores)
    bos = _framing("bos_token_id", [] if bos_is_told else [_token_id(tokenizer, config.bos_token)], stores)
    tokenize = b""
    if has_text:
        assert tokenizer is not None
        tokenize = pickle.dumps(Tokenize(tokenizer, eod_token_id=eod, bos_token_id=bos))
    dtype = config.dtype if config.dtype != AUTO else _smallest_dtype(vocab_size, files, config)
    job = Job(config=config, tokenize=tokenize, vocab_size=vocab_size, eod_token_id=eod, bos_token_id=bos, dtype=dtype)
    decided = {
        "tokenizer_fingerprint": fingerprint,
        "vocab_size": vocab_size,
        "eod_token_id": eod,
        "bos_token_id": bos,
        "dtype": dtype,
    }
    return job, config.settings | decided


def _manifests(files: list[InputFile], config: PrepareConfig) -> list[Manifest]:
    """Those of the token stores of the input that have one."""
    stores = [file.path for file in files if file.format == "token_store"]
    folders = dict.fromkeys(path.rpartition("/")[0] for path in stores)
    return [manifest for folder in folders if (manifest := _manifest(folder, config)) is not None]


def _manifest(folder: str, config: PrepareConfig) -> Manifest | None:
    path = f"{folder}/{MANIFEST}"
    if not exists(path, config.storage_options):
        return None
    if not is_url(folder):
        return read_manifest(Path(folder))
    with tempfile.TemporaryDirectory() as copy:
        copy_file(path, Path(copy) / MANIFEST, config.storage_options)
        return read_manifest(Path(copy))


def _agreed(name: str, own: list[Any], stores: list[Manifest]) -> Any:
    """The one value that the config and all prepared stores of the input have; None where none has one."""
    values = {value for value in (*own, *(getattr(store, name) for store in stores)) if value is not None}
    if len(values) > 1:
        raise PrepareError(
            f"The input does not fit together: {name} is {' and '.join(map(str, sorted(values)))}. Tokens of several "
            "tokenizers cannot stand in one store; prepare each on its own."
        )
    return values.pop() if values else None


def _framing(name: str, own: list[int | None], stores: list[Manifest]) -> int | None:
    """The token that all documents end, or begin, with; here none is a value like others.

    Stores without a manifest are taken to be like the rest; what is read of them is held against that.
    """
    values: set[int | None] = {*own, *(getattr(store, name) for store in stores)}
    if len(values) > 1:
        found = " and ".join(sorted("none" if value is None else str(value) for value in values))
        raise PrepareError(
            f"The input does not fit together: {name} is {found}. Documents of one store end and begin alike: ask for "
            "what all have (--eod-token, --bos-token), or prepare each on its own."
        )
    return values.pop()


def _token_id(tokenizer: Tokenizer | None, token: str | int | None) -> int | None:
    if token is None or isinstance(token, int):
        return token
    if tokenizer is None:
        if token == AUTO:
            return None
        raise PrepareError(f"The token {token!r} needs a tokenizer to have an id; name its id, or the tokenizer.")
    return _usual_end_token(tokenizer) if token == AUTO else tokenizer.token_id(token)


def _usual_end_token(tokenizer: Tokenizer) -> int:
    # A tokenizer's pickled state is the JSON of its file, which lists the special tokens.
    special = {token["content"]: token["id"] for token in json.loads(tokenizer.__getstate__())["added_tokens"]}
    found: dict[str, int] = {name: special[name] for name in _END_TOKENS if name in special}
    if len(found) != 1:
        known = f"several that may be it: {', '.join(found)}" if found else "none of the usual ones"
        raise PrepareError(
            f"Which token ends a document? The tokenizer has {known}. Name it (--eod-token '</s>'), or say that there "
            "is none (--eod-token none)."
        )
    return next(iter(found.values()))


def _smallest_dtype(vocab_size: int | None, files: list[InputFile], config: PrepareConfig) -> str:
    if vocab_size is not None:
        return "uint16" if vocab_size <= _UINT16_IDS else "int32"
    kinds = {_stored_dtype(file, config) for file in files if file.format == "token_store"}
    return "uint16" if kinds <= {"uint8", "uint16"} else "int32"


def _stored_dtype(file: InputFile, config: PrepareConfig) -> str:
    with open_file(file.path, config.storage_options) as opened:
        # What is no index is found out when it is read.
        return stored_dtype(opened.read(HEADER.size))
