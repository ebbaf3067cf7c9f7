"""What a prepared store holds, what is left out of it and why, and whether it is sound."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import zstandard
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

from preparing import (
    EOD,
    Bench,
    content_of,
    interrupt_after,
    make_texts,
    whole_content_of,
    write_array_record,
    write_jsonl,
)
from xlstm_jax.cli import main
from xlstm_jax.dataset.sources import TokenStore, open_source, write_token_store
from xlstm_jax.prepare import PrepareConfig, PrepareError, info, prepare, read_manifest, verify
from xlstm_jax.prepare.array_record_output import ArrayRecordShardWriter
from xlstm_jax.prepare.duplicates import mark_first
from xlstm_jax.prepare.splits import SplitRule

TEXTS = make_texts(150)
GOOD = b'{"text": "good"}'


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def corpus(bench):
    return write_jsonl(bench.folder / "a.jsonl", TEXTS)


def test_the_manifest_says_what_the_store_holds(bench, corpus):
    store = bench.prepare(corpus)
    manifest = read_manifest(store)
    lengths = TokenStore(store).lengths
    assert (manifest.documents, manifest.tokens) == (150, int(lengths.sum()))
    assert (manifest.eod_token_id, manifest.dtype, manifest.vocab_size) == (EOD, "uint16", 257)
    assert manifest.tokenizer_fingerprint == bench.tokenizer.fingerprint
    assert manifest.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest.text_tokens == manifest.tokens - 150
    assert sum(shard.documents for shard in manifest.shards) == 150
    assert manifest.shards[0].source == {"first": str(corpus), "last": str(corpus)}
    expected = {}
    for length in sorted(lengths.tolist()):
        low = str(2 ** (length.bit_length() - 1))
        expected[low] = expected.get(low, 0) + 1
    assert manifest.length_histogram == expected
    assert not (store / ".unfinished").exists()


def test_shards_are_as_full_as_whole_documents_allow(bench, corpus):
    store = bench.prepare(corpus, shard_bytes=1000)
    lengths = TokenStore(store).lengths.tolist()
    shards, tokens = [[]], 0
    for length in lengths:
        if shards[-1] and tokens + length > 500:
            shards.append([])
            tokens = 0
        shards[-1].append(length)
        tokens += length
    assert [shard.documents for shard in read_manifest(store).shards] == [len(shard) for shard in shards]
    assert [shard.tokens for shard in read_manifest(store).shards] == [sum(shard) for shard in shards]


def test_workers_do_not_change_a_byte(bench, corpus):
    settings = {"drop_duplicates": True, "splits": {"a": 0.5, "b": 0.5}}
    expected = whole_content_of(bench.prepare(corpus, **settings))
    assert whole_content_of(bench.prepare(corpus, **settings, workers=2)) == expected


def test_array_records_hold_the_same_documents(bench, corpus):
    stored = TokenStore(bench.prepare(corpus))
    folder = bench.prepare(corpus, output_format="array_record")
    documents = []
    for path in sorted(folder.glob("*.array_record")):
        reader = ArrayRecordReader(str(path))
        documents += [np.frombuffer(record, "<i4") for record in reader.read_all()]
        reader.close()
    assert [document.tolist() for document in documents] == [document.tolist() for document in stored]
    assert (
        np.load(folder / "shard-00000.lengths.npy").tolist()
        == stored.lengths[: read_manifest(folder).shards[0].documents].tolist()
    )
    assert verify(folder) == []
    assert read_manifest(folder).dtype == "int32"
    assert content_of(bench.prepare(corpus, output_format="array_record", task_bytes=300)) == content_of(folder)


def test_splits_hold_each_document_once_in_their_order(bench, corpus):
    store = bench.prepare(corpus, splits={"train": 0.8, "validation": 0.2})
    train, validation = (bench.texts_of(store / name) for name in ("train", "validation"))
    assert [text for text in TEXTS if text in set(train)] == train
    assert sorted(train + validation) == sorted(TEXTS)
    assert 10 < len(validation) < 50
    assert read_manifest(store).documents == 150
    assert verify(store) == []
    assert "validation: " in info(store)


def test_more_data_moves_no_document_to_another_split(bench, corpus):
    more = write_jsonl(bench.folder / "b.jsonl", make_texts(100, seed=1))
    shares = {"train": 0.7, "validation": 0.3}
    before = bench.prepare(corpus, splits=shares)
    after = bench.prepare(more, corpus, splits=shares)
    for name in shares:
        assert set(bench.texts_of(before / name)) <= set(bench.texts_of(after / name))


def test_splits_get_their_shares():
    rule = SplitRule({"a": 0.9, "b": 0.09, "c": 0.01}, seed=0)
    counts = np.bincount(rule.deal(b"%d" % n for n in range(20_000))[1], minlength=3)
    assert np.abs(counts - [18_000, 1_800, 200]).max() < 150


def test_a_split_that_gets_nothing_is_an_empty_store(bench):
    store = bench.prepare(write_jsonl(bench.folder / "one.jsonl", ["x"]), splits={"a": 0.5, "b": 0.5})
    assert sorted(len(TokenStore(store / name)) for name in "ab") == [0, 1]
    assert verify(store) == []


@pytest.mark.parametrize("settings", [{"task_bytes": 500}, {"splits": {"a": 0.5, "b": 0.5}}, {"shard_bytes": 100}])
def test_only_the_first_of_equal_documents_is_kept(bench, settings):
    repeated = [TEXTS[n] for n in np.random.default_rng(0).integers(0, 60, 200)]
    store = bench.prepare(write_jsonl(bench.folder / "r.jsonl", repeated), drop_duplicates=True, **settings)
    once = list(dict.fromkeys(repeated))
    folders = [store / name for name in settings.get("splits", [""])]
    kept = [bench.texts_of(folder) for folder in folders]
    assert [[text for text in once if text in set(texts)] for texts in kept] == kept
    assert sum(map(len, kept)) == len(once)
    assert read_manifest(store).duplicates == 200 - len(once)
    assert verify(store) == []


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5), st.integers(1, 4))
def test_repeats_are_found_across_all_parts(tmp_path_factory, parts, records):
    folder = tmp_path_factory.mktemp("repeats")
    contents = [content for part in parts for content in part]
    files = []
    for n, part in enumerate(parts):
        files.append(folder / f"{n}")
        files[-1].write_bytes(SplitRule({}, 0).deal(b"%d" % content for content in part)[0].tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xlstm_jax.prepare.duplicates._RECORDS_PER_FILE", records)
        mark_first(files, len(contents), folder / "out")
    marks = np.frombuffer((folder / "out").read_bytes(), dtype=np.uint8).tolist()
    assert marks == [int(contents.index(content) == n) for n, content in enumerate(contents)]


BAD_LINES = {
    "broken JSON": b'{"text": "bad',
    "invalid utf-8": b'{"text": "\xff"}',
    "missing column": b'{"txt": "bad"}',
    "null": b'{"text": null}',
    "empty text": b'{"text": ""}',
    "wrong type": b'{"text": 3}',
    "invalid unicode": b'{"text": "\\ud800"}',
}


@pytest.mark.parametrize(("reason", "line"), [*BAD_LINES.items(), ("broken JSON", b'{"n": ' + b"1" * 5000 + b"}")])
def test_a_bad_line_is_an_error_with_its_number(bench, reason, line):
    path = write_jsonl(bench.folder / "a.jsonl", [GOOD] * 30 + [line] + [GOOD] * 5)
    with pytest.raises(PrepareError, match=r"a\.jsonl, line 31: .*on-error skip"):
        bench.prepare(path, task_bytes=100)


@pytest.mark.parametrize("splits", [{}, {"a": 0.5, "b": 0.5}])
def test_a_text_without_tokens_is_an_empty_text(bench, splits):
    """This tokenizer has no token for what is no ASCII, and none for what is unknown."""
    letters = {"<|endoftext|>": EOD} | {chr(code): code for code in range(1, 128)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(bench.folder / "ascii.json"))
    path = write_jsonl(bench.folder / "a.jsonl", ["good"] * 3 + ["日本", b"{", "é"] + ["good"] * 2)
    given = {"tokenizer": str(bench.folder / "ascii.json"), "splits": splits}
    with pytest.raises(PrepareError, match=r"a\.jsonl, line (4: The text has no tokens|5: The line is no valid JSON)"):
        bench.prepare(path, **given)
    for size in (1, 1 << 20):
        store = bench.prepare(path, on_error="skip", task_bytes=size, **given)
        manifest = read_manifest(store)
        assert manifest.skipped == {"empty text": 2, "broken JSON": 1}
        assert (manifest.documents, manifest.tokens, manifest.length_histogram) == (5, 25, {"4": 5})
        assert (manifest.text_bytes, manifest.text_tokens) == (20, 20)
        errors = [json.loads(line) for line in (store / "errors.jsonl").read_text().splitlines()]
        assert [(error["line"], error["excerpt"]) for error in errors] == [(4, "日本"), (5, "{"), (6, "é")]


def unigram(end="</s>"):
    """The end token is a piece of text too, as in T5's tokenizer and others of SentencePiece."""
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz <>/|"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), (end, 0.0), *letters], unk_id=0))
    tokenizer.add_special_tokens([end])
    return tokenizer


