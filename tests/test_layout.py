"""How the package is laid out: one-way imports, public names, what is imported when, and examples that run."""

import ast
import doctest
import hashlib
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import xlstm_jax.dataset
from xlstm_jax.dataset import kernels
from xlstm_jax.dataset.order import splitmix64

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src"

LAYERS = [
    "dataset.arguments dataset.hashing dataset.kernels dataset.vectors dataset.order dataset.stages dataset.threads",
    "dataset.sources.extras dataset.sources.progress dataset.sources.fingerprint dataset.sources.base",
    "dataset.sources.files dataset.sources.mapped_file dataset.sources.open_files",
    "dataset.sources.decompression dataset.sources.whole_file dataset.sources.cache",
    "dataset.sources.manifest dataset.sources.records dataset.sources.columns dataset.sources.memory",
    "dataset.sources.token_index dataset.sources.token_store dataset.sources.token_writer",
    "dataset.sources.highway_hash dataset.sources.record_chunks dataset.sources.array_record_file",
    "dataset.sources.array_record dataset.sources.json_lines dataset.sources.parquet dataset.sources.hugging_face",
    "dataset.sources.opening dataset.sources",
    "dataset.tokenizer dataset.transforms",
    "dataset.config_file dataset.schedule dataset.ramp_up dataset.row_lengths dataset.timeline",
    "dataset.packing dataset.lengths dataset.slices dataset.windows dataset.repacking",
    "dataset.mixing dataset.mixture dataset.rounds dataset.lanes dataset.stretches dataset.places",
    "dataset.buffers dataset.pieces dataset.filling dataset.assembly dataset.array_filling",
    "dataset.config dataset.position dataset.epochs dataset.run dataset.changes dataset.resume dataset.progress",
    "dataset.passes",
    "dataset.worker_process dataset.workers dataset.batch dataset.grain_dataset dataset.global_arrays",
    "dataset.contents dataset.agreement dataset.replicas dataset.prefetch dataset.watchdog",
    "dataset.building dataset.feed dataset.foreign dataset.multihost_dataloading dataset.grain_iterator",
    "dataset.run_file",
    "dataset.checkpoint dataset",
    "dataset.plan dataset.regrets dataset.planning dataset.plan_report dataset.contents_report",
    "prepare.errors prepare.config prepare.storage prepare.access prepare.workspace prepare.inputs",
    "prepare.copies prepare.columns prepare.splits prepare.tasks prepare.readers prepare.token_documents",
    "prepare.tokenizing prepare.worker prepare.progress prepare.plan prepare.duplicates",
    "prepare.array_record_output prepare.shards",
    "prepare.settle prepare.work prepare.course prepare.ray_engine prepare.engines prepare.preparation",
    "prepare.report prepare.verification prepare",
    "cli __main__",
]
ORDER = [name for layer in LAYERS for name in layer.split()]
"""All modules, in the order of the data flow: each imports from those before it only."""

MOST_LINES = 320
LONG = {
    "dataset.order": "the permutations and, beside them, their plain definitions",
    "dataset.packing": "the rules of packing and, beside them, their plain definitions",
    "dataset.grain_iterator": "the documented functions have up to 29 parameters, each of them described",
    "cli": "the arguments of every command, each described",
}
"""Modules of more lines than that, and why."""


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module


def modules_under(folder: Path) -> dict[str, Module]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        dotted = ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
        name = dotted.removeprefix("xlstm_jax").removeprefix(".")
        if name:
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


MODULES = modules_under(SOURCES / "xlstm_jax")


