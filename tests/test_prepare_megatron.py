"""Stores of Megatron's own code are read here, and written as it does; `make test-interop` runs that code itself."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from megatron_documents import DOCUMENTS, STORES, in_sequences
from xlstm_jax.dataset.sources import TokenStore, open_source, write_token_store
from xlstm_jax.prepare import PrepareConfig, prepare

DATA = Path(__file__).parent / "data" / "megatron"


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("opener", [TokenStore, open_source])
def test_a_store_that_megatron_wrote_gives_its_documents(name, opener):
    store = opener(DATA / name)
    assert store.lengths.tolist() == [len(document) for document in DOCUMENTS]
    assert [store[number].tolist() for number in range(len(store))] == DOCUMENTS


@pytest.mark.parametrize("name", [name for name, (dtype, count) in STORES.items() if count == 1 and name != "int64"])
def test_a_store_written_here_is_what_megatron_writes_to_the_byte(name, tmp_path):
    write_token_store(tmp_path / name, DOCUMENTS, dtype=STORES[name][0])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"{name}{suffix}").read_bytes() == (DATA / f"{name}{suffix}").read_bytes()


def test_stores_that_megatron_wrote_are_merged_whatever_their_width_and_sequences(tmp_path):
    prepare(PrepareConfig(inputs=[DATA / name for name in STORES], output=tmp_path / "merged", workers=0))
    merged = TokenStore(tmp_path / "merged")
    assert merged[1].dtype == np.int32
    assert [merged[number].tolist() for number in range(len(merged))] == DOCUMENTS * len(STORES)


def test_the_sequences_of_a_document_are_the_document():
    assert all([*itertools.chain(*in_sequences(document, 3))] == document for document in DOCUMENTS)