def added(end="<|eod|>"):
    """The end token is no special one, and so found in text too."""
    tokenizer = unigram()
    tokenizer.add_tokens([end])
    return tokenizer


def without_unknown():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"some": 0, "</s>": 1}))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "end", "text", "said"),
    [
        (unigram, "</s>", "some <s>old</s> price", r"makes token 1 \('</s>'\) of a part .* at the end of a document"),
        (added, "<|eod|>", "some <|eod|> more", r"makes token 33 \('<\|eod\|>'\) of a part"),
        (without_unknown, "</s>", "some word", r"Missing .* token .*[^.]\. Mend it"),
    ],
)
def test_a_text_that_the_tokenizer_cannot_make_a_document_of_is_a_bad_record(bench, tokenizer, end, text, said):
    tokenizer().save(str(bench.folder / "t.json"))
    path = write_jsonl(bench.folder / "a.jsonl", ["some", "some some", text, "some"])
    given = {"tokenizer": str(bench.folder / "t.json"), "eod_token": end}
    with pytest.raises(PrepareError, match=rf"a\.jsonl, line 3: The text cannot be tokenised: .*{said}"):
        bench.prepare(path, **given)
    store = bench.prepare(path, on_error="skip", **given)
    eod = read_manifest(store).eod_token_id
    assert [np.count_nonzero(document == eod) for document in TokenStore(store)] == [1, 1, 1]
    assert read_manifest(store).skipped == {"no tokens": 1}
    (error,) = [json.loads(line) for line in (store / "errors.jsonl").read_text().splitlines()]
    assert (error["line"], error["excerpt"]) == (3, text)