def imports_of(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """(module, names) of each import, wherever it stands; not those that only a type checker sees."""
    hidden = {
        node
        for check in ast.walk(tree)
        if isinstance(check, ast.If) and isinstance(check.test, ast.Name) and check.test.id == "TYPE_CHECKING"
        for node in ast.walk(check)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def imports_within(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """(module of this package, name that is taken from it) of each import."""
    for imported, names in imports_of(tree):
        if imported.partition(".")[0] != "xlstm_jax":
            continue
        short = imported.removeprefix("xlstm_jax").removeprefix(".")
        for name in names or [None]:
            module = f"{short}.{name}".removeprefix(".")
            yield (module, None) if module in MODULES else (short, name)


def names_of(tree: ast.Module) -> set[str]:
    """Names that a module defines or imports at its top level."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def public_names(module: Module) -> list[str] | None:
    """`__all__` of a module."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return ast.literal_eval(node.value)
    return None


def test_every_module_has_its_place_in_the_data_flow():
    unplaced, gone = set(MODULES) - set(ORDER), set(ORDER) - set(MODULES)
    assert not unplaced, f"put {sorted(unplaced)} into ORDER, where the data flow has them"
    assert not gone, f"take {sorted(gone)} out of ORDER"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_from_earlier_ones(name):
    place = {module: number for number, module in enumerate(ORDER)}
    for imported, _ in imports_within(MODULES[name].tree):
        assert place[imported] < place[name], f"{name} imports {imported}, which comes later in the data flow"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__main__"])
def test_all_names_what_a_module_makes_public(name):
    module = MODULES[name]
    public = public_names(module)
    assert public is not None, f"{name} has no __all__"
    assert len(public) == len(set(public))
    missing = set(public) - names_of(module.tree)
    assert not missing, f"__all__ of {name} names {sorted(missing)}, which it does not have"
    defined = {
        node.name
        for node in module.tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    }
    assert defined <= set(public), f"{sorted(defined - set(public))} of {name} have public names and no __all__"


@pytest.mark.parametrize("name", MODULES)
def test_modules_take_from_each_other_only_what_is_public(name):
    for imported, taken in imports_within(MODULES[name].tree):
        if taken is not None:
            assert taken in (public_names(MODULES[imported]) or ()), f"{name} takes {taken} from {imported}"


PROJECT_FILES = [
    path for folder in ("src", "tests", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_only_the_public_interface_of_dependencies_is_used():
    for path in PROJECT_FILES:
        for imported, names in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            private = [part for part in [*imported.split("."), *names] if part.startswith("_") and part != "__future__"]
            assert not private, f"{path} imports {private} from {imported}"
            # Other loaders are measured in an environment of their own, which has what they stand on.
            others = set() if path.name == "peers.py" else {"tensorflow", "torch"}
            assert imported.partition(".")[0] not in others, f"{path} imports {imported}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr == "_src"), f"{path} uses {ast.unparse(node)}"


def test_modules_stay_short_unless_there_is_a_reason():
    long = {
        name
        for name, module in MODULES.items()
        if len(module.path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    assert long <= set(LONG), (
        f"{sorted(long - set(LONG))} have more than {MOST_LINES} lines: divide them, or say why in LONG"
    )
    assert set(LONG) <= set(MODULES)


def test_what_is_kept_of_compiled_functions_is_named_by_all_that_is_compiled():
    compiled = {
        name.removeprefix("dataset.")
        for name, module in MODULES.items()
        if re.search(r"^@(kernel|intrinsic)", module.path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert compiled | {"kernels"} == set(kernels.MODULES)
    texts = [MODULES[f"dataset.{name}"].path.read_bytes() for name in kernels.MODULES]
    assert (
        splitmix64.py_func.__qualname__ == f"splitmix64_{hashlib.blake2b(b''.join(texts), digest_size=6).hexdigest()}"
    )


OPTIONAL = ["datasets", "fsspec", "matplotlib", "optax", "pyarrow", "ray", "rich", "tokenizers", "transformers"]


def test_optional_dependencies_load_only_where_they_are_used():
    program = f"""
import json, sys
import xlstm_jax.dataset, xlstm_jax.prepare
first = set(sys.modules)
import xlstm_jax.dataset.grain_iterator, xlstm_jax.dataset.sources, xlstm_jax.dataset.tokenizer
import xlstm_jax.cli
print(json.dumps([[m for m in {[*OPTIONAL, "grain", "jax", "numba", "orbax"]} if m in first],
                  [m for m in {[*OPTIONAL, "tensorflow", "torch"]} if m in sys.modules]]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200)
    at_once, with_all_parts = json.loads(ran.stdout)
    assert at_once == []
    assert with_all_parts == []


# --- Public names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", xlstm_jax.dataset.__all__)
def test_every_public_name_is_there_and_described(name):
    thing = getattr(xlstm_jax.dataset, name)
    assert name in dir(xlstm_jax.dataset)
    assert thing.__name__ == name
    described = inspect.getdoc(thing)
    assert described, f"{name} has no docstring"
    assert not described.startswith(f"{name}("), f"the docstring of {name} is only its signature"


def test_the_package_shows_type_checkers_what_it_gives_at_run_time():
    hidden = next(node for node in MODULES["dataset"].tree.body if isinstance(node, ast.If))
    shown = [alias.name for node in hidden.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(shown) == sorted(xlstm_jax.dataset.__all__)
    for node in hidden.body:
        for alias in node.names:
            assert getattr(importlib.import_module(node.module), alias.name) is getattr(xlstm_jax.dataset, alias.name)


def test_other_names_are_refused_as_python_does():
    with pytest.raises(AttributeError, match=r"module 'xlstm_jax.dataset' has no attribute 'make_loader'"):
        xlstm_jax.dataset.make_loader  # noqa: B018 - asked for its error


WITH_EXAMPLES = [name for name, module in MODULES.items() if ">>> " in module.path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(f"xlstm_jax.{name}"))
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("name", ["grain_iterator", "batch"])
def test_the_main_parts_have_examples(name):
    assert f"dataset.{name}" in WITH_EXAMPLES
