"""Token stores: the layout byte by byte, what other writers of the format may do, and what is refused."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.dataset import TokenStore, write_token_store
from xlstm_jax.dataset.sources import TokenStoreWriter, token_store

MAGIC = b"MMIDIDX\x00\x00"
CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def index_bytes(dtype, sizes, documents=None, pointers=None, **header):
    """An index as the format describes it, field after field, written without the library."""
    itemsize = np.dtype(dtype).itemsize
    begins = np.cumsum([0, *sizes[:-1]]) * itemsize if pointers is None else pointers
    boundaries = range(len(sizes) + 1) if documents is None else documents
    return b"".join(
        [
            header.get("magic", MAGIC),
            struct.pack("<Q", header.get("version", 1)),
            struct.pack("<B", header.get("code", CODES.get(dtype))),
            struct.pack("<Q", header.get("sequences", len(sizes))),
            struct.pack("<Q", header.get("boundaries", len(boundaries))),
            np.array(sizes, "<i4").tobytes(),
            np.array(begins[: len(sizes)], "<i8").tobytes(),
            np.array(boundaries, "<i8").tobytes(),
        ]
    )


def write_raw(prefix, dtype, sequences, **index):
    (prefix.parent / f"{prefix.name}.bin").write_bytes(b"".join(np.array(s, dtype).tobytes() for s in sequences))
    (prefix.parent / f"{prefix.name}.idx").write_bytes(index_bytes(dtype, [len(s) for s in sequences], **index))
    return prefix


def read(store):
    return [document.tolist() for document in store.__getitems__(range(len(store)))]


# What is written


def test_the_files_are_those_of_the_format_byte_by_byte(tmp_path):
    documents = [[1, 2, 3], [], [65535], [7, 8]]
    write_token_store(tmp_path / "a", documents, dtype=np.uint16)
    assert (tmp_path / "a.bin").read_bytes() == np.array([1, 2, 3, 65535, 7, 8], "<u2").tobytes()
    assert (tmp_path / "a.idx").read_bytes() == bytes.fromhex(
        "4d4d494449445800 00"  # magic
        "0100000000000000"  # version
        "08"  # uint16
        "0400000000000000"  # sequences
        "0500000000000000"  # boundaries: documents + 1
        "03000000 00000000 01000000 02000000"  # token counts
        "0000000000000000 0600000000000000 0600000000000000 0800000000000000"  # places in bytes
        "0000000000000000 0100000000000000 0200000000000000 0300000000000000 0400000000000000"  # boundaries
    )


@given(
    documents=st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=6), max_size=12),
    dtype=st.sampled_from(sorted(CODES)),
)
def test_what_is_written_is_read_and_has_the_layout(documents, dtype, tmp_path_factory):
    limits = np.iinfo(dtype)
    documents = [[min(token, limits.max) for token in document] for document in documents]
    prefix = tmp_path_factory.mktemp("store") / "a"
    if dtype == "int64":
        with pytest.raises(ValueError, match="A token store holds uint16 or int32"):
            write_token_store(prefix, documents, dtype=dtype)
        return
    assert read(write_token_store(prefix, documents, dtype=dtype)) == documents
    assert prefix.with_suffix(".idx").read_bytes() == index_bytes(dtype, [len(document) for document in documents])


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({}, "int32"), ({"vocab_size": 65536}, "uint16"), ({"vocab_size": 65537}, "int32"), ({"dtype": "uint8"}, "uint8")],
)
def test_the_dtype_is_the_smallest_of_the_usual_two_that_holds_the_vocabulary(settings, dtype, tmp_path):
    store = write_token_store(tmp_path / "a", [[1, 2]], **settings)
    assert store[0].dtype == dtype


def test_many_documents_at_once_are_the_same_as_one_by_one(tmp_path):
    with TokenStoreWriter(tmp_path / "a") as writer:
        writer.add_many([1, 2, 3], [3, 0])
        writer.add([4])
        writer.add_many([], [])
        assert writer.documents == 3
    assert read(TokenStore(tmp_path / "a")) == [[1, 2, 3], [], [4]]


@pytest.mark.parametrize(
    ("documents", "settings", "error", "problem"),
    [
        ([[1], [65536]], {"dtype": "uint16"}, ValueError, "Document 1 holds the token id 65536; this store of uint16"),
        (
            [[1], [-1]],
            {"vocab_size": 9},
            ValueError,
            "Document 1 holds the token id -1; .* takes 0 to 8",
        ),
        ([[1], [9]], {"vocab_size": 9}, ValueError, "Document 1 holds the token id 9"),
        ([[1], [2**31]], {}, ValueError, "Document 1 holds the token id 2147483648; this store of int32"),
        ([[1], [1.0]], {}, TypeError, "Token ids must be integers, got float64 at document 1"),
        ([[1], [[1]]], {}, ValueError, "Tokens must be 1-D"),
        ([[1]], {"dtype": "float32"}, ValueError, "A token store holds uint16 or int32"),
        (
            [[1]],
            {"dtype": "uint8", "vocab_size": 300},
            ValueError,
            "holds ids up to 255, too few for vocab_size=300",
        ),
        ([[1]], {"vocab_size": 0}, ValueError, "vocab_size must be from 1 to"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_and_nothing_is_left(documents, settings, error, problem, tmp_path):
    with pytest.raises(error, match=problem):
        write_token_store(tmp_path / "a", documents, **settings)
    assert list(tmp_path.iterdir()) == []


def test_lengths_that_do_not_add_up_are_refused(tmp_path):
    with TokenStoreWriter(tmp_path / "a") as writer:
        with pytest.raises(ValueError, match="The lengths add up to 2, and there are 3 tokens"):
            writer.add_many([1, 2, 3], [2])
        with pytest.raises(TypeError, match="lengths must be integers"):
            writer.add_many([1, 2, 3], [3.0])
    assert len(TokenStore(tmp_path / "a")) == 0


def test_a_store_is_replaced_whole_or_not_at_all(tmp_path):
    write_token_store(tmp_path / "a", [[1]])
    with pytest.raises(TypeError, match="at document 1"):
        write_token_store(tmp_path / "a", [[2], [3.5]])
    assert read(TokenStore(tmp_path / "a")) == [[1]]
    write_token_store(tmp_path / "a", [[3], [4]])
    assert read(TokenStore(tmp_path / "a")) == [[3], [4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


# What other writers of the format may do


@pytest.mark.parametrize("dtype", CODES)
def test_every_integer_dtype_of_the_format_is_read_in_at_most_32_bits(dtype, tmp_path):
    store = TokenStore(write_raw(tmp_path / "a", dtype, [[1, 2, 3], [], [100]]))
    assert read(store) == [[1, 2, 3], [], [100]]
    assert store[0].dtype.itemsize <= 4


def test_wide_ids_that_do_not_fit_int32_are_refused_with_the_document(tmp_path):
    store = TokenStore(write_raw(tmp_path / "a", "int64", [[1], [2**31 - 1], [3, 2**31]]))
    assert store[1].tolist() == [2**31 - 1]
    with pytest.raises(ValueError, match=r"Document 2 of .*a\.idx holds the token id 2147483648; ids must fit int32"):
        store.__getitems__([0, 2])


def test_a_document_may_be_several_sequences_one_or_none(tmp_path):
    sequences = [[1, 2], [3], [], [4, 5, 6]]
    store = TokenStore(write_raw(tmp_path / "a", "uint16", sequences, documents=[0, 2, 2, 3, 4]))
    assert read(store) == [[1, 2, 3], [], [], [4, 5, 6]]
    assert store.lengths.tolist() == [3, 0, 0, 3]
    assert store.lengths_of(np.array([3, 0])).tolist() == [3, 3]


def test_sequences_may_lie_in_any_order_where_each_is_a_document(tmp_path):
    prefix = write_raw(tmp_path / "a", "int32", [[1, 2], [3]], pointers=[4, 0])
    assert read(TokenStore(prefix)) == [[2, 3], [1]]


def test_a_store_may_be_empty(tmp_path):
    assert len(TokenStore(write_raw(tmp_path / "a", "uint16", []))) == 0
    assert read(TokenStore(write_raw(tmp_path / "b", "uint16", [[], []]))) == [[], []]


def test_shards_of_several_dtypes_are_one_source(tmp_path):
    write_raw(tmp_path / "a", "uint16", [[1], [65535]])
    write_raw(tmp_path / "b", "int32", [[70000]])
    write_raw(tmp_path / "c", "int64", [[3, 4]])
    store = TokenStore(tmp_path)
    assert read(store) == [[1], [65535], [70000], [3, 4]]
    assert store.describe(2) == f"document 0 of {tmp_path / 'b.idx'}"


# What is refused


def spoil(path, edit):
    path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda _: b"", r"a\.idx is no index of a token store: it begins with b''"),
        (lambda c: b"TNTIDX\x00\x00" + c[8:], "is no index of a token store: it begins with b'TNTIDX"),
        (lambda c: c[:20], "is truncated: it has 20 bytes, and its header alone takes 34"),
        (lambda c: c[:-1], "is truncated: 3 sequences and 4 document boundaries take 102 bytes, and it has 101"),
        (lambda c: c + b"\0\0\0", r"is longer than it should be \(indexes with modes"),
        (lambda c: c[:9] + b"\x02" + c[10:], "is of version 2; only version 1 is known"),
        (lambda c: c[:17] + b"\x07" + c[18:], "says its data are float32 values; token ids must be integers"),
        (lambda c: c[:17] + b"\x63" + c[18:], "says its data are the unknown dtype code 99"),
        (
            lambda c: c[:17] + b"\x04" + c[18:],
            r"a\.bin has 12 bytes, .* counts 6 int32 tokens, which take 24",
        ),
        (lambda c: c[:34] + struct.pack("<i", -1) + c[38:], "is damaged: sequence 0 has -1 tokens"),
        (
            lambda c: c[:34] + struct.pack("<i", 9) + c[38:],
            r"a\.bin has 12 bytes, .* counts 12 uint16 tokens",
        ),
        (lambda c: c[:-8] + struct.pack("<q", 7), "its document boundaries must go from 0 to 3"),
        (lambda c: c[:-24] + struct.pack("<2q", 2, 1) + c[-8:], "its document boundaries do not ascend"),
    ],
)
def test_an_index_that_is_damaged_or_of_another_store_is_refused(edit, problem, tmp_path):
    write_raw(tmp_path / "a", "uint16", [[1, 2, 3], [4], [5, 6]])
    assert len(TokenStore(tmp_path / "a")) == 3
    spoil(tmp_path / "a.idx", edit)
    with pytest.raises(ValueError, match=problem):
        TokenStore(tmp_path / "a")


@pytest.mark.parametrize("size", [0, 1, 11, 13, 14])
def test_data_of_another_size_than_the_index_counts_is_refused(size, tmp_path):
    write_raw(tmp_path / "a", "uint16", [[1, 2, 3], [4], [5, 6]])
    os.truncate(tmp_path / "a.bin", size)
    with pytest.raises(ValueError, match=rf"a\.bin has {size} bytes, .* 6 uint16 tokens, which take 12"):
        TokenStore(tmp_path / "a")


@pytest.mark.parametrize("pointer", [-2, 1, 10, 2**40])
def test_a_document_that_would_begin_outside_the_data_is_refused_when_it_is_read(pointer, tmp_path):
    store = TokenStore(write_raw(tmp_path / "a", "uint16", [[1, 2, 3], [4], [5, 6]], pointers=[0, 6, pointer]))
    assert store[1].tolist() == [4]
    with pytest.raises(ValueError, match=f"document 2 of 2 tokens begins at byte {pointer} of a .bin of 12 bytes"):
        store[2]
    for times in (1, 999):
        with pytest.raises(ValueError, match="is damaged: document 2"):
            store.fetch(np.array([0, 2] * times))


def test_a_place_near_the_largest_number_is_refused_though_its_end_has_none(tmp_path):
    store = TokenStore(write_raw(tmp_path / "a", "uint8", [[1], [2, 3, 4]], pointers=[0, 2**63 - 2]))
    for times in (1, 999):
        with pytest.raises(ValueError, match=f"document 1 of 3 tokens begins at byte {2**63 - 2} of a .bin of 4"):
            store.fetch(np.array([0, 1] * times))


@given(data=st.data(), dtype=st.sampled_from(["uint8", "uint16", "int32"]))
def test_places_are_those_of_the_index_or_the_first_wrong_one_is_refused(data, dtype, tmp_path_factory):
    itemsize = np.dtype(dtype).itemsize
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    places = st.lists(st.integers(0, sum(sizes)).map(lambda token: token * itemsize), min_size=len(sizes))
    pointers = (data.draw(places) + data.draw(st.lists(st.integers(-9, 40), max_size=2)))[-len(sizes) :]
    prefix = tmp_path_factory.mktemp("store") / "a"
    store = TokenStore(write_raw(prefix, dtype, [[1] * size for size in sizes], pointers=pointers))
    asked = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=9))
    asked *= data.draw(st.sampled_from([1, 999]))  # Of many, not all are looked at.
    wrong = [
        document
        for document in asked
        if pointers[document] % itemsize or not 0 <= pointers[document] <= (sum(sizes) - sizes[document]) * itemsize
    ]
    if not wrong:
        assert store.fetch(np.array(asked))[0].begin.tolist() == [pointers[document] // itemsize for document in asked]
        return
    with pytest.raises(ValueError, match=f"document {wrong[0]} of {sizes[wrong[0]]} tokens begins at byte "):
        store.fetch(np.array(asked))


@given(data=st.data())
def test_documents_of_several_shards_are_found_together_as_one_by_one(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        sequences = data.draw(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5))
        places = st.integers(0, sum(map(len, sequences)))
        dtype = data.draw(st.sampled_from(["uint8", "uint16", "int32"]))
        damage = {}
        if data.draw(st.integers(0, 4)) == 0:
            damage = {"pointers": data.draw(st.lists(places, min_size=len(sequences), max_size=len(sequences)))}
        elif data.draw(st.booleans()):
            damage = {"documents": [0, *sorted(data.draw(st.sets(st.integers(1, len(sequences))))), len(sequences)]}
        write_raw(folder / name, dtype, sequences, **damage)
    asked = np.array(data.draw(st.lists(st.integers(0, 2), max_size=9)))

    def found():
        try:
            store = TokenStore(folder)
            return [
                (block.tokens.dtype, block.which.tolist(), [block.tokens[b : b + 1].tolist() for b in block.begin])
                for block in store.fetch(asked[asked < len(store)])
            ]
        except ValueError as error:
            return str(error)

    with pytest.MonkeyPatch.context() as patch:
        together = found()
        patch.setattr(token_store, "_MANY", 1)
        assert found() == together


def test_a_document_of_several_sequences_that_lie_apart_is_refused(tmp_path):
    write_raw(tmp_path / "a", "uint16", [[1, 2, 3], [4], [5, 6]], documents=[0, 2, 3], pointers=[0, 8, 6])
    with pytest.raises(ValueError, match="documents of several sequences that do not lie one after the other"):
        TokenStore(tmp_path / "a")
