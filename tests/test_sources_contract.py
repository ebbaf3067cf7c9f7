"""What holds for every source, whatever its documents lie in."""

import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loading import Job, assert_same, global_batches
from stored import PLANNED, STREAMED, TEXTS, TOKENS, write_array_record
from xlstm_jax.dataset import ArrayRecordSource, MemorySource
from xlstm_jax.dataset.sources import fingerprint_of, is_planned
from xlstm_jax.dataset.sources.open_files import OpenFiles

KINDS = {**PLANNED, **STREAMED}
COUNT = len(TOKENS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tmp_path_factory.mktemp("source") for kind in KINDS}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLSTM_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sources(folders, cache):
    return {kind: write(folders[kind]) for kind, write in KINDS.items()}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def source(sources, kind):
    return sources[kind]


@pytest.fixture
def expected(kind):
    return TOKENS if kind in PLANNED else TEXTS


@pytest.fixture(params=PLANNED)
def planned(sources, request):
    return sources[request.param]


def assert_documents(found, expected):
    assert len(found) == len(expected)
    for document, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, str):
            assert document == wanted
        else:
            np.testing.assert_array_equal(document, wanted)


def test_a_source_has_its_documents_in_order(source, expected):
    assert len(source) == COUNT
    assert_documents([source[i] for i in range(0, COUNT, 9)], expected[::9])
    assert_documents(source.__getitems__(range(COUNT)), expected)


@given(indices=st.lists(st.integers(0, COUNT - 1), max_size=30))
def test_documents_are_read_in_any_order_and_may_repeat(indices, sources):
    for kind, source in sources.items():
        expected = TOKENS if kind in PLANNED else TEXTS
        assert_documents(source.__getitems__(indices), [expected[i] for i in indices])
        assert_documents(source.__getitems__(np.array(indices, np.int64)), [expected[i] for i in indices])


@pytest.mark.parametrize("index", [-1, COUNT, 10**12])
def test_places_outside_the_source_are_refused_negative_ones_too(index, source):
    with pytest.raises(IndexError, match=f"no document {index}; the source holds 0 to {COUNT - 1}"):
        source[index]
    with pytest.raises(IndexError, match=f"no document {index}"):
        source.__getitems__([0, index])
    if is_planned(source):
        with pytest.raises(IndexError, match=f"no document {index}"):
            source.fetch(np.array([0, index]))


@pytest.mark.parametrize("index", [1.0, "1", True])
def test_places_that_are_no_integers_are_refused(index, source):
    with pytest.raises(TypeError, match="asked for by integers"):
        source[index]


def test_only_sources_of_tokens_are_planned(source, kind):
    assert is_planned(source) == (kind in PLANNED)


def test_lengths_are_those_of_the_documents(planned):
    wanted = [len(document) for document in TOKENS]
    assert planned.lengths.tolist() == wanted
    assert planned.lengths_of(np.array([5, 0, 5])).tolist() == [wanted[5], wanted[0], wanted[5]]
    assert planned.lengths_of(np.array([5])).dtype == np.int64
    assert planned.length_summary == (COUNT, sum(wanted), wanted.count(0), max(wanted), 0)


@given(indices=st.lists(st.integers(0, COUNT - 1), max_size=30))
def test_fetch_tells_where_the_same_tokens_lie(indices, sources):
    for kind in PLANNED:
        source = sources[kind]
        found = [None] * len(indices)
        for tokens, which, begins in source.fetch(np.array(indices, np.int64)):
            assert tokens.dtype.itemsize <= 4
            for place, begin in zip(which, begins, strict=True):
                assert found[place] is None
                found[place] = tokens[begin : begin + len(TOKENS[indices[place]])]
        assert_documents(found, [TOKENS[i] for i in indices])


def test_nothing_can_be_written_into_documents(planned):
    for document in planned.__getitems__([3, 4]):
        with pytest.raises(ValueError, match="read-only"):
            document[:1] = 7
    for block in planned.fetch(np.array([3, 4])):
        with pytest.raises(ValueError, match="read-only"):
            block.tokens[:1] = 7
    with pytest.raises(ValueError, match="read-only"):
        planned.lengths[:1] = 7


