"""Every format of the input gives the documents that it holds, in their order, whatever the cuts."""

import contextlib
import functools
import gzip
import http.server
import json
import re
import sys
import threading
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

from preparing import Bench, content_of, interrupt_after, make_texts, write_array_record, write_jsonl
from xlstm_jax.dataset.sources import TokenStore, open_source, write_token_store
from xlstm_jax.prepare import PrepareError, access, copies, prepare, read_manifest
from xlstm_jax.prepare.access import copy_file
from xlstm_jax.prepare.inputs import list_inputs

TEXTS = make_texts(150)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_jsonl_is_cut_into_tasks_at_any_byte_and_gives_all_documents_in_order(bench):
    path = write_jsonl(bench.folder / "a.jsonl", TEXTS)
    stores = [content_of(bench.prepare(path, task_bytes=size)) for size in (1, 77, 1000, 10**6)]
    assert bench.texts_of(bench.folder / "store-1") == TEXTS
    assert all(store == stores[0] for store in stores)


@settings(max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=8),
    task_bytes=st.integers(1, 60),
    shard_bytes=st.integers(4, 100),
    ending=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_any_text_survives_json_tasks_and_shards(tmp_path_factory, texts, task_bytes, shard_bytes, ending):
    bench = Bench(tmp_path_factory.mktemp("any"))
    path = bench.folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + ending for text in texts), newline="")
    store = bench.prepare(path, task_bytes=task_bytes, shard_bytes=shard_bytes)
    assert bench.texts_of(store) == texts


def test_a_last_line_without_end_and_a_byte_order_mark_are_no_matter(bench):
    path = bench.folder / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "one"}\n\n{"text": "two"}')
    assert bench.texts_of(bench.prepare(path)) == ["one", "two"]