def test_what_is_no_unicode_is_written_down_as_it_is(bench):
    """Halves of surrogate pairs within a record, and names of files that are no utf-8."""
    folder = Path(os.fsdecode(os.fsencode(bench.folder) + b"/caf\xe9"))
    folder.mkdir()
    lines = [GOOD, b'{"txt": "\\ud800 \xc3\xa9"}', b'{"text": 3, "\\udfff": 4}', b'{"text": "x\\udc00"}', b'"\\udd00"']
    path = write_jsonl(folder / "a.jsonl", lines)
    config = bench.config(path, output=folder / "store", on_error="skip")
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(1))
    prepare(config)
    store = config.output
    assert bench.texts_of(store) == ["good"]
    assert read_manifest(store).skipped == {"missing column": 1, "wrong type": 2, "invalid unicode": 1}
    assert read_manifest(store).shards[0].source["first"] == str(path)
    errors = [json.loads(line) for line in (store / "errors.jsonl").read_bytes().splitlines()]
    assert {error["path"] for error in errors} == {str(path)}
    assert errors[0]["excerpt"] == '{"txt": "\ud800 é"}'
    assert "é" in (store / "errors.jsonl").read_text()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.array_record", "a.txt", "a.idx"])
def test_files_of_all_formats_may_have_names_that_are_no_utf_8(bench, name, capfd, caplog):
    folder = Path(os.fsdecode(os.fsencode(bench.folder) + b"/\xff"))
    table = pa.table({"text": TEXTS[:9]})
    path = bench.folder / name
    write = {
        ".parquet": lambda: pq.write_table(table, path),
        ".arrow": lambda: feather.write_feather(table, path, compression="uncompressed"),
        ".array_record": lambda: write_array_record(path, TEXTS[:9]),
        ".txt": lambda: path.write_text("\n\n".join(TEXTS[:9])),
        ".idx": lambda: write_token_store(
            path, [np.append(tokens, EOD) for tokens in bench.tokenizer.encode_batch(TEXTS[:9])], dtype=np.uint16
        ),
    }
    write[path.suffix]()
    folder.mkdir()
    for file in bench.folder.glob("a.*"):
        file.rename(folder / file.name)
    output = Path(os.fsdecode(os.fsencode(bench.folder) + b"/\xfe"))
    given = ["--tokenizer", str(bench.tokenizer_path), "--workers", "0", "--text-documents", "blank_line"]
    assert main(["prepare", str(folder), "--output", str(output), "--format", "arrayrecord", *given]) == 0
    assert "\\udcfe is finished" in capfd.readouterr().out
    assert f"{bench.folder}/\\udcfe." in caplog.text
    documents = open_source(output)
    assert [bench.tokenizer.decode(documents[n]).removesuffix("<|endoftext|>") for n in range(9)] == TEXTS[:9]
    assert verify(output) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_lines_are_counted_and_described(bench, workers):
    lines = [GOOD] + [part for line in BAD_LINES.values() for part in (line, GOOD)]
    path = write_jsonl(bench.folder / "a.jsonl", lines)
    store = bench.prepare(path, on_error="skip", task_bytes=50, workers=workers)
    assert bench.texts_of(store) == ["good"] * 8
    assert read_manifest(store).skipped == dict.fromkeys(BAD_LINES, 1)
    errors = [json.loads(line) for line in (store / "errors.jsonl").read_text().splitlines()]
    assert [(error["reason"], error["line"]) for error in errors] == [(r, 2 * n + 2) for n, r in enumerate(BAD_LINES)]
    assert all(error["path"] == str(path) for error in errors)
    assert errors[0]["excerpt"] == '{"text": "bad'


