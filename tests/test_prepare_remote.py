"""Input in remote stores: S3 and Google Cloud Storage by their own clients, and HTTP, from servers of this machine."""

import logging
from contextlib import contextmanager

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from buckets import GCS, S3, Handler, serving
from preparing import Bench, content_of, interrupt_after, make_texts, write_array_record, write_jsonl
from xlstm_jax.prepare import PrepareError, prepare

TEXTS = make_texts(150)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_remembered():
    """Clients keep connections to servers that are gone."""
    yield
    for protocol in ("s3", "gs", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@contextmanager
def bucket_of(kind):
    with serving({"s3": S3, "gs": GCS}[kind]) as bucket:
        options = {
            "s3": {
                "key": "somebody",
                "secret": "geheim",
                "client_kwargs": {"endpoint_url": bucket.address, "region_name": "eu-central-1"},
            },
            "gs": {"token": "anon", "endpoint_url": bucket.address, "project": "x"},
        }
        yield bucket, options[kind]


def make_corpus(bench):
    """Files of four formats; those that are none of the data lie among them."""
    folder = bench.folder / "corpus"
    (folder / "deep").mkdir(parents=True)
    write_jsonl(folder / "a.jsonl", TEXTS[:40])
    write_jsonl(folder / "b.jsonl.gz", TEXTS[40:70])
    pq.write_table(pa.table({"text": TEXTS[70:110]}), folder / "deep" / "c.parquet", row_group_size=10)
    write_array_record(folder / "deep" / "d.array_record-00000-of-00001", TEXTS[110:])
    write_jsonl(folder / "_SUCCESS.jsonl", ["no"])
    return folder


def upload(folder, bucket):
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(f"my corpus/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_bucket_gives_what_a_folder_of_its_files_gives(bench, kind):
    folder = make_corpus(bench)
    local = bench.prepare(folder)
    assert bench.texts_of(local) == TEXTS
    with bucket_of(kind) as (bucket, options):
        upload(folder, bucket)
        for named in (["my corpus"], ["my corpus/*"], ["my corpus/a.jsonl", "my corpus/b*", "my corpus/deep"]):
            urls = [f"{kind}://bucket/{name}" for name in named]
            store = bench.prepare(*urls, storage_options=options)
            assert content_of(store) == content_of(local)
            assert "geheim" not in (store / "manifest.json").read_text()
        with pytest.raises(PrepareError, match=rf"no file at {kind}://bucket/nothing"):
            bench.prepare(f"{kind}://bucket/nothing", storage_options=options)


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_little_more_of_a_file_is_fetched_than_there_is_to_read(bench, kind):
    lines = [{"other": "x" * 100_000, "text": text} for text in TEXTS]
    content = write_jsonl(bench.folder / "a.jsonl", lines).read_bytes()
    with bucket_of(kind) as (bucket, options):
        bucket.put("a.jsonl", content)
        store = bench.prepare(f"{kind}://bucket/a.jsonl", storage_options=options, task_bytes=4 << 20)
    assert bench.texts_of(store) == TEXTS
    assert bucket.given < 1.4 * len(content), f"{bucket.given / len(content):.2f} times as much"


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_work_on_a_bucket_goes_on_in_other_processes_and_not_on_what_has_changed(bench, kind):
    folder = make_corpus(bench)
    with bucket_of(kind) as (bucket, options):
        upload(folder, bucket)
        config = bench.config(f"{kind}://bucket/my corpus", storage_options=options)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, watch=interrupt_after(5))
        content = bucket.files["my corpus/a.jsonl"].content
        bucket.put("my corpus/a.jsonl", content.replace(b"w1", b"w2"))
        fsspec.get_filesystem_class(kind).clear_instance_cache()
        with pytest.raises(PrepareError, match=r"1 changed \(such as .*a\.jsonl\)"):
            prepare(config)
        bucket.put("my corpus/a.jsonl", content)
        fsspec.get_filesystem_class(kind).clear_instance_cache()
        store = bench.prepare(*config.inputs, output=config.output, storage_options=options, workers=1)
        assert bench.texts_of(store) == TEXTS


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("told", [("ETag",), ("Last-Modified",), ()])
def test_a_change_on_a_server_is_noticed_by_what_it_tells_and_else_there_is_a_warning(bench, ranges, told, caplog):
    with serving(Handler, ranges=ranges, headers=told) as bucket:
        bucket.put("a.jsonl", write_jsonl(bench.folder / "a.jsonl", TEXTS).read_bytes())
        config = bench.config(f"{bucket.address}/a.jsonl", task_bytes=1000)

        def change(progress):
            stored = bucket.files["a.jsonl"]
            stored.content = stored.content.replace(b" w1 ", b" w2 ")
            stored.written += 60

        with caplog.at_level(logging.WARNING, "xlstm_jax"):
            if told:
                with pytest.raises(PrepareError, match=r"a\.jsonl has changed since"):
                    prepare(config, watch=change)
            else:
                prepare(config)
        warned = [record.getMessage() for record in caplog.records]
        expected = f"Only the size of {config.inputs[0]} is known; a change that leaves it as it is goes unnoticed."
        assert warned == ([] if told else [expected])
        # One task where the server cannot give a part of a file.
        assert len({asked for asked in bucket.asked if asked.startswith("GET")}) == 1
        bucket.put("a.jsonl", (bench.folder / "a.jsonl").read_bytes())
        assert bench.texts_of(bench.prepare(config.inputs[0], task_bytes=1000)) == TEXTS


def test_a_file_that_is_written_anew_in_memory_is_told_by_its_time(bench):
    fs = fsspec.filesystem("memory")
    content = write_jsonl(bench.folder / "a.jsonl", TEXTS).read_bytes()
    fs.pipe("/again/a.jsonl", content)
    config = bench.config("memory://again/a.jsonl")
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare(config, watch=interrupt_after(5))
        created = fs.store["/again/a.jsonl"].created
        fs.pipe("/again/a.jsonl", content.replace(b" w1 ", b" w2 "))
        fs.store["/again/a.jsonl"].created = created
        with pytest.raises(PrepareError, match="1 changed"):
            prepare(config)
    finally:
        fs.rm("/again", recursive=True)