def test_compressed_jsonl_of_several_streams_gives_the_same_store(bench):
    plain = write_jsonl(bench.folder / "a.jsonl", TEXTS).read_bytes()
    half = plain.index(b"\n", len(plain) // 2) + 1
    gz, zst = bench.folder / "b.jsonl.gz", bench.folder / "c.jsonl.zst"
    gz.write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    compress = zstandard.ZstdCompressor().compress
    zst.write_bytes(compress(plain[:half]) + compress(plain[half:]))
    expected = content_of(bench.prepare(bench.folder / "a.jsonl"))
    assert content_of(bench.prepare(gz)) == expected
    assert content_of(bench.prepare(zst)) == expected


def test_zstandard_with_a_long_window_is_read(bench):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    # As a stream, which does not know its size and so keeps its window.
    compress = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = bench.folder / "a.jsonl.zst"
    path.write_bytes(compress.compress(write_jsonl(bench.folder / "a.jsonl", TEXTS).read_bytes()) + compress.flush())
    assert bench.texts_of(bench.prepare(path)) == TEXTS


def test_parquet_row_groups_give_all_documents(bench):
    pq.write_table(pa.table({"id": list(range(150)), "text": TEXTS}), bench.folder / "a.parquet", row_group_size=7)
    assert bench.texts_of(bench.prepare(bench.folder / "a.parquet")) == TEXTS


@pytest.mark.parametrize("opener", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams_give_all_documents(bench, opener):
    table = pa.table({"text": TEXTS})
    with opener(bench.folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    assert bench.texts_of(bench.prepare(bench.folder / "a.arrow")) == TEXTS


def test_a_hugging_face_dataset_on_disk_gives_its_rows(bench):
    folder = bench.folder / "hf"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder, num_shards=3)
    assert bench.texts_of(bench.prepare(folder)) == TEXTS


def test_a_dataset_of_several_splits_asks_for_one(bench):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    splits.save_to_disk(bench.folder / "hf")
    with pytest.raises(PrepareError, match=r"name one, such as .*hf/train"):
        bench.prepare(bench.folder / "hf")
    assert bench.texts_of(bench.prepare(bench.folder / "hf" / "train")) == TEXTS


def test_array_records_of_text_give_all_documents(bench):
    write_array_record(bench.folder / "a.array_record", TEXTS)
    assert bench.texts_of(bench.prepare(bench.folder / "a.array_record")) == TEXTS


def test_text_files_are_documents_in_the_order_of_their_names(bench):
    folder = bench.folder / "texts"
    (folder / "sub").mkdir(parents=True)
    for n, text in enumerate(TEXTS):
        (folder / ("sub" if n >= 100 else ".") / f"{n:03d}.txt").write_text(text)
    (folder / ".hidden.txt").write_text("no")
    (folder / "picture.png").write_bytes(b"no")
    assert bench.texts_of(bench.prepare(folder)) == TEXTS
    assert bench.texts_of(bench.prepare(folder / "0[0-1]*.txt")) == TEXTS[:20]


@pytest.mark.parametrize("task_bytes", [1, 100, 10**6])
def test_blank_lines_separate_documents_of_a_text_file(bench, task_bytes):
    documents = [f"{text}\nsecond line" for text in TEXTS[:40]]
    path = bench.folder / "a.txt"
    path.write_text("\n" + "\n \n\n".join(documents) + "\n")
    store = bench.prepare(path, text_documents="blank_line", task_bytes=task_bytes)
    assert bench.texts_of(store) == documents


def test_inputs_of_all_formats_stand_in_the_order_in_which_they_are_named(bench):
    write_jsonl(bench.folder / "z.jsonl", TEXTS[:3])
    pq.write_table(pa.table({"text": TEXTS[3:5]}), bench.folder / "m.parquet")
    (bench.folder / "a.txt").write_text(TEXTS[5])
    ready = bench.prepare(write_jsonl(bench.folder / "y.jsonl", TEXTS[6:9]))
    store = bench.prepare(bench.folder / "z.jsonl", bench.folder / "m.parquet", bench.folder / "a.txt", ready)
    assert bench.texts_of(store) == TEXTS[:9]


def test_nested_and_several_columns_and_messages_make_the_text(bench):
    records = [
        {"meta": {"title": f"T{n}"}, "body.raw": f"B{n}", "chat": [{"role": "user", "content": f"C{n}"}] * 2}
        for n in range(5)
    ]
    path = write_jsonl(bench.folder / "a.jsonl", records)
    pq.write_table(pa.Table.from_pylist(records), bench.folder / "a.parquet")
    for source in (path, bench.folder / "a.parquet"):
        store = bench.prepare(source, text_columns=("meta.title", "body.raw"), column_separator=" | ")
        assert bench.texts_of(store) == [f"T{n} | B{n}" for n in range(5)]
        store = bench.prepare(source, messages_column="chat", message_template="<{role}>{content}")
        assert bench.texts_of(store) == [f"<user>C{n}<user>C{n}" for n in range(5)]


@pytest.fixture(params=["a.parquet", "a.arrow"])
def write_table(bench, request):
    """Writes a table in each format of tables; gives the path."""

    def write(table):
        path = bench.folder / request.param
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        return path

    return write


def test_of_a_nested_column_nothing_is_read_but_what_is_named(bench, write_table):
    """The other one is a date that Python has no value for."""
    kind = pa.struct([("text", pa.string()), ("day", pa.date32())])
    rows = pa.array([{"text": "hello", "day": 2**31 - 1}, {"text": "there", "day": None}, None], kind)
    path = write_table(pa.table({"meta": rows}))
    store = bench.prepare(path, text_columns=["meta.text"], on_error="skip")
    assert bench.texts_of(store) == ["hello", "there"]
    assert read_manifest(store).skipped == {"null": 1}
    with pytest.raises(PrepareError, match=rf"{path}, row 1: The row holds what is no text"):
        bench.prepare(path, text_columns=["meta.day"])
    path = write_table(pa.table({"meta": rows[1:]}))
    with pytest.raises(PrepareError, match=rf"{path}, row 1: There is no column 'meta.body', only: text, day"):
        bench.prepare(path, text_columns=["meta.body"])


def test_a_column_that_is_there_twice_is_refused(bench, write_table):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"]), pa.array(["z"])], names=["text", "text", "body"])
    path = write_table(table)
    with pytest.raises(PrepareError, match=rf"{path}, row 1: There are several columns 'text'"):
        bench.prepare(path)
    assert read_manifest(bench.prepare(path, on_error="skip")).skipped == {"ambiguous column": 1}
    assert bench.texts_of(bench.prepare(path, text_columns=["body"])) == ["z"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user"}, "missing column"),
        ({"role": "user", "content": None}, "null"),
        ({"role": "user", "content": ["a"]}, "wrong type"),
        ("hello", "wrong type"),
    ],
)
def test_a_message_without_text_is_a_bad_record(bench, message, reason):
    good = {"chat": [{"role": "user", "content": "C"}]}
    path = write_jsonl(bench.folder / "a.jsonl", [good, {"chat": [*good["chat"], message]}, good])
    with pytest.raises(PrepareError, match=r"a\.jsonl, line 2: "):
        bench.prepare(path, messages_column="chat")
    store = bench.prepare(path, messages_column="chat", on_error="skip")
    assert bench.texts_of(store) == ["user: C\n"] * 2
    assert read_manifest(store).skipped == {reason: 1}


def test_text_in_a_column_of_bytes_is_text(bench):
    pq.write_table(pa.table({"text": [text.encode() for text in TEXTS]}), bench.folder / "a.parquet")
    assert bench.texts_of(bench.prepare(bench.folder / "a.parquet")) == TEXTS


def by_a_link(corpus_folder):
    """A folder beside that holds the output by another name, within a folder that a link in the input leads to."""
    (corpus_folder.parent / "deep" / "texts").mkdir(parents=True)
    (corpus_folder / "link").symlink_to(corpus_folder.parent / "deep")
    return corpus_folder.parent / "deep" / "store"


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (lambda corpus: corpus / "store", ["."]),
        (lambda corpus: corpus / "store", ["*"]),
        (lambda corpus: corpus / "deep" / "store", ["**/*.jsonl"]),
        (lambda corpus: corpus / "deep" / "store", ["a.jsonl", "d*"]),
        (by_a_link, ["."]),
        (lambda corpus: corpus, ["."]),
        (lambda corpus: corpus, ["a.jsonl"]),
    ],
)
def test_an_output_folder_within_the_input_is_refused(bench, corpus_folder, output, named):
    """Another store beside it, or its own files after an interruption, would be taken for input."""
    inputs = [corpus_folder / name for name in named]
    with pytest.raises(PrepareError, match=r"(lies in|is among what) .*name (one outside|another output folder)"):
        bench.prepare(*inputs, output=output(corpus_folder))