def test_every_skipped_record_is_counted_and_a_hundred_of_a_kind_described(bench):
    path = write_jsonl(bench.folder / "a.jsonl", [b"{"] * 250 + [GOOD])
    store = bench.prepare(path, on_error="skip", task_bytes=40)
    assert read_manifest(store).skipped == {"broken JSON": 250}
    lines = [json.loads(line)["line"] for line in (store / "errors.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 101))


def test_array_records_that_two_workers_write_at_a_time_are_whole(tmp_path):
    documents = np.arange(400_000, dtype=np.int32).reshape(-1, 4000)
    with ArrayRecordShardWriter(tmp_path / "shard") as first:
        first.add_many(documents[:50].ravel(), np.full(50, 4000))
        with ArrayRecordShardWriter(tmp_path / "shard") as second:
            first.add_many(documents[50:].ravel(), np.full(50, 4000))
            second.add_many(documents.ravel(), np.full(100, 4000))
    records = ArrayRecordReader(str(tmp_path / "shard.array_record")).read_all()
    assert [np.frombuffer(record, "<i4").tolist() for record in records] == documents.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard.array_record", "shard.lengths.npy"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("spoil", [lambda content: content[:-20], lambda content: b"xyz" + content, lambda _: b""])
def test_a_compressed_file_that_ends_early_or_is_none_is_an_error_with_its_place(bench, suffix, spoil):
    plain = write_jsonl(bench.folder / "a.jsonl", TEXTS).read_bytes()
    compress = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress
    path = bench.folder / f"b.jsonl.{suffix}"
    path.write_bytes(spoil(compress(plain)))
    with pytest.raises(PrepareError, match=r"b\.jsonl\..*, line \d+: The compressed file (ends early|is damaged)"):
        bench.prepare(path)
    store = bench.prepare(path, on_error="skip")
    assert read_manifest(store).skipped == {"damaged file": 1}
    texts = bench.texts_of(store)
    assert texts == TEXTS[: len(texts)]


def test_rows_of_tables_are_named_and_skipped_one_by_one(bench):
    texts = pa.array([b"good"] * 20 + [b"\xff"] + [b"good"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), bench.folder / "a.parquet", row_group_size=8)
    with pytest.raises(PrepareError, match=r"a\.parquet, row 21: .*utf-8"):
        bench.prepare(bench.folder / "a.parquet", task_bytes=1)
    store = bench.prepare(bench.folder / "a.parquet", task_bytes=1, on_error="skip")
    assert bench.texts_of(store) == ["good"] * 21
    with pytest.raises(PrepareError, match="no column 'body', only: text"):
        bench.prepare(bench.folder / "a.parquet", text_columns=("body",))
    assert read_manifest(
        bench.prepare(bench.folder / "a.parquet", text_columns=("body",), on_error="skip")
    ).skipped == {"missing column": 22}


@pytest.mark.parametrize("name", ["b.parquet", "b.arrow", "b.array_record"])
def test_a_damaged_table_is_named_and_skipped_whole(bench, corpus, name):
    (bench.folder / name).write_bytes(b"PAR1 and no more")
    with pytest.raises(PrepareError, match=rf"{re.escape(name)}"):
        bench.prepare(corpus, bench.folder / name)
    store = bench.prepare(corpus, bench.folder / name, on_error="skip")
    assert bench.texts_of(store) == TEXTS
    assert read_manifest(store).skipped == {"damaged file": 1}
    (error,) = [json.loads(line) for line in (store / "errors.jsonl").read_text().splitlines()]
    assert error["path"] == str(bench.folder / name)


@pytest.mark.parametrize("documents", ["file", "blank_line"])
def test_the_line_that_spoils_a_text_is_named(bench, documents):
    path = bench.folder / "a.txt"
    path.write_bytes(b"one\n\ntwo\nthree \xff\nfour\n")
    with pytest.raises(PrepareError, match=r"a\.txt, line 4: The text is no valid utf-8"):
        bench.prepare(path, text_documents=documents)


def test_an_array_of_records_in_one_line_is_not_read(bench, corpus, monkeypatch):
    path = bench.folder / "a.json"
    path.write_text(" [" + ", ".join(['{"text": "a"}'] * 1000) + "]\n")
    monkeypatch.setattr("xlstm_jax.prepare.readers.decompressed", lambda *_: pytest.fail("It was read."))
    with pytest.raises(PrepareError, match=r"a\.json cannot be read: It is one array of all records"):
        bench.prepare(path)
    monkeypatch.undo()
    store = bench.prepare(path, corpus, on_error="skip")
    assert read_manifest(store).skipped == {"damaged file": 1}
    assert bench.texts_of(store) == TEXTS


def test_an_array_of_records_is_told_from_lines(bench):
    path = bench.folder / "a.json"
    path.write_text('[{"text": "a"},\n {"text": "b"}]')
    with pytest.raises(PrepareError, match="an object a line, not one array"):
        bench.prepare(path)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda store: flip_a_byte(store / "shard-00001.bin"), r"shard-00001\.bin: its checksum is"),
        (lambda store: flip_a_byte(store / "shard-00001.idx"), r"shard-00001\.idx: its checksum is"),
        (lambda store: (store / "shard-00001.bin").unlink(), r"shard-00001\.bin: the file is missing"),
        (lambda store: (store / "shard-00001.idx").write_bytes(b""), r"shard-00001\.idx: it has 0 bytes"),
        (lambda store: (store / "more.idx").write_bytes(b""), r"more\.idx: the manifest knows nothing"),
        (lambda store: (store / "manifest.json").unlink(), r"There is no manifest\.json"),
        (lambda store: (store / "manifest.json").write_bytes(b"{"), r"manifest\.json is damaged"),
    ],
)
def test_verify_names_what_is_broken(bench, corpus, spoil, said, capsys):
    store = bench.prepare(corpus)
    assert main(["verify", str(store)]) == 0
    spoil(store)
    capsys.readouterr()
    assert main(["verify", str(store)]) == 1
    assert re.search(said, capsys.readouterr().out)


