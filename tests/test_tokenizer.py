"""The tokenizer and its operation, with a small byte-level BPE tokenizer that the tests train themselves."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from xlstm_jax.dataset.tokenizer import Tokenize, Tokenizer
from xlstm_jax.dataset.transforms import DocumentReader, check_operations

SENTENCES = ["the cat sat on the mat", "the dog sat on the log", "hello there, hello world"]
BOS, EOD, PAD = 0, 1, 2


def train():
    """A tokenizer with special tokens, a post-processor that adds them, truncation and padding."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eod>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eod>", special_tokens=[("<bos>", BOS), ("<eod>", EOD)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=10, pad_id=PAD, pad_token="<pad>")
    return backend


BACKEND = train()
TOKENIZER = Tokenizer(BACKEND)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokenizer.json"
    BACKEND.save(str(path))
    return path


@pytest.fixture
def hub(monkeypatch):
    """The requests that would have gone to the hub; each is answered by an error."""
    requests = []

    def refuse(repo_id, filename, **_):
        requests.append((repo_id, filename))
        raise ConnectionError("the hub is far away")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    return requests


def changed(**fields):
    """The tokenizer with other entries in its JSON."""
    return tokenizers.Tokenizer.from_str(json.dumps(json.loads(BACKEND.to_str()) | fields))


# Loading


def test_a_file_and_the_folder_that_holds_it_give_the_same_tokenizer(file, hub):
    assert Tokenizer.load(str(file)) == Tokenizer.load(file) == Tokenizer.load(file.parent) == TOKENIZER
    assert hub == []


def test_a_file_may_have_a_name_that_is_no_utf_8(file):
    other = Path(os.fsdecode(os.fsencode(file.parent) + b"/\xff.json"))
    other.write_bytes(file.read_bytes())
    assert Tokenizer.load(other) == TOKENIZER


def test_a_name_is_loaded_from_the_hub(file, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: str(file))
    assert Tokenizer.load("some-org/some-model") == TOKENIZER


def test_a_name_that_the_hub_does_not_give_is_refused_with_what_was_tried(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"'some-org/some-model'.*no such file or folder in .*Hugging Face hub"
    ) as e:
        Tokenizer.load("some-org/some-model")
    assert str(tmp_path) in str(e.value)
    assert "the hub is far away" in str(e.value)
    assert hub == [("some-org/some-model", "tokenizer.json")]


@pytest.mark.parametrize("path", ["/no/such/folder", "./some-model", "data/tokenizer.json", "a/b/c", "~/model"])
def test_a_missing_path_that_is_no_name_never_touches_the_network(path, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Tokenizer.load(path)
    assert hub == []


def test_a_path_object_is_never_taken_for_a_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'gpt2'"):
        Tokenizer.load(Path("gpt2"))
    assert hub == []


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, hub):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json; write one"):
        Tokenizer.load(tmp_path)
    assert hub == []


@pytest.mark.parametrize("content", ["", "no json", "{}", '{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no serialised tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_missing_library_is_named_with_its_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'xlstm-data\[tokenizers\]'"):
        Tokenizer.load(file)


def test_importing_the_module_loads_no_tokenizers_and_sets_no_environment():
    code = (
        "import os, sys; before = dict(os.environ); import xlstm_jax.dataset.tokenizer\n"
        "assert 'tokenizers' not in sys.modules\n"
        "assert not {k for k in os.environ.keys() | before.keys() if 'TOKENIZERS' in k}\n"
    )
    environment = {k: v for k, v in os.environ.items() if "TOKENIZERS" not in k}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_tokenizer_that_encodes_at_random_is_refused():
    backend = train()
    backend.model.dropout = 0.1
    with pytest.raises(ValueError, match=r"at random \(dropout=0.1"):
        Tokenizer(backend)


def test_wrapping_leaves_the_wrapped_tokenizer_as_it_was():
    backend = train()
    Tokenizer(backend).encode_batch(["the cat"])
    assert backend.truncation["max_length"] == 4
    assert backend.padding["length"] == 10
    assert not backend.encode_special_tokens


# Encoding


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=6))
def test_tokens_of_any_texts_are_int32_and_decode_to_them(texts):
    encoded = TOKENIZER.encode_batch(texts)
    assert [tokens.dtype for tokens in encoded] == [np.int32] * len(texts)
    assert [tokens.ndim for tokens in encoded] == [1] * len(texts)
    assert [TOKENIZER.decode(tokens) for tokens in encoded] == texts
    for text, tokens in zip(texts, encoded, strict=True):
        np.testing.assert_array_equal(tokens, TOKENIZER.encode_batch([text])[0])


