"""The documentation is true: its code runs, its links lead somewhere, and its commands exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from preparing import make_texts, save_tokenizer, write_jsonl
from xlstm_jax.cli import main
from xlstm_jax.dataset import MultiHostDataLoadIterator

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""Language, name of a file if it is one, content."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OPTION = r"--[a-z][a-z-]+"


def text_without_code(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What headings can be linked by, as the common renderers make them."""
    headings = re.findall(r"^#+ (.*)$", text_without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(text_without_code(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def texts_in_the_code() -> list[str]:
    """All strings, and the fixed parts of formatted ones."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def test_messages_that_are_explained_are_messages_of_the_code():
    explained = re.findall(r"^### `(.*)`$", (ROOT / "docs/guide/troubleshooting.md").read_text(), re.MULTILINE)
    said = texts_in_the_code()
    assert explained
    assert [message for message in explained if not any(message in text for text in said)] == []


def test_options_that_are_named_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    known = set(re.findall(OPTION, capsys.readouterr().out))
    assert set(re.findall(OPTION, (ROOT / "docs/guide/preparing-data.md").read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets_that_are_named_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)(?=`| +#| PYTHON|$)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.name)
def test_code_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", make_texts(400))
    save_tokenizer(tmp_path / "tokenizer.json")
    names: dict = {}
    for language, file, code in BLOCK.findall(page.read_text()):
        if file:
            (tmp_path / file).write_text(code)
        if language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("xlstm-data "):
                    assert main([*shlex.split(line, comments=True)[1:]]) == 0, line
        elif language == "python":
            exec(compile(code, str(page), "exec"), names)
    for name in names.values():
        if isinstance(name, MultiHostDataLoadIterator):
            name.close()
