"""The command line does what the function does, and says what it does: on a terminal, without one, and in the docs."""

import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preparing import Bench, content_of, make_texts, write_jsonl
from xlstm_jax.cli import main, reference
from xlstm_jax.prepare import prepare, read_manifest
from xlstm_jax.prepare.progress import Progress
from xlstm_jax.prepare.worker import Done

TEXTS = make_texts(150)
PAGE = Path(__file__).parents[1] / "docs" / "prepare.md"


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def corpus(bench):
    return write_jsonl(bench.folder / "a.jsonl", TEXTS)


def arguments_of(bench, corpus, *more):
    given = ["prepare", corpus, "--output", bench.folder / "by-command", "--tokenizer", bench.tokenizer_path]
    return [str(part) for part in (*given, "--workers", 0, "--task-size", 2000, "--shard-size", 5000, *more)]


def test_the_command_line_does_what_the_function_does(bench, corpus, capsys):
    output = bench.folder / "by-command"
    assert main(arguments_of(bench, corpus, "--storage-options", '{"key": "geheim"}')) == 0
    said = capsys.readouterr().out
    assert "150 documents" in said
    assert f"{output} is finished" in said
    assert content_of(output) == content_of(bench.prepare(corpus))
    assert read_manifest(output).command.startswith("xlstm-data prepare ")
    assert "geheim" not in (output / "manifest.json").read_text()
    assert main(["info", str(output)]) == 0
    assert "shard-00000: " in capsys.readouterr().out


def test_a_command_called_from_python_leaves_logging_as_it_was(tmp_path):
    root, ours = logging.getLogger(), logging.getLogger("xlstm_jax")
    before = list(root.handlers), ours.level
    assert main(["info", str(tmp_path)]) == 1
    assert (list(root.handlers), ours.level) == before


def test_who_names_no_command_is_shown_which_there_are(capsys):
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)[:2] == ["prepare", "verify"]


def test_the_closing_summary_says_what_is_in_the_store_and_what_is_not(bench, capsys):
    texts = ["a" * length for length in (1, 2, 3, 7, 8, 8)]
    path = write_jsonl(bench.folder / "a.jsonl", [*texts, b"{", b'{"txt": 1}', b"{", ""])
    assert main(arguments_of(bench, path, "--on-error", "skip", "--drop-duplicates")) == 0
    said = capsys.readouterr().out.splitlines()
    output = bench.folder / "by-command"
    assert said[:-1] == [
        # With an end token each.
        "5 documents, 26 tokens of uint16",
        "29 bytes of text, 1.000 tokens a byte",
        f"tokenizer {bench.tokenizer_path}, fingerprint {bench.tokenizer.fingerprint}, 257 ids, documents end with 0",
        "1 documents left out that have stood before",
        "4 records skipped (broken JSON 2, missing column 1, empty text 1); see errors.jsonl",
        "            2-3 tokens            2 " + "#" * 40,
        "            4-7 tokens            1 " + "#" * 20,
        "           8-15 tokens            2 " + "#" * 40,
    ]
    assert re.fullmatch(rf"{output} is finished, after \d+ s", said[-1])
    assert main(["info", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [*said[:-1], "shard-00000: 5 documents, 26 tokens"]


def test_an_error_is_a_sentence_and_a_code(bench, corpus, capsys):
    assert main(["prepare", "nowhere.jsonl", "--output", str(bench.folder / "x"), "--tokenizer", "t.json"]) == 1
    assert capsys.readouterr().err == "error: There is no file at nowhere.jsonl; check the path.\n"
    corpus.write_text('{"text": "a"}\n{"text": \n')
    assert main(arguments_of(bench, corpus)) == 1
    assert "a.jsonl, line 2: The line is no valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "further"), [("prepare", "; the same command goes on from here"), ("verify", "")])
def test_only_what_goes_on_says_so_when_it_is_stopped(bench, corpus, monkeypatch, capsys, command, further):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"xlstm_jax.cli.{command}", stop)
    arguments = arguments_of(bench, corpus) if command == "prepare" else ["verify", str(bench.folder)]
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"Stopped{further}.\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--shard-size", "1T"], "'1T' is no size; write 1000000, 512M or 2G"),
        (["--split", "train"], "'train' is no split; write train=0.99"),
        (["--storage-options", '{"key": geheim'], "write a JSON object"),
        (["--format", "parquet"], "use token_store or arrayrecord"),
        (["--engine", "spark"], "choose from"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_what_can(option, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "a", "--output", "b", *option])
    error = capsys.readouterr().err
    assert said in error
    assert "geheim" not in error


def test_escapes_that_a_shell_does_not_know_are_line_ends(bench):
    path = write_jsonl(bench.folder / "a.jsonl", [{"a": "x", "b": "y"}])
    assert (
        main(arguments_of(bench, path, "--text-column", "a", "--text-column", "b", "--column-separator", r"\n--\n"))
        == 0
    )
    assert bench.texts_of(bench.folder / "by-command") == ["x\n--\ny"]


def test_on_a_terminal_there_is_a_bar(bench, corpus):
    # Ray and JAX stay out of this process; the terminal is a real one.
    code = "import sys; from xlstm_jax.cli import main; sys.exit(main())"
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments_of(bench, corpus)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        text=True,
    ) as process:
        os.close(theirs)
        said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", "".join(_read_terminal(ours)))
        os.close(ours)
        summary = process.stdout.read()
    assert process.returncode == 0
    assert re.search(r"\d+% .*\d:\d\d:\d\d.*[\d,]+ documents, [\d,]+ tokens, [\d.]+ MB/s, 1 worker", said)
    assert "150 documents" in summary


def _read_terminal(descriptor):
    while True:
        try:
            yield os.read(descriptor, 1 << 16).decode(errors="replace")
        except OSError:  # The other side is closed.
            return


def test_without_a_terminal_there_are_lines(bench, corpus, monkeypatch, caplog):
    monkeypatch.setattr("xlstm_jax.prepare.progress._LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "xlstm_jax"):
        manifest = prepare(bench.config(corpus))
    lines = [record.getMessage() for record in caplog.records if "%" in record.getMessage()]
    assert len(lines) > 3
    assert lines[-1].startswith(f"100.0%, 150 documents, {manifest.tokens:,} tokens")


def test_progress_says_who_skips_how_much():
    progress = Progress(total_bytes=100)
    assert str(progress).startswith("0.0%, 0 documents")
    for worker, skipped in (("a:1", 3), ("b:2", 0), ("a:1", 1), ("c:3", 1)):
        progress.add(Done(worker=worker, input_bytes=10, documents=5, tokens=1000, skipped=skipped))
    assert "40.0%, 20 documents, 4,000 tokens" in str(progress)
    assert "3 workers; 5 records skipped (a:1 4, c:3 1)" in str(progress)
    assert str(progress).endswith(" left")


def test_the_reference_in_the_documentation_is_the_help_of_the_commands():
    assert f"```text\n{reference()}\n```" in PAGE.read_text(), "write it anew: python tools/write_reference.py"