def test_no_special_tokens_are_added_and_stored_truncation_and_padding_are_off():
    short, long = TOKENIZER.encode_batch(["the", SENTENCES[0] * 3])
    assert BACKEND.encode("the").ids[0] == BOS
    assert len(short) == 1
    assert len(long) > 4
    assert not {BOS, EOD, PAD} & {*short.tolist(), *long.tolist()}


@pytest.mark.parametrize("text", ["<eod>", "the<eod>cat", " <bos> ", "<pad>"])
def test_text_that_looks_like_a_special_token_stays_text(text):
    assert {BOS, EOD, PAD} & set(BACKEND.encode(text, add_special_tokens=False).ids)
    tokens = TOKENIZER.encode_batch([text])[0]
    assert not {BOS, EOD, PAD} & set(tokens.tolist())
    assert TOKENIZER.decode(tokens) == text


def test_an_added_token_that_is_not_special_is_still_recognised():
    backend = train()
    backend.add_tokens(["cat sat"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode_batch(["cat sat"])[0].tolist() == [tokenizer.token_id("cat sat")]


@pytest.mark.parametrize("normaliser", [{"type": "Prepend", "prepend": "x"}, None])
@pytest.mark.parametrize("add_prefix_space", [True, False])
def test_an_empty_text_has_no_tokens_even_where_texts_begin_with_a_space(normaliser, add_prefix_space):
    start = json.loads(BACKEND.to_str())["pre_tokenizer"] | {"add_prefix_space": add_prefix_space}
    empty, full = Tokenizer(changed(normalizer=normaliser, pre_tokenizer=start)).encode_batch(["", "cat"])
    assert (empty.shape, empty.dtype) == ((0,), np.int32)
    assert len(full) >= 1


def test_no_texts_give_no_documents():
    assert TOKENIZER.encode_batch([]) == []


def test_encoding_takes_any_sequence_of_strings():
    expected = [tokens.tolist() for tokens in TOKENIZER.encode_batch(SENTENCES)]
    for texts in (tuple(SENTENCES), np.array(SENTENCES), np.array(SENTENCES, dtype=object)):
        assert [tokens.tolist() for tokens in TOKENIZER.encode_batch(texts)] == expected


def test_a_library_without_the_fast_call_gives_the_same(monkeypatch):
    class Older:
        def __init__(self, backend):
            self.encode_batch = backend.encode_batch

    tokenizer = copy.copy(TOKENIZER)
    monkeypatch.setattr(tokenizer, "_backend", Older(tokenizer._backend))
    for slow, fast in zip(tokenizer.encode_batch(SENTENCES), TOKENIZER.encode_batch(SENTENCES), strict=True):
        np.testing.assert_array_equal(slow, fast)


@pytest.mark.parametrize("texts", ["the cat", [b"the cat"], ["the", 3], [("the", "cat")], [None]])
def test_encoding_anything_but_strings_is_refused(texts):
    with pytest.raises(TypeError, match="encode_batch takes a sequence of strings, got"):
        TOKENIZER.encode_batch(texts)


def test_half_a_surrogate_pair_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"Text 1 of the chunk holds half a surrogate pair \('\\ud83d' at 4\)"):
        TOKENIZER.encode_batch(["fine", "the \ud83d", "fine"])


def test_decoding_shows_special_tokens_and_takes_lists_and_arrays():
    ids = [BOS, *TOKENIZER.encode_batch(["the cat"])[0].tolist(), EOD]
    assert TOKENIZER.decode(ids) == TOKENIZER.decode(np.array(ids, dtype=np.uint16)) == "<bos>the cat<eod>"
    assert TOKENIZER.decode([]) == ""


# Vocabulary


def test_the_vocabulary_counts_added_tokens():
    backend = train()
    size = Tokenizer(backend).vocab_size
    assert size == backend.get_vocab_size(with_added_tokens=True) == len(backend.get_vocab())
    backend.add_tokens(["mat log"])
    backend.add_special_tokens(["<extra>"])
    assert Tokenizer(backend).vocab_size == size + 2
    assert Tokenizer(backend).token_id("<extra>") == size + 1


def test_every_id_is_less_than_the_size_of_a_vocabulary_with_gaps():
    backend = tokenizers.Tokenizer(models.WordLevel({"cat": 0, "dog": 7}, unk_token="cat"))
    assert Tokenizer(backend).vocab_size == 8
    assert Tokenizer(backend).encode_batch(["dog"])[0].tolist() == [7]


def test_tokens_have_ids_by_name():
    assert [TOKENIZER.token_id(token) for token in ("<bos>", "<eod>", "<pad>")] == [BOS, EOD, PAD]
    assert TOKENIZER.token_id("the") == TOKENIZER.encode_batch(["the"])[0][0]


def test_an_unknown_token_is_refused_with_tokens_like_it_and_the_special_ones():
    with pytest.raises(ValueError, match=r"no token '<eos>'; tokens like it: .*'<eod>'.*; special tokens: '<bos>', "):
        TOKENIZER.token_id("<eos>")
    with pytest.raises(ValueError, match="tokens like it: none"):
        TOKENIZER.token_id("<|endoftext|>")


# Identity


def test_the_fingerprint_is_16_hex_digits_that_only_what_is_encoded_changes():
    assert len(TOKENIZER.fingerprint) == 16
    int(TOKENIZER.fingerprint, 16)
    assert Tokenizer(changed(truncation=None, padding=None)).fingerprint == TOKENIZER.fingerprint
    assert Tokenizer(changed(normalizer={"type": "Lowercase"})).fingerprint != TOKENIZER.fingerprint
    backend = train()
    backend.add_tokens(["mat log"])
    assert Tokenizer(backend).fingerprint != TOKENIZER.fingerprint


def test_equal_tokenizers_are_equal_and_have_one_hash():
    other = Tokenizer(changed(normalizer={"type": "Lowercase"}))
    assert Tokenizer(train()) == TOKENIZER
    assert hash(Tokenizer(train())) == hash(TOKENIZER)
    assert other != TOKENIZER
    assert TOKENIZER.fingerprint != TOKENIZER


def test_the_repr_is_short():
    assert repr(TOKENIZER) == f"Tokenizer(vocab_size={TOKENIZER.vocab_size}, fingerprint={TOKENIZER.fingerprint!r})"


def test_a_pickled_tokenizer_encodes_alike():
    back = pickle.loads(pickle.dumps(TOKENIZER))
    assert back == TOKENIZER
    texts = ["the <eod> cat", "", SENTENCES[0] * 3]
    for mine, its in zip(TOKENIZER.encode_batch(texts), back.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(mine, its)


# The operation


def test_documents_end_and_begin_with_the_ids_given():
    bare = TOKENIZER.encode_batch(["the cat"])[0].tolist()

    def tokens(**ids):
        document = Tokenize(TOKENIZER, **ids).map("the cat")
        assert document.dtype == np.int32
        return document.tolist()

    assert tokens(eod_token_id=None) == bare
    assert tokens(eod_token_id=EOD) == [*bare, EOD]
    assert tokens(eod_token_id=EOD, bos_token_id=BOS) == [BOS, *bare, EOD]
    assert tokens(eod_token_id=None, bos_token_id=BOS) == [BOS, *bare]


@pytest.mark.parametrize(
    ("ids", "place"),
    [({"eod_token_id": 8, "bos_token_id": 1}, "end"), ({"eod_token_id": None, "bos_token_id": 8}, "begin")],
)
def test_a_text_that_holds_a_token_which_ends_or_begins_documents_is_refused(ids, place):
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in "ab<>eod"), ("<eod>", 0.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    operation = Tokenize(Tokenizer(backend), **ids)
    assert operation.map("bob").tolist().count(8) == 1
    with pytest.raises(ValueError, match=rf"makes token 8 \('<eod>'\) of a part .* only at the {place} of a document"):
        operation.map_batch(["b", "b<eod>b"])
    with pytest.raises(ValueError, match="only at the") as caught:
        DocumentReader(source=["b", "b<eod>b"], operations=(operation,), name="x", seed=0).read(0, np.array([0, 1]))
    assert "Document 1 of dataset 'x'" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("empty", ["", b"", {"text": ""}])
def test_an_empty_text_stays_an_empty_document(empty):
    document = Tokenize(TOKENIZER, eod_token_id=EOD, bos_token_id=BOS).map(empty)
    assert (document.shape, document.dtype) == ((0,), np.int32)


def test_a_text_that_has_no_tokens_stays_an_empty_document():
    tokenizer = Tokenizer(changed(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}))
    assert Tokenize(tokenizer, eod_token_id=EOD).map(" \n ").shape == (0,)


def test_strings_bytes_and_mappings_give_the_same():
    text = "the cät"
    operation = Tokenize(TOKENIZER, eod_token_id=EOD)
    renamed = Tokenize(TOKENIZER, eod_token_id=EOD, column="content")
    elements = [text, text.encode(), {"text": text, "id": 3}, {"text": text.encode()}]
    documents = operation.map_batch(elements) + renamed.map_batch([{"content": text, "text": "other"}, text])
    assert len({tuple(document.tolist()) for document in documents}) == 1
    assert len(documents) == 6


@given(texts=st.lists(st.sampled_from(["", "the cat", "<eod>", "log", "ä"]), max_size=5))
def test_a_chunk_gives_what_its_elements_give_one_by_one(texts):
    operation = Tokenize(TOKENIZER, eod_token_id=EOD, bos_token_id=BOS)
    assert [d.tolist() for d in operation.map_batch(texts)] == [operation.map(text).tolist() for text in texts]


def test_a_chunk_is_encoded_in_one_call():
    class Counting(Tokenizer):
        calls = 0

        def encode_batch(self, texts):
            type(self).calls += 1
            return super().encode_batch(texts)

    assert len(Tokenize(Counting(BACKEND), eod_token_id=EOD).map_batch(SENTENCES)) == len(SENTENCES)
    assert Counting.calls == 1


def test_what_is_no_text_is_refused():
    operation = Tokenize(TOKENIZER, eod_token_id=EOD)
    with pytest.raises(TypeError, match="Element 1 of the chunk is ndarray, not text; Tokenize takes"):
        operation.map_batch(["the", np.arange(3)])
    with pytest.raises(TypeError, match="Element 0 of the chunk is NoneType, not text"):
        operation.map({"text": None})


def test_bytes_that_are_not_utf_8_are_refused_with_their_place():
    with pytest.raises(ValueError, match=r"Element 1 of the chunk is not UTF-8: byte 0xff at 4, after b'the '"):
        Tokenize(TOKENIZER, eod_token_id=EOD).map_batch([b"fine", b"the \xff cat"])


def test_a_missing_column_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"has no column 'text', only 'content', 'id'; name the one .* as `column`"):
        Tokenize(TOKENIZER, eod_token_id=EOD).map({"content": "the", "id": 3})


