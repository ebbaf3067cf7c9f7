"""From text to tokens: a tokenizer of the `tokenizers` library, and the operation that applies it to documents.

Texts are encoded a chunk at a time, so that the library's own threads work. In a process forked from one that has
encoded already, the library goes on with one thread and says so; `TOKENIZERS_PARALLELISM` is left to the caller.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.fingerprint import digest

__all__ = ["Tokenize", "Tokenizer"]

FILE_NAME = "tokenizer.json"
DEFAULT_COLUMN = "text"
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_NAMED_IN_ERRORS = 8


class Tokenizer:
    """A tokenizer that gives the tokens of a text and nothing else.

    No special tokens are added, text that looks like a special token is encoded as text (unless the tokenizer's model
    has it as a piece of text, as Unigram models do; see `Tokenize`), and the truncation and padding stored with the
    tokenizer are off. Equal, and of one hash, where the serialised tokenizers are equal; pickled as
    JSON.
    """

    def __init__(self, backend: Any) -> None:
        """Wrap a copy of a `tokenizers.Tokenizer`.

        Raises:
            ImportError: The extra `tokenizers` is not installed.
            ValueError: The tokenizer encodes at random (BPE dropout).
        """
        self.__setstate__(backend.to_str())

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> "Tokenizer":
        """Load a tokenizer.

        Args:
            name_or_path: A tokenizer.json file, a folder that holds one, or, where there is no such path, a name on the
                Hugging Face hub. Only a name touches the network, and an `os.PathLike` is never taken for one.

        Raises:
            FileNotFoundError: Nothing was found; the message says where it was looked for.
            ImportError: The extra `tokenizers` is not installed.
            ValueError: The file is no serialised tokenizer, or the tokenizer encodes at random (BPE dropout).
        """
        library = require("tokenizers", "tokenizers")
        path = Path(name_or_path)
        if path.exists():
            return cls(_read_file(library, path))
        may_be_name = isinstance(name_or_path, str) and _HUB_NAME.fullmatch(name_or_path) and path.suffix != ".json"
        if not may_be_name:
            raise FileNotFoundError(
                f"No tokenizer at {os.fspath(name_or_path)!r}: there is no such file or folder, and it is no name on "
                f"the Hugging Face hub; give a {FILE_NAME}, a folder that holds one, or a name such as 'gpt2'."
            )
        try:
            backend = library.Tokenizer.from_pretrained(name_or_path)
        except Exception as error:
            raise FileNotFoundError(
                f"No tokenizer {name_or_path!r}: there is no such file or folder in {Path.cwd()}, and {FILE_NAME} of "
                f"that name could not be had from the Hugging Face hub ({type(error).__name__}: {error})."
            ) from error
        return cls(backend)

    def __getstate__(self) -> str:
        serialised: str = self._backend.to_str()
        return serialised

    def __setstate__(self, serialised: str) -> None:
        backend = require("tokenizers", "tokenizers").Tokenizer.from_str(serialised)
        if getattr(backend.model, "dropout", None):
            raise ValueError(
                f"The tokenizer encodes at random (dropout={backend.model.dropout}), so that a run could not be "
                "repeated; set its model's dropout to null."
            )
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint!r})"

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the serialised tokenizer, as far as it has a say in what `encode_batch` gives."""
        return digest(self.__getstate__().encode())

    @cached_property
    def vocab_size(self) -> int:
        """The highest token id + 1, added tokens included: more than the number of tokens where ids have gaps."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def token_id(self, token: str) -> int:
        """The id of a token, written as in the vocabulary, such as "<eod>".

        Raises:
            ValueError: There is no such token; the message names some like it.
        """
        found: int | None = self._backend.token_to_id(token)
        if found is not None:
            return found
        close = difflib.get_close_matches(token, self._backend.get_vocab(with_added_tokens=True))
        special = [added.content for added in self._backend.get_added_tokens_decoder().values() if added.special]
        raise ValueError(
            f"The tokenizer has no token {token!r}; tokens like it: {_listed(close)}; special tokens: "
            f"{_listed(special)}."
        )

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Per text [tokens] int32: its token ids; none for an empty text.

        Raises:
            TypeError: Not a sequence of strings.
            ValueError: A text holds half a surrogate pair, which is no character.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            kinds = sorted({type(text).__name__ for text in texts})
            raise TypeError(
                f"encode_batch takes a sequence of strings, got {type(texts).__name__} of {', '.join(kinds)}; put a "
                "single text in a list, and decode bytes first."
            )
        encode = getattr(self._backend, "encode_batch_fast", self._backend.encode_batch)
        try:
            encodings = encode(list(texts), add_special_tokens=False)
        except TypeError as error:
            # The library's own message names neither the text nor what is wrong with it.
            _check_unicode(texts)
            raise TypeError(f"The tokenizers library refused a text: {error}") from error
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of these token ids, special tokens included."""
        text: str = self._backend.decode(np.asarray(ids, dtype=np.int64).tolist(), skip_special_tokens=False)
        return text


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Operation: a document's text becomes its token ids.

    Elements are text, as `str` or UTF-8 `bytes`, or mappings that hold text in a column. A text without tokens stays an
    empty document: neither `bos_token_id` nor `eod_token_id` is put around it. A text of which the tokenizer makes one
    of these tokens is refused, since a document would seem to end within it.
    """

    tokenizer: Tokenizer
    _: KW_ONLY
    eod_token_id: int | None
    """Appended to each document; None appends nothing. `tokenizer.token_id("<eod>")` gives the id of a token."""
    bos_token_id: int | None = None
    """Put before each document; None puts nothing."""
    column: str | None = None
    """Where the text stands in elements that are mappings; None means "text"."""

    def __post_init__(self) -> None:
        """Refuse ids outside the vocabulary."""
        for name, value in (("eod_token_id", self.eod_token_id), ("bos_token_id", self.bos_token_id)):
            if isinstance(value, str):
                raise TypeError(f"{name} must be an id, got {value!r}; use tokenizer.token_id({value!r}).")
            if value is not None and not 0 <= value < self.tokenizer.vocab_size:
                raise ValueError(
                    f"{name}={value} lies outside the tokenizer's vocabulary, whose ids go from 0 to "
                    f"{self.tokenizer.vocab_size - 1}; tokenizer.token_id gives the id of a token."
                )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the tokenizer, the ids and the column."""
        settings = f"{self.eod_token_id} {self.bos_token_id} {self._text_column}"
        return digest(self.tokenizer.fingerprint.encode(), settings.encode())

    def map_batch(self, elements: Sequence[Any]) -> list[NDArray[np.int32]]:
        """Per element [tokens] int32.

        Raises:
            TypeError: An element is no text, or its column holds none.
            ValueError: Bytes that are not UTF-8, a mapping without the column, or a text that holds one of the tokens
                which end and begin documents.
        """
        texts = [
            element if type(element) is str else self._text(element, place) for place, element in enumerate(elements)
        ]
        documents = self.tokenizer.encode_batch(texts)
        before, after = (
            [] if id_ is None else [np.array([id_], np.int32)] for id_ in (self.bos_token_id, self.eod_token_id)
        )
        if not documents or not (before or after):
            return documents
        self._refuse_within(np.concatenate(documents))
        return [np.concatenate((*before, tokens, *after)) if len(tokens) else tokens for tokens in documents]

    def map(self, element: Any) -> NDArray[np.int32]:
        """[tokens] int32: a single element; see `map_batch`."""
        return self.map_batch([element])[0]

    def _refuse_within(self, tokens: NDArray[np.int32]) -> None:
        for place, token in (("end", self.eod_token_id), ("begin", self.bos_token_id)):
            if token is not None and (tokens == token).any():
                name = self.tokenizer.decode([token])
                raise ValueError(
                    f"The tokenizer makes token {token} ({name!r}) of a part of the text, and that token must stand "
                    f"only at the {place} of a document. Write that part otherwise, or take another token for the "
                    f"{place}."
                )

    @property
    def _text_column(self) -> str:
        return DEFAULT_COLUMN if self.column is None else self.column

    def _text(self, element: Any, place: int) -> str:
        if isinstance(element, Mapping):
            if self._text_column not in element:
                raise ValueError(
                    f"Element {place} of the chunk has no column {self._text_column!r}, only "
                    f"{_listed([str(field) for field in element])}; name the one that holds text as `column`."
                )
            element = element[self._text_column]
        if isinstance(element, str):
            return element
        if not isinstance(element, bytes):
            raise TypeError(
                f"Element {place} of the chunk is {type(element).__name__}, not text; Tokenize takes str, UTF-8 bytes, "
                f"or mappings that hold one of them in {self._text_column!r}."
            )
        try:
            return element.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Element {place} of the chunk is not UTF-8: byte {element[error.start]:#04x} at {error.start}, after "
                f"{element[max(0, error.start - 20) : error.start]!r}; decode it in an operation before Tokenize."
            ) from error


def _read_file(library: Any, path: Path) -> Any:
    """The library's tokenizer from an existing file or folder."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"The folder {path} holds no {FILE_NAME}; write one with the `save` of a tokenizers.Tokenizer, or the "
            "`save_pretrained` of a fast tokenizer of transformers."
        )
    try:
        return library.Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:
        raise ValueError(
            f"{file} is no serialised tokenizer of the tokenizers library ({error}); it needs a {FILE_NAME}."
        ) from error


def _check_unicode(texts: Sequence[str]) -> None:
    for place, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {place} of the chunk holds half a surrogate pair ({text[error.start]!r} at {error.start}), "
                "which is no character; put an operation before Tokenize that replaces it, such as "
                'text.encode("utf-8", "replace").decode().'
            ) from error


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED_IN_ERRORS])
    return (f"{shown}, …" if len(names) > _NAMED_IN_ERRORS else shown) or "none"