@pytest.mark.parametrize("named", [".", "*", "**/*.jsonl"])
def test_an_output_folder_within_the_input_by_another_name_is_refused(bench, corpus_folder, named):
    seen = bench.folder / "seen"
    seen.symlink_to(corpus_folder)
    with pytest.raises(PrepareError, match=r"(lies in|is among what) .*name one outside"):
        bench.prepare(seen / named, output=corpus_folder / "deep" / "store")


def test_an_output_folder_beside_the_files_of_a_pattern_is_none_of_them(bench, corpus_folder):
    config = bench.config(corpus_folder / "*.jsonl", output=corpus_folder / "store")
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(10))
    prepare(config)
    assert bench.texts_of(config.output) == TEXTS
    assert prepare(config) == read_manifest(config.output)


def test_a_pattern_finds_hidden_files_only_where_it_asks_for_them(bench, corpus_folder):
    for hidden in (".a.jsonl", "_b.jsonl", ".deep/c.jsonl"):
        (corpus_folder / hidden).parent.mkdir(exist_ok=True)
        write_jsonl(corpus_folder / hidden, ["hidden"])
    for pattern in ("*", "*.jsonl", "**/*.jsonl", "[.a]*.jsonl"):
        assert bench.texts_of(bench.prepare(corpus_folder / pattern)) == TEXTS
    for pattern in (".a*", "_*.jsonl", ".deep/*"):
        assert bench.texts_of(bench.prepare(corpus_folder / pattern)) == ["hidden"]


def test_numbered_array_records_are_read_as_by_open_source(bench):
    folder = bench.folder / "numbered"
    folder.mkdir()
    for number, texts in enumerate((TEXTS[:80], TEXTS[80:])):
        write_array_record(folder / f"a.array_record-{number:05d}-of-00002", texts)
    assert list(open_source(folder)) == TEXTS
    assert bench.texts_of(bench.prepare(folder)) == TEXTS


