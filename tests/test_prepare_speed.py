"""What keeps `prepare` fast: nothing is read twice, no core idles, and the tokenizer is what costs."""

import hashlib
import itertools
import json
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from preparing import EOD, Bench, content_of, interrupt_after, make_texts, write_array_record, write_jsonl
from xlstm_jax.dataset.sources import TokenStoreWriter
from xlstm_jax.dataset.tokenizer import Tokenize
from xlstm_jax.prepare import engines, prepare, readers, tokenizing
from xlstm_jax.prepare.readers import read_texts
from xlstm_jax.prepare.tasks import END_OF_FILE, Piece
from xlstm_jax.prepare.work import perform

BAD, GOOD = b'{"text": "bad', b'{"text": "good"}'


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def errors_of(store):
    return [json.loads(line) for line in (store / "errors.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("task_bytes", "workers"), [(1, 0), (60, 0), (150, 2), (10**6, 0)])
def test_bad_lines_have_their_numbers_and_no_file_is_read_again_for_them(bench, monkeypatch, task_bytes, workers):
    monkeypatch.delattr(readers, "_count_newlines")
    lines = [BAD if n % 3 == 1 else b" " if n % 5 == 2 else GOOD for n in range(40)]
    first = write_jsonl(bench.folder / "a.jsonl", lines)
    second = write_jsonl(bench.folder / "b.jsonl", lines[1:])
    table = bench.folder / "c.parquet"
    pq.write_table(pa.table({"text": ["good", None]}), table)
    inputs = first, second, table, first, first
    store = bench.prepare(*inputs, on_error="skip", task_bytes=task_bytes, workers=workers)
    numbers = {first: list(range(2, 41, 3)), second: list(range(1, 40, 3)), table: [2]}
    assert [(error["path"], error.get("line", error.get("row"))) for error in errors_of(store)] == [
        (str(path), number) for path in inputs for number in numbers[path]
    ]
    assert not any("continued" in error for error in errors_of(store))


def test_bad_lines_of_a_preparation_that_was_stopped_have_their_numbers(bench):
    lines = [BAD, GOOD] * 20
    config = bench.config(write_jsonl(bench.folder / "a.jsonl", lines), on_error="skip", task_bytes=60)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(5))
    prepare(config)
    assert [error["line"] for error in errors_of(config.output)] == list(range(1, 41, 2))


@pytest.mark.parametrize("opener", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_task_of_arrow_reads_no_batch_of_those_before(bench, opener):
    path = bench.folder / "a.arrow"
    texts = make_texts(60)
    good = pa.table({"text": texts})
    with opener(str(path), good.schema) as writer:
        for begin in range(0, 60, 10):
            writer.write_table(good.slice(begin, 10))
    first = texts[3].encode()
    spoiled = path.read_bytes()
    assert spoiled.count(first) == 1
    path.write_bytes(spoiled.replace(first, b"\xff" * len(first)))
    config = bench.config(path)
    piece = Piece(str(path), "arrow", None, 3, 5, 1, "")
    assert [text for _, text in read_texts(piece, config)] == texts[30:50]
    store = bench.prepare(path, on_error="skip", task_bytes=1)
    assert [error["row"] for error in errors_of(store)] == [4]
    assert bench.texts_of(store) == texts[:3] + texts[4:]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "array_record"])
def test_rows_are_taken_by_their_bytes(bench, monkeypatch, kind):
    texts = [text * 2 for text in make_texts(200)]
    path = bench.folder / f"a.{kind}"
    table = pa.table({"text": texts})
    if kind == "parquet":
        pq.write_table(table, path, use_dictionary=False)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        write_array_record(path, texts)
    monkeypatch.setattr(readers, "_ROWS_BYTES", 4_000)
    taken = []
    at_a_time = readers._rows_at_a_time
    monkeypatch.setattr(readers, "_rows_at_a_time", lambda *of: taken.append(at_a_time(*of)) or taken[-1])
    store = bench.prepare(path, task_bytes=1 << 24)
    assert bench.texts_of(store) == texts
    assert 1 < max(taken) < 100


# --- Cores -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), st.integers(1, 9))
def test_a_batch_is_shared_out_whole_and_evenly(texts, count):
    shares = list(tokenizing._shares(texts, count))
    assert list(itertools.chain(*shares)) == texts
    assert len(shares) <= count
    assert all(shares)
    # No share is larger than an even one by more than a text.
    even = sum(map(len, texts)) / count
    assert all(sum(map(len, share[1:])) <= even + 1 for share in shares)