def test_lengths_that_are_not_those_of_the_records_are_found(bench, corpus):
    store = bench.prepare(corpus, output_format="array_record")
    lengths = np.load(store / "shard-00000.lengths.npy")
    np.save(store / "shard-00000.lengths.npy", lengths[::-1])
    assert any("are not those of the records" in line for line in verify(store))


def rewrite_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("output_format", ["token_store", "array_record"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"documents": 151}, r"manifest\.json: it should have 151 documents, and there are 150"),
        (
            {"eod_token_id": 7},
            r"shard-00000: 150 of 150 documents do not end with the manifest's token 7; .* document 0",
        ),
        ({"bos_token_id": 7}, r"shard-00000: 150 of 150 documents do not begin with the manifest's token 7"),
        ({"vocab_size": 200}, r"shard-00000: \d+ of 150 documents do not keep to the 200 ids .* is document \d+"),
        ({"dtype": "uint8"}, r"shard-00000: its tokens are (uint16|int32), and uint8 by the manifest"),
        ({"length_histogram": {"1": 150}}, r"length_histogram has 150 documents at 1, and there are 0"),
        ({"tokens": "many"}, r"manifest\.json is damaged: tokens is not a count"),
        ({"length_histogram": {"x": 1}}, r"damaged: length_histogram is not by token counts"),
        ({"skipped": [1]}, r"damaged: skipped is not an object of counts"),
        ({"shards": [{"name": "shard-00000"}]}, r"damaged: .*missing .* arguments"),
        ({"shards": "none"}, r"manifest\.json is damaged"),
    ],
)
def test_a_manifest_that_is_not_true_of_the_store_is_found(bench, corpus, wrong, said, output_format, capsys):
    store = bench.prepare(corpus, output_format=output_format, shard_bytes=10**6)
    rewrite_manifest(store, lambda manifest: manifest.update(wrong))
    assert main(["verify", str(store)]) == 1
    assert re.search(said, capsys.readouterr().out)
    if "damaged" in said:
        assert main(["info", str(store)]) == 1
        assert re.search(said, capsys.readouterr().err)