@pytest.mark.parametrize("token_id", [-1, TOKENIZER.vocab_size, 10**6])
def test_ids_outside_the_vocabulary_are_refused(token_id):
    with pytest.raises(ValueError, match=f"eod_token_id={token_id} lies outside .* 0 to {TOKENIZER.vocab_size - 1}"):
        Tokenize(TOKENIZER, eod_token_id=token_id)
    with pytest.raises(ValueError, match=f"bos_token_id={token_id} lies outside"):
        Tokenize(TOKENIZER, eod_token_id=None, bos_token_id=token_id)
    Tokenize(TOKENIZER, eod_token_id=TOKENIZER.vocab_size - 1)


def test_a_token_in_place_of_its_id_is_refused():
    with pytest.raises(TypeError, match=r"eod_token_id must be an id, got '<eod>'; use tokenizer\.token_id\('<eod>'\)"):
        Tokenize(TOKENIZER, eod_token_id="<eod>")


def test_the_fingerprint_of_the_operation_changes_with_each_field():
    other = Tokenizer(changed(normalizer={"type": "Lowercase"}))
    operations = [
        Tokenize(TOKENIZER, eod_token_id=EOD),
        Tokenize(other, eod_token_id=EOD),
        Tokenize(TOKENIZER, eod_token_id=None),
        Tokenize(TOKENIZER, eod_token_id=EOD, bos_token_id=EOD),
        Tokenize(TOKENIZER, eod_token_id=EOD, column="content"),
    ]
    assert len({operation.fingerprint for operation in operations}) == len(operations)
    same = Tokenize(Tokenizer(train()), eod_token_id=np.int64(EOD), bos_token_id=None, column="text")
    assert same.fingerprint == operations[0].fingerprint


def test_the_operation_is_a_value_and_can_be_pickled():
    operation = Tokenize(TOKENIZER, eod_token_id=EOD, column="content")
    back = pickle.loads(pickle.dumps(operation))
    assert back == operation
    assert hash(back) == hash(operation)
    assert back.map("the cat").tolist() == operation.map("the cat").tolist()
    with pytest.raises(AttributeError):
        operation.column = "text"


def test_the_reader_of_documents_applies_it():
    operations = check_operations([Tokenize(TOKENIZER, eod_token_id=EOD)])
    reader = DocumentReader(source=[*SENTENCES, ""], operations=operations, name="a", seed=0)
    documents = reader.read(0, np.array([3, 0]))
    assert documents.lengths.tolist() == [0, len(documents.tokens)]
    assert TOKENIZER.decode(documents.tokens) == SENTENCES[0] + "<eod>"