@pytest.mark.parametrize(("busy", "cores"), [(1, 8), (3, 2), (5, 1), (8, 1)])
def test_workers_share_the_cores_that_are_idle(monkeypatch, busy, cores):
    monkeypatch.setattr(engines, "_busy", multiprocessing.Value("i", busy))
    monkeypatch.setattr(engines, "_workers", 8)
    assert engines._cores() == cores


def test_what_is_tokenised_on_several_cores_has_the_same_tokens(bench, monkeypatch):
    texts = make_texts(300)
    path = write_jsonl(bench.folder / "a.jsonl.gz", texts)
    on_one = bench.prepare(path)
    counts = set()
    shares = tokenizing._shares
    monkeypatch.setattr(tokenizing, "_BATCH_TEXTS", 50)
    monkeypatch.setattr(tokenizing, "_shares", lambda texts, count: counts.add(count) or shares(texts, count))
    monkeypatch.setattr(engines, "perform", lambda job, work: perform(job, work, lambda: 3))
    on_three = bench.prepare(path)
    assert counts == {3}
    assert content_of(on_three) == content_of(on_one)
    assert bench.texts_of(on_three) == texts


def test_the_next_batch_is_read_while_one_is_tokenised(bench, monkeypatch):
    config = bench.config(write_jsonl(bench.folder / "a.jsonl.gz", make_texts(4)))
    piece = Piece(config.inputs[0], "jsonl", "gz", 0, END_OF_FILE, 1, "")
    read_on = [threading.Event() for _ in range(3)]

    def read(*given):
        for place, text in read_texts(*given):
            if 0 < place <= 3:
                read_on[place - 1].set()
            yield place, text

    class Waiting(Tokenize):
        def map_batch(self, texts):
            number = int(texts[0].split()[0].removeprefix("t"))
            assert number == 3 or read_on[number].wait(60)
            return Tokenize.map_batch(self, texts)

    monkeypatch.setattr(tokenizing, "read_texts", read)
    monkeypatch.setattr(tokenizing, "_BATCH_TEXTS", 1)
    with ThreadPoolExecutor() as pool:
        reading = tokenizing.Reading()
        tokenize = Waiting(bench.tokenizer, eod_token_id=EOD)
        batches = list(tokenizing.tokenized(piece, config, tokenize, reading, pool, tokenizing.one_core))
    assert [batch.texts for batch in batches] == [[text] for text in make_texts(4)]


# --- Ratios ------------------------------------------------------------------------------------------------------


def least_seconds(*works):
    """Of each, by turns; of the processor, all threads together, so that what else runs here counts little."""
    least = [float("inf")] * len(works)
    for _ in range(3):
        for place, work in enumerate(works):
            begun = time.process_time()
            work()
            least[place] = min(least[place], time.process_time() - begun)
    return least


def test_most_of_the_time_goes_to_the_tokenizer(bench):
    texts = make_texts(700, longest=250)
    jsonl = write_jsonl(bench.folder / "a.jsonl", texts)
    parquet = bench.folder / "a.parquet"
    pq.write_table(pa.table({"text": texts}), parquet, row_group_size=200)
    backend = tokenizers.Tokenizer.from_file(str(bench.tokenizer_path))
    sizes = {"task_bytes": 1 << 24, "shard_bytes": 1 << 24}
    alone, of_jsonl, of_parquet = least_seconds(
        lambda: backend.encode_batch(texts, add_special_tokens=False),
        lambda: bench.prepare(jsonl, **sizes),
        lambda: bench.prepare(parquet, **sizes),
    )
    # 85 % is asked for of large files, without the start that is included here: `make bench-prepare` measures that.
    assert alone > 0.6 * of_jsonl, f"{alone:.3f} s of {of_jsonl:.3f} s"
    assert alone > 0.6 * of_parquet, f"{alone:.3f} s of {of_parquet:.3f} s"


def test_tokens_are_rewritten_at_the_cost_of_a_few_copies(bench):
    tokens = np.random.default_rng(0).integers(0, 60_000, 10_000_000, dtype=np.uint16)
    with TokenStoreWriter(bench.folder / "given", dtype=np.uint16) as writer:
        writer.add_many(tokens, np.full(10_000, 1000))
    copied, prepared = least_seconds(
        lambda: (bench.folder / "copy").write_bytes(hashlib.sha256(tokens).digest() + tokens.tobytes()),
        lambda: bench.prepare(bench.folder / "given", tokenizer=None, task_bytes=1 << 22, shard_bytes=1 << 24),
    )
    assert prepared < 6 * copied, f"{prepared:.3f} s, a copy with its hash {copied:.3f} s"