def test_files_that_are_no_data_are_named(bench, corpus_folder, caplog):
    for name in ("README", "b.png", "c.csv", "d.pdf"):
        (corpus_folder / name).write_text("?")
    with caplog.at_level("INFO", "xlstm_jax"):
        bench.prepare(corpus_folder)
    (said,) = [record.getMessage() for record in caplog.records if "no data" in record.getMessage()]
    assert said.startswith(f"{corpus_folder}/README, {corpus_folder}/b.png, {corpus_folder}/c.csv and 1 more file at ")
    store = bench.prepare(corpus_folder / "a.jsonl")
    caplog.clear()
    with caplog.at_level("INFO", "xlstm_jax"):
        bench.prepare(store)
    assert "no data" not in caplog.text


@pytest.mark.parametrize("named", ["", "*"])
def test_texts_about_the_records_of_a_folder_are_none_of_them(bench, named, caplog):
    """As in a repository of Hugging Face."""
    folder = bench.folder / "repository"
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.table({"text": TEXTS}), folder / "data" / "train.parquet")
    for name in ("README.md", "LICENSE.txt", "dataset_infos.json"):
        (folder / name).write_text("{}")
    assert bench.texts_of(bench.prepare(folder / named)) == TEXTS
    assert f"{folder}/LICENSE.txt, {folder}/README.md at {folder}" in caplog.text
    assert len(bench.texts_of(bench.prepare(folder / "*.md", folder))) == 151


def test_a_file_that_is_named_by_two_names_is_told_of(bench, corpus_folder, caplog):
    (corpus_folder / "b.jsonl").symlink_to(corpus_folder / "a.jsonl")
    assert bench.texts_of(bench.prepare(f"file://{corpus_folder}")) == TEXTS + TEXTS
    assert "1 input files are named more than once; their documents repeat." in caplog.text


def test_half_of_a_token_store_is_refused(bench, corpus_folder):
    store = bench.prepare(corpus_folder)
    (store / "shard-00001.bin").unlink()
    with pytest.raises(PrepareError, match=r"is two files, .*shard-00001\.idx and .*shard-00001\.bin, and one of them"):
        bench.prepare(store)


@pytest.fixture
def corpus_folder(bench):
    folder = bench.folder / "corpus"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", TEXTS)
    return folder


def test_a_folder_of_folders_that_describe_themselves_gives_what_they_describe(bench):
    parent = bench.folder / "all"
    parent.mkdir()
    store = bench.prepare(write_jsonl(bench.folder / "a.jsonl", TEXTS[:60]), output=parent / "a")
    (store / "old.idx").write_bytes(b"no")
    datasets.Dataset.from_dict({"text": TEXTS[60:]}).save_to_disk(parent / "b")
    (parent / "b" / "cache-1.arrow").write_bytes(b"no")
    assert bench.texts_of(bench.prepare(parent)) == TEXTS
    (store / "shard-00001.idx").unlink()
    with pytest.raises(PrepareError, match=r"is not whole: shard-00001\.idx is missing"):
        bench.prepare(parent)


def test_a_prepared_store_is_resharded_and_widened_without_a_tokenizer(bench):
    first = bench.prepare(write_jsonl(bench.folder / "a.jsonl", TEXTS))
    wide = bench.prepare(first, tokenizer=None, dtype="int32", shard_bytes=10**6)
    assert len(list(first.glob("*.idx"))) > 3
    assert [path.name for path in wide.glob("*.bin")] == ["shard-00000.bin"]
    assert bench.texts_of(wide) == TEXTS
    back = bench.prepare(wide, tokenizer=None)
    assert content_of(back) == content_of(first)


def test_stores_of_two_tokenizers_are_not_merged(bench, tmp_path):
    first = bench.prepare(write_jsonl(bench.folder / "a.jsonl", TEXTS))
    manifest = json.loads((first / "manifest.json").read_text())
    other = bench.folder / "other"
    other.mkdir()
    write_token_store(other / "shard-00000", [[1, 2, 3]], dtype=np.uint16)
    shard = manifest["shards"][0] | {"name": "shard-00000"}
    (other / "manifest.json").write_text(json.dumps(manifest | {"tokenizer_fingerprint": "feed", "shards": [shard]}))
    with pytest.raises(PrepareError, match=r"tokenizer_fingerprint is .* and "):
        bench.prepare(first, other)