def test_all_kinds_of_tokens_have_one_fingerprint_and_all_kinds_of_text_another(sources):
    of_tokens, of_text = ({sources[kind].fingerprint for kind in kinds} for kinds in (PLANNED, STREAMED))
    assert len(of_tokens) == len(of_text) == 1
    assert of_tokens != of_text
    assert of_text == {fingerprint_of(TEXTS)}


def test_a_changed_document_changes_the_fingerprint():
    changed = [*TOKENS]
    changed[60] = changed[60] + 1
    assert MemorySource(changed).fingerprint != MemorySource(TOKENS).fingerprint
    assert MemorySource([*changed[:59], *changed[:58:-1]]).fingerprint != MemorySource(TOKENS).fingerprint
    assert fingerprint_of([*TEXTS[1:], TEXTS[0]]) != fingerprint_of(TEXTS)


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(sources, kind, tmp_path):
    again = KINDS[kind](tmp_path)
    assert again.fingerprint == sources[kind].fingerprint


def test_a_pickled_source_is_small_and_reads_the_same(source, kind, expected):
    pickled = pickle.dumps(source)
    again = pickle.loads(pickled)
    assert_documents(again.__getitems__(range(COUNT)), expected)
    assert again.fingerprint == source.fingerprint
    if kind != "memory":
        assert len(pickled) < 1000, "a pickled source holds its paths and no data"


def test_a_source_that_is_being_read_can_be_pickled_to_another_process(sources, tmp_path):
    read = {kind: source for kind, source in sources.items() if "hugging" not in kind}
    (tmp_path / "sources").write_bytes(pickle.dumps(read))
    code = (
        "import pickle, sys; sources = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print({kind: source.fingerprint for kind, source in sources.items()})\n"
        "assert 'jax' not in sys.modules, 'a worker that only reads does not need jax'\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "sources"], check=True, capture_output=True, text=True
    ).stdout
    assert found.strip() == str({kind: source.fingerprint for kind, source in read.items()})


def test_several_threads_read_at_once(source, expected):
    def read(seed):
        indices = np.random.default_rng(seed).integers(0, COUNT, 40)
        assert_documents(source.__getitems__(indices), [expected[i] for i in indices])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(24)))


def test_the_repr_says_what_and_where_and_holds_no_data(source):
    assert type(source).__name__ in repr(source)
    assert "120" in repr(source)
    assert len(repr(source)) < 200


def test_a_document_is_described_by_its_place(source, folders, kind):
    if kind != "memory":
        assert str(folders[kind]) in source.describe(100)


def as_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize("kinds", [PLANNED, STREAMED], ids=["planned", "streamed"])
def test_all_kinds_of_source_give_the_same_batches(kinds, sources):
    options = {"operations": [as_bytes]} if kinds is STREAMED else {}
    first, *others = [
        global_batches(Job({"a": sources[kind]}, length=64, num_epochs=1, options=options)) for kind in kinds
    ]
    assert len(first) > 2
    for batches in others:
        assert_same(first, batches)


def test_many_files_need_few_file_descriptors(tmp_path):
    paths = [write_array_record(tmp_path / f"{n:03}.array_record", [b"text %d" % n]) for n in range(150)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = ArrayRecordSource(paths)
    assert source.__getitems__(range(150)) == [f"text {n}" for n in range(150)]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 70


@pytest.mark.parametrize("group_size", [1, 4])
@given(wanted=st.lists(st.integers(0, 59), max_size=40))
def test_records_are_the_same_one_by_one_and_together_whatever_the_groups_of_the_file(group_size, wanted):
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"record {number}" for number in range(60)]
        source = ArrayRecordSource(
            write_array_record(Path(folder) / "a.array_record", [text.encode() for text in texts], group_size)
        )
        assert source.__getitems__(wanted) == [texts[number] for number in wanted]


class Opened:
    def __init__(self, number):
        self.number = number
        self.closed = False

    def close(self):
        self.closed = True


def test_a_file_that_was_in_use_twice_at_once_is_not_opened_a_third_time_and_no_more_stay_open_than_allowed():
    made = []

    def open_file(number):
        made.append(Opened(number))
        return made[-1]

    files = OpenFiles(open_file, limit=3)
    for _ in range(3):
        with files.use(1) as one, files.use(1) as other:
            assert one is not other
    assert len(made) == 2
    for number in (2, 3, 4):
        with files.use(number) as used:
            assert (used.number, used.closed) == (number, False)
    assert [file.number for file in made if not file.closed] == [2, 3, 4]