def test_a_manifest_without_the_facts_of_a_file_is_damaged(bench, corpus):
    store = bench.prepare(corpus)
    rewrite_manifest(store, lambda manifest: manifest["shards"][1]["files"]["shard-00001.bin"].pop("sha256"))
    (said,) = verify(store)
    assert "damaged: shards[1].files['shard-00001.bin'] is not an object of bytes and sha256" in said


def test_manifests_of_splits_that_do_not_fit_that_of_all_are_found(bench, corpus):
    store = bench.prepare(corpus, splits={"train": 0.8, "validation": 0.2})
    rewrite_manifest(store / "train", lambda manifest: manifest.update(tokenizer_fingerprint="feed", duplicates=1))
    found = verify(store)
    assert any(line.startswith("train/manifest.json: tokenizer_fingerprint is feed, and ") for line in found)
    assert "manifest.json: it should have 0 duplicates, and there are 1." in found
    (store / "train" / "manifest.json").unlink()
    flip_a_byte(store / "validation" / "shard-00000.bin")
    found = verify(store)
    assert len(found) >= 2
    assert "There is no manifest.json" in found[0]
    assert "validation: shard-00000.bin: its checksum is" in found[1]


def swap(store):
    for name, to in (("train", "aside"), ("val", "train"), ("aside", "val")):
        (store / name).rename(store / to)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (swap, "train/manifest.json: it is that of val; put each split back into its folder."),
        (lambda store: (store / "errors.jsonl").unlink(), "errors.jsonl: it should have 1 skipped records"),
        (lambda store: (store / "errors.jsonl").write_bytes(b""), "errors.jsonl: it should have 1 skipped records"),
        (lambda store: (store / "shard-00009.bin").write_bytes(b""), "shard-00009.bin: the manifest knows nothing"),
        (lambda store: (store / "val" / ".a.x.part").write_bytes(b""), "val: .a.x.part: the manifest knows nothing"),
        (
            lambda store: rewrite_manifest(store / "val", lambda manifest: manifest.update(text_tokens=3)),
            "val/manifest.json: text_tokens is 3, and ",
        ),
    ],
)
def test_what_is_wrong_around_the_splits_is_found(bench, corpus, spoil, said):
    corpus.write_bytes(corpus.read_bytes() + b"bad\n")
    store = bench.prepare(corpus, splits={"train": 0.8, "val": 0.2}, on_error="skip", shard_bytes=10**6)
    assert verify(store) == verify(store / "val") == []
    spoil(store)
    assert any(line.startswith(said) for line in verify(store))


def test_verify_shows_how_far_it_is(bench, corpus):
    store = bench.prepare(corpus, splits={"train": 0.8, "validation": 0.2})
    shares = []
    assert verify(store, watch=lambda progress: shares.append((progress.done_bytes, progress.documents))) == []
    shards = [path for path in store.rglob("shard-*") if path.suffix in (".bin", ".idx")]
    assert len(shares) == len(shards) / 2 > 3
    assert shares == sorted(set(shares))
    assert shares[-1] == (sum(path.stat().st_size for path in shards), 150)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"inputs": ()}, "no inputs"),
        ({"splits": {"a": 0.5}}, "add up to 1, got 0.5"),
        ({"splits": {"../a": 1.0}}, "cannot name one"),
        ({"splits": {"manifest.json": 1.0}}, "a file of the store has that name"),
        ({"splits": {"errors.jsonl": 1.0}}, "a file of the store has that name"),
        ({"engine": "spark"}, "engine='spark' is unknown"),
        ({"workers": -1}, "workers must be an integer of at least 0"),
        ({"address": "auto"}, "is for engine='ray'"),
        ({"output": "s3://bucket/store"}, "is a URL"),
        ({"text_columns": ()}, "at least one column"),
    ],
)
def test_a_config_that_cannot_work_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        PrepareConfig(**({"inputs": ["a"], "output": "b"} | wrong))


def test_a_config_shows_no_secrets():
    assert "geheim" not in repr(PrepareConfig(inputs=["a"], output="b", storage_options={"secret": "geheim"}))
