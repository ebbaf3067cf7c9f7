"""Assembly: the kernel against its plain twin, and the memory that batches live in."""

import gc
from concurrent.futures import Future

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loading import Job, as_arrays, draw, make_documents
from xlstm_jax.dataset.assembly import RowArrays, RowFormat, Shift, assemble, assemble_plain
from xlstm_jax.dataset.buffers import HostBuffers
from xlstm_jax.dataset.lanes import RowRun
from xlstm_jax.dataset.order import Order
from xlstm_jax.dataset.packing import Packing, pack_window
from xlstm_jax.dataset.pieces import TOKEN_DTYPES
from xlstm_jax.dataset.places import PlacedRun
from xlstm_jax.dataset.sources import MemorySource
from xlstm_jax.dataset.sources.base import TokenSource, gather_block
from xlstm_jax.dataset.transforms import Documents
from xlstm_jax.dataset.windows import LaneSlice, PlannedWindows, StreamedWindows

LENGTH = 12
EOD = 3


class Gathered(TokenSource):
    """Documents that are read, not only looked for, in a dtype of tokens."""

    def __init__(self, documents, dtype):
        self._documents = [np.asarray(document).astype(dtype) for document in documents]
        self._lengths = np.array([len(document) for document in documents])

    @property
    def lengths(self):
        return self._lengths

    def fetch(self, documents):
        return [gather_block(documents, np.arange(len(documents)), self.lengths_of, self._read_flat)]

    def _read_flat(self, documents):
        return np.concatenate([self._documents[0][:0], *(self._documents[d] for d in documents.tolist())])


def windows_of(source, kind, packing, own_targets):
    order = Order(documents=len(source), seed=0, name="d", shuffle=packing.shuffle)
    lane = LaneSlice(order=order, lane=0, num_shards=1, endless=True)
    if kind == "planned":
        return PlannedWindows(lane, packing, source.lengths_of)
    return StreamedWindows(lane, packing, Read(source, own_targets), chunk=4)


class Read:
    """Reads documents at once; with targets of their own, if so asked."""

    ahead = 0

    def __init__(self, source, own_targets):
        self._source = source
        self._own_targets = own_targets

    def start(self, _epoch, index):
        documents = [np.asarray(self._source[int(i)], np.int32) for i in index]
        elements = [{"inputs": d, "targets": d + 100} if self._own_targets else d for d in documents]
        done = Future()
        done.set_result(Documents.collect(index, elements, "d"))
        return done


@st.composite
def cases(draw):
    documents = draw(st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=12).filter(any))
    source = draw(st.sampled_from([MemorySource, *(lambda d, t=dtype: Gathered(d, t) for dtype in TOKEN_DTYPES)]))
    rule = draw(st.sampled_from(["best_fit", "first_fit", "concat_split", "none"]))
    long_documents = draw(st.sampled_from(["split", "truncate"]))
    packing = Packing(rule=rule, row_length=LENGTH, rows=3, long_documents=long_documents, shuffle=draw(st.booleans()))
    how = RowFormat(
        length=LENGTH,
        shift=draw(st.sampled_from(list(Shift))),
        eod_token_id=EOD,
        infer_segments=rule == "none",
    )
    source = source([np.array(document, np.uint8) for document in documents])
    windows = windows_of(source, draw(st.sampled_from(["planned", "streamed"])), packing, draw(st.booleans()))
    runs, at, first, offset = [], 0, 0, 0
    while (window := windows.read(0, first, offset)) is not None:
        start = draw(st.integers(0, window.rows))
        stop = draw(st.integers(start, window.rows))
        at += draw(st.integers(0, 2))
        if start < stop:
            runs.append(PlacedRun(at, RowRun(0, window, start, stop)))
            at += stop - start
        first, offset = window.next_first, window.next_offset
    return runs, at + draw(st.integers(0, 2)), [source], [how]


@settings(max_examples=300)
@given(case=cases())
def test_the_kernel_does_what_the_plain_definition_says(case):
    fast, plain = assemble(*case), assemble_plain(*case)
    for field in RowArrays._fields:
        np.testing.assert_array_equal(getattr(fast, field), getattr(plain, field), err_msg=field)
        assert getattr(fast, field).dtype == np.int32


def test_memory_is_used_again_when_nothing_refers_to_it_and_not_before():
    buffers = HostBuffers()
    first = buffers.empty([(3, 5), (4,)])
    address = first[0].ctypes.data
    part = first[1][1:]
    del first
    assert buffers.empty([(3, 5), (4,)])[0].ctypes.data != address, "a slice of it is still in use"
    del part
    gc.collect()
    held = [buffers.empty([(3, 5), (4,)]) for _ in range(3)]
    assert address in {arrays[0].ctypes.data for arrays in held}


def test_arrays_begin_where_jax_takes_them_as_they_are_and_do_not_overlap():
    arrays = HostBuffers().empty([(3, 5), (7,), (2, 2)])
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array.shape for array in arrays] == [(3, 5), (7,), (2, 2)]
    assert [set(array.ravel().tolist()) for array in arrays] == [{0}, {1}, {2}]


def test_batches_that_are_kept_stay_as_they_were():
    job = Job({"d": make_documents(0, 400, 30)}, prefetch=3, length=64, batch=8)
    with job.loader() as loader:
        kept = [batch for _, batch in zip(range(25), loader, strict=False)]
        jax.block_until_ready(kept)
    fresh = draw(Job(**{**vars(job), "prefetch": 0}).loader(), len(kept))
    for batch, again in zip(kept, fresh, strict=True):
        for field, array in as_arrays(batch).items():
            np.testing.assert_array_equal(array, again[field])


@pytest.mark.parametrize("length", [1, 3])
def test_streamed_windows_of_many_short_documents_are_not_packed_again_for_each_few_of_them(length, monkeypatch):
    packed = []

    def pack(lengths, *args, **options):
        packed.append(len(lengths))
        return pack_window(lengths, *args, **options)

    monkeypatch.setattr("xlstm_jax.dataset.windows.pack_window", pack)
    source = MemorySource([np.zeros(length, np.int32)] * 20_000)
    packing = Packing(rule="best_fit", row_length=64, rows=64, long_documents="split", shuffle=False)
    windows = windows_of(source, "streamed", packing, own_targets=False)
    used, first = [], 0
    while (window := windows.read(0, first, 0)) is not None:
        used.append(window.packed.documents_used)
        first = window.next_first
    assert sum(used) == 20_000
    assert len(used) >= 4
    assert sum(packed) < 2 * sum(used)
