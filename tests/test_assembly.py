"""Assembly: the kernel against its plain twin, and the memory that batches live in."""

import ctypes
import gc
import mmap
from concurrent.futures import Future

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loading import Job, as_arrays, draw, make_documents, one_device_mesh
from xlstm_jax.dataset.array_filling import can_fill_arrays, fill_arrays
from xlstm_jax.dataset.assembly import RowFormat, Shift, assemble, assemble_plain, locate
from xlstm_jax.dataset.buffers import HostBuffers
from xlstm_jax.dataset.filling import RowArrays
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.lanes import RowRun
from xlstm_jax.dataset.order import Order
from xlstm_jax.dataset.packing import Packing, pack_window
from xlstm_jax.dataset.pieces import TOKEN_DTYPES
from xlstm_jax.dataset.slices import LaneSlice
from xlstm_jax.dataset.sources import MemorySource
from xlstm_jax.dataset.sources.base import TokenBlock, TokenSource, gather_block
from xlstm_jax.dataset.stretches import PlacedRun, place_rows
from xlstm_jax.dataset.transforms import Documents
from xlstm_jax.dataset.windows import PlannedWindows, StreamedWindows

LENGTHS = 12, 50
"""Shorter than what is written at a time, and longer."""
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


class InPlace(TokenSource):
    """Documents that lie end to end in memory of the caller's, or where the caller says they do."""

    in_place = True

    def __init__(self, tokens, lengths, begins=None):
        self._tokens = tokens
        self._lengths = lengths
        self._begins = np.cumsum(lengths) - lengths if begins is None else begins

    @property
    def lengths(self):
        return self._lengths

    def fetch(self, documents):
        return [TokenBlock(self._tokens, np.arange(len(documents)), self._begins[documents])]


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
    row_length = draw(st.sampled_from(LENGTHS))
    document = st.lists(st.integers(0, 5), max_size=row_length * 5 // 2)
    documents = draw(st.lists(document, min_size=1, max_size=12).filter(any))
    source = draw(st.sampled_from([MemorySource, *(lambda d, t=dtype: Gathered(d, t) for dtype in TOKEN_DTYPES)]))
    rule = draw(st.sampled_from(["best_fit", "first_fit", "concat_split", "none"]))
    long_documents = draw(st.sampled_from(["split", "truncate"]))
    packing = Packing(
        rule=rule, row_length=row_length, rows=3, long_documents=long_documents, shuffle=draw(st.booleans())
    )
    how = RowFormat(
        length=row_length,
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
            runs.append(PlacedRun(np.arange(at, at + stop - start), RowRun(0, window, start, stop)))
            at += stop - start
        first, offset = window.next_first, window.next_offset
    return runs, at + draw(st.integers(0, 2)), [source], [how]


def assembled(runs, rows, sources, formats):
    """What is built of the same arguments as those of the plain definition."""
    located = locate([run for _, run in runs], sources, formats)
    which, row = place_rows(runs, rows)
    [out] = assemble(located, which[None], row[None], formats[0].length, HostBuffers())
    return out


@settings(max_examples=50)
@given(case=cases(), batches=st.integers(1, 3), data=st.data())
def test_arrays_that_are_filled_at_once_are_what_is_assembled(case, batches, data):
    runs, rows, sources, formats = case
    assume(rows)
    assert can_fill_arrays()
    located, length = locate([run for _, run in runs], sources, formats), formats[0].length
    orders = np.array([data.draw(st.permutations(range(rows))) for _ in range(batches)])
    which, row = (array[orders] for array in place_rows(runs, rows))
    arrays = fill_arrays(located, which, row, length, BatchSharding.of(one_device_mesh(), None, 0, 1).shardings)
    for filled, expected in zip(arrays, assemble(located, which, row, length, HostBuffers()), strict=True):
        for field, array in filled.items():
            assert isinstance(array, jax.Array)
            np.testing.assert_array_equal(array, getattr(expected, field), err_msg=field, strict=True)


@settings(max_examples=300)
@given(case=cases())
def test_the_kernel_does_what_the_plain_definition_says(case):
    fast, plain = assembled(*case), assemble_plain(*case)
    for field in RowArrays._fields:
        np.testing.assert_array_equal(getattr(fast, field), getattr(plain, field), err_msg=field)
        assert getattr(fast, field).dtype == np.int32


@pytest.mark.parametrize("shift", Shift)
@pytest.mark.parametrize("dtype", TOKEN_DTYPES, ids=str)
def test_nothing_is_read_outside_the_pages_that_hold_the_tokens(dtype, shift):
    inner = 3 * mmap.PAGESIZE
    memory = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
    begin = np.frombuffer(memory, np.uint8).ctypes.data
    for page in (begin, begin + mmap.PAGESIZE + inner):
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0  # No access.
    tokens = np.frombuffer(memory, dtype, inner // dtype.itemsize, mmap.PAGESIZE)
    tokens[:] = np.arange(len(tokens)) % 100
    lengths = np.array([1, 17, 33, *[19] * ((len(tokens) - 51) // 19), (len(tokens) - 51) % 19])
    source = InPlace(tokens, lengths)
    packing = Packing(rule="best_fit", row_length=50, rows=10_000, long_documents="split", shuffle=True)
    window = windows_of(source, "planned", packing, own_targets=False).read(0, 0, 0)
    how = RowFormat(length=50, shift=shift, eod_token_id=EOD, infer_segments=False)
    case = [PlacedRun(np.arange(window.rows), RowRun(0, window, 0, window.rows))], window.rows, [source], [how]
    for fast, plain in zip(assembled(*case), assemble_plain(*case), strict=True):
        np.testing.assert_array_equal(fast, plain)


@pytest.mark.parametrize("begin", [-1, 9])
def test_a_source_that_says_that_documents_lie_where_they_do_not_is_refused(begin):
    source = InPlace(np.arange(10, dtype=np.int32), np.array([2, 8]), begins=np.array([begin, 2]))
    packing = Packing(rule="best_fit", row_length=12, rows=1, long_documents="split", shuffle=False)
    window = windows_of(source, "planned", packing, own_targets=False).read(0, 0, 0)
    how = RowFormat(length=12, shift=Shift.TARGETS, eod_token_id=EOD, infer_segments=False)
    with pytest.raises(ValueError, match="document 0 of 2 tokens lies in an array of 10 tokens, and it does not"):
        locate([RowRun(0, window, 0, 1)], [source], [how])


def test_memory_is_used_again_when_nothing_refers_to_it_and_not_before():
    buffers = HostBuffers()
    first, addresses = buffers.empty(((3, 5), (4,)))
    address = first[0].ctypes.data
    assert addresses == [array.ctypes.data for array in first]
    part = first[1][1:]
    del first
    assert address not in buffers.empty(((3, 5), (4,)))[1], "a slice of it is still in use"
    del part
    gc.collect()
    held = [buffers.empty(((3, 5), (4,))) for _ in range(3)]
    assert address in {begin for _, (begin, _) in held}


def test_arrays_begin_where_jax_takes_them_as_they_are_and_do_not_overlap():
    arrays, _ = HostBuffers().empty(((3, 5), (7,), (2, 2)))
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