@pytest.mark.parametrize("name", ["eod", "bos"])
def test_documents_that_end_or_begin_otherwise_are_not_merged(bench, name):
    path = write_jsonl(bench.folder / "a.jsonl", TEXTS[:3])
    token = f"{name}_token"
    framed, bare = (bench.prepare(path, **{token: value}) for value in (0, None))
    for inputs, settings_, found in (
        ((framed, bare), {"tokenizer": None}, "0 and none"),
        ((framed, path), {token: None}, "0 and none"),
        ((bare, path), {token: 0}, "0 and none"),
        ((framed,), {token: 1}, "0 and 1"),
    ):
        with pytest.raises(PrepareError, match=f"{token}_id is {found}"):
            bench.prepare(*inputs, **settings_)


@pytest.mark.parametrize("settings_", [{}, {"drop_duplicates": True}, {"workers": 2}])
@pytest.mark.parametrize(("framed", "said"), [({"eod_token": 7}, "end with token 7"), ({"bos_token": 1}, "begin with")])
def test_a_store_without_a_manifest_whose_documents_end_or_begin_otherwise_is_refused(bench, settings_, framed, said):
    documents = [[1, 2, 7], [], [1, 3, 7], [3, 8], [4, 5, 7]]
    write_token_store(bench.folder / "mine", documents[:3], dtype=np.uint16)
    write_token_store(bench.folder / "other", documents, dtype=np.uint16)
    given = {"tokenizer": None} | framed | settings_
    assert len(TokenStore(bench.prepare(bench.folder / "mine", **given))) == 3
    with pytest.raises(PrepareError, match=rf"other\.idx, document 3 \(from 0 on\) does not {said}"):
        bench.prepare(bench.folder / "other", **given)
    path = write_jsonl(bench.folder / "a.jsonl", TEXTS[:1])
    with pytest.raises(PrepareError, match=r"mine\.idx, document 0 \(from 0 on\) does not end with token 0"):
        bench.prepare(bench.folder / "mine", path, **settings_)


def test_end_and_begin_tokens_of_a_store_are_those_of_what_is_made_of_it(bench):
    path = write_jsonl(bench.folder / "a.jsonl", TEXTS[:3])
    for eod, bos in ((0, 5), (None, None)):
        store = bench.prepare(path, eod_token=eod, bos_token=bos)
        for tokenizer in (None, str(bench.tokenizer_path)):
            again = read_manifest(bench.prepare(store, tokenizer=tokenizer))
            assert (again.eod_token_id, again.bos_token_id) == (eod, bos)
    with pytest.raises(PrepareError, match="eod_token_id is 0 and none"):
        bench.prepare(bench.prepare(path), tokenizer=None, eod_token=None)


def test_any_megatron_store_is_read_by_prefix_and_keeps_its_width(bench):
    documents = [np.arange(n, dtype=np.int32) for n in (3, 0, 5)]
    write_token_store(bench.folder / "mine", documents, dtype=np.int32)
    store = TokenStore(bench.prepare(bench.folder / "mine", tokenizer=None))
    assert [document.tolist() for document in store] == [document.tolist() for document in documents]
    assert store[0].dtype == np.int32
    write_token_store(bench.folder / "large", [[70000]], dtype=np.int32)
    with pytest.raises(ValueError, match="holds the token id 70000"):
        bench.prepare(bench.folder / "large", tokenizer=None, dtype="uint16")


def test_urls_of_a_store_are_files_folders_and_globs(bench):
    fs = fsspec.filesystem("memory")
    write_jsonl(bench.folder / "a.jsonl", TEXTS[:50])
    pq.write_table(pa.table({"text": TEXTS[50:]}), bench.folder / "b.parquet", row_group_size=10)
    for name in ("a.jsonl", "b.parquet"):
        fs.pipe(f"/corpus/{name}", (bench.folder / name).read_bytes())
    try:
        for named in (["memory://corpus"], ["memory://corpus/*"], ["memory://corpus/a.jsonl", "memory://corpus/b*"]):
            assert bench.texts_of(bench.prepare(*named)) == TEXTS
        with pytest.raises(PrepareError, match="no file at memory://corpus/c"):
            bench.prepare("memory://corpus/c")
    finally:
        fs.rm("/corpus", recursive=True)


def test_a_folder_and_its_copy_in_a_store_have_one_order(bench):
    fs = fsspec.filesystem("memory")
    names = ["a/x.jsonl", "a-b/x.jsonl", "a.jsonl"]
    for name in names:
        path = bench.folder / "order" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fs.pipe(f"/order/{name}", write_jsonl(path, [name]).read_bytes())
    try:
        for named in ("", "/**/*.jsonl"):
            for place in (bench.folder, "memory:/"):
                assert bench.texts_of(bench.prepare(f"{place}/order{named}")) == names
    finally:
        fs.rm("/order", recursive=True)


def test_a_file_of_a_store_may_have_marks_of_patterns_in_its_name(bench):
    fs = fsspec.filesystem("memory")
    fs.pipe("/marks/a[1].jsonl", write_jsonl(bench.folder / "a.jsonl", TEXTS[:5]).read_bytes())
    try:
        assert bench.texts_of(bench.prepare("memory://marks/a[1].jsonl")) == TEXTS[:5]
    finally:
        fs.rm("/marks", recursive=True)


def test_a_url_within_another_is_refused(bench):
    with pytest.raises(PrepareError, match="is a URL within another; copy what it names"):
        bench.prepare("zip://a.jsonl::file:///x.zip")


def test_remote_records_datasets_and_stores_are_copied_for_as_long_as_needed(bench):
    store = bench.prepare(write_jsonl(bench.folder / "a.jsonl", TEXTS[:60]))
    folder = bench.folder / "hf"
    datasets.Dataset.from_dict({"text": TEXTS[60:90]}).save_to_disk(folder)
    (folder / "cache-1.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())
    write_array_record(bench.folder / "c.array_record", TEXTS[90:])
    fs = fsspec.filesystem("memory")
    for path in (*store.iterdir(), *folder.iterdir(), bench.folder / "c.array_record"):
        fs.pipe(f"/far/{path.relative_to(bench.folder)}", path.read_bytes())
    try:
        inputs = [f"memory://far/{name}" for name in (store.name, "hf", "c.array_record")]
        prepared = bench.prepare(*inputs)
        assert bench.texts_of(prepared) == TEXTS
        assert read_manifest(prepared).shards[0].source["first"] == f"memory:///far/{store.name}/shard-00000.idx"
        assert content_of(bench.prepare(inputs[0], tokenizer=None)) == content_of(store)
    finally:
        fs.rm("/far", recursive=True)


def test_files_are_read_over_http_and_signatures_are_kept_out_of_the_manifest(bench):
    folder = bench.folder / "served"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl.gz", TEXTS)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl.gz?signature=geheim"
        store = bench.prepare(url)
        server.shutdown()
    assert bench.texts_of(store) == TEXTS
    assert "geheim" not in (store / "manifest.json").read_text()


@pytest.mark.parametrize(("name", "workers"), [("a.jsonl", 0), ("a.jsonl.gz", 0), ("a.parquet", 2)])
def test_large_files_of_a_server_that_gives_no_parts_are_fetched_whole(bench, name, workers):
    path = bench.folder / "served" / name
    path.parent.mkdir()
    # What comes besides the text is more than the largest part that fsspec asks for at a time.
    padding = np.random.default_rng(0).bytes(6 << 20).hex()
    if name == "a.parquet":
        table = pa.table({"other": [padding] + [""] * 149, "text": TEXTS})
        pq.write_table(table, path, row_group_size=40, compression="none")
    else:
        write_jsonl(path, [{"text": TEXTS[0], "other": padding}, *TEXTS[1:]])
    assert path.stat().st_size > 5 << 20
    handler = functools.partial(_Quiet, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = bench.prepare(f"http://127.0.0.1:{server.server_port}/{name}", workers=workers)
        server.shutdown()
    assert bench.texts_of(store) == TEXTS
    assert not (store / ".unfinished").exists()


def test_a_few_remote_files_are_copied_at_a_time_and_no_more(bench, monkeypatch):
    fs = fsspec.filesystem("memory")
    write_array_record(bench.folder / "a", TEXTS[:5])
    for number in range(9):
        fs.pipe(f"/many/{number}.array_record", (bench.folder / "a").read_bytes())
    together = threading.Barrier(3)
    at_a_time, most = [], []

    def copy(*given):
        at_a_time.append(given)
        most.append(len(at_a_time))
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(60)
        copy_file(*given)
        at_a_time.pop()

    monkeypatch.setattr(copies, "copy_file", copy)
    try:
        store = bench.prepare("memory://many")
    finally:
        fs.rm("/many", recursive=True)
    assert bench.texts_of(store) == TEXTS[:5] * 9
    assert 3 <= max(most) <= 4
    assert not together.broken


def test_copies_that_nobody_waits_for_are_given_up(bench, monkeypatch):
    fs = fsspec.filesystem("memory")
    write_array_record(bench.folder / "a", TEXTS[:5])
    for number in range(9):
        fs.pipe(f"/many/{number}.array_record", (bench.folder / "a").read_bytes())
    config = bench.config("memory://many")
    ahead = copies.copied_ahead(list_inputs(config), config)
    try:
        first, copy = next(ahead)
        copy.result(60)
        monkeypatch.setattr(access, "_open_stream", lambda *_: pytest.fail("A copy was begun."))
        ahead.close()
    finally:
        fs.rm("/many", recursive=True)
    assert Path(copies.readable(first.path, config)).is_file()
    assert not list(config.output.rglob("*.part"))


@pytest.mark.parametrize("error", [PermissionError("The token has expired."), TimeoutError(), OSError("Reset.")])
@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet", "b.arrow", "b.array_record"])
@pytest.mark.parametrize("stage", ["open", "read"])
def test_a_store_that_fails_is_not_taken_for_a_damaged_file(bench, monkeypatch, name, error, stage):
    table = pa.table({"text": TEXTS[20:60]})
    path = bench.folder / name
    write = {
        "b.jsonl": lambda: write_jsonl(path, TEXTS[20:60]),
        "b.parquet": lambda: pq.write_table(table, path, row_group_size=10),
        "b.arrow": lambda: feather.write_feather(table, path, compression="uncompressed"),
        "b.array_record": lambda: write_array_record(path, TEXTS[20:60]),
    }
    write[name]()
    fs = fsspec.filesystem("memory")
    fs.pipe(f"/failing/{name}", path.read_bytes())
    config = bench.config(write_jsonl(bench.folder / "a.jsonl", TEXTS[:20]), "memory://failing", on_error="skip")

    def fail(*_, **__):
        raise error

    try:
        with monkeypatch.context() as patch:
            patch.setattr(type(fs) if stage == "open" else MemoryFile, "_open" if stage == "open" else "read", fail)
            with pytest.raises((PrepareError, OSError), match=re.escape(str(error) or "TimeoutError")):
                prepare(config)
        prepare(config)
    finally:
        fs.rm("/failing", recursive=True)
    assert bench.texts_of(config.output) == TEXTS[:60]
    assert read_manifest(config.output).skipped == {}


def test_a_page_that_cannot_be_decoded_is_damage(bench):
    path = bench.folder / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=50, use_dictionary=False)
    content = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[begin : begin + 60] = b"\xff" * 60
    path.write_bytes(content)
    store = bench.prepare(path, on_error="skip", task_bytes=1)
    assert bench.texts_of(store) == TEXTS[:50] + TEXTS[100:]
    assert read_manifest(store).skipped == {"damaged file": 1}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.jsonl", "no file at"), ("data.xyz", "tells its format"), ("empty", "no file at"), ("*.zip", "no file at")],
)
def test_inputs_that_are_none_are_refused_by_name(bench, name, message):
    (bench.folder / "data.xyz").write_text("?")
    (bench.folder / "empty").mkdir()
    with pytest.raises(PrepareError, match=message):
        bench.prepare(bench.folder / name)


@pytest.mark.parametrize(("scheme", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_store_whose_package_is_missing_names_the_extra(bench, monkeypatch, scheme, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"not installed; run: pip install 'xlstm-data\[{extra}\]'"):
        bench.prepare(f"{scheme}://bucket/a.jsonl")


def test_text_without_a_tokenizer_and_without_an_end_token_is_refused(bench):
    path = write_jsonl(bench.folder / "a.jsonl", TEXTS)
    with pytest.raises(PrepareError, match="name the tokenizer"):
        bench.prepare(path, tokenizer=None)
    plain = json.loads(bench.tokenizer_path.read_text())
    plain["added_tokens"], plain["model"]["vocab"] = [], {"a": 0}
    other = bench.folder / "plain.json"
    other.write_text(json.dumps(plain))
    with pytest.raises(PrepareError, match="Which token ends a document"):
        bench.prepare(path, tokenizer=str(other))
    store = TokenStore(bench.prepare(path, eod_token=None, bos_token="<|endoftext|>"))
    assert store[0][0] == 0
    assert store[0][-1] != 0
