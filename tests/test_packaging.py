"""What is installed: extras with the names that errors tell, the command, and nothing that is not needed."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from xlstm_jax.dataset.sources.extras import require

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = {
    (module.partition(".")[0], extra)
    for path in (ROOT / "src").rglob("*.py")
    for module, extra in re.findall(r'\brequire\("([\w.]+)", "([\w-]+)"\)', path.read_text())
}


@pytest.mark.parametrize(("module", "extra"), sorted(REQUIRED))
def test_the_extra_that_an_error_names_installs_what_is_missing(module, extra):
    distributions = {"zstandard": "zstandard", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}
    named = [re.match(r"[\w-]+", requirement)[0] for requirement in [*EXTRAS.get(extra, ()), *PROJECT["dependencies"]]]
    assert distributions.get(module, module) in named


def test_all_holds_every_extra_for_users_but_the_clouds():
    held = set(re.fullmatch(r"xlstm-data\[(.*)\]", EXTRAS["all"][0])[1].split(","))
    assert held == set(EXTRAS) - {"all", "demo", "dev", "s3", "gcs"}


def test_a_missing_dependency_names_its_extra_and_a_broken_one_its_own_error(tmp_path, monkeypatch):
    with pytest.raises(ImportError, match=r"pip install 'xlstm-data\[some\]'"):
        require("there_is_no_such_module", "some")
    (tmp_path / "broken_module.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        require("broken_module", "some")


def test_an_old_python_can_read_the_script_that_tells_it_that_it_is_too_old():
    ast.parse((ROOT / "tools" / "environment.py").read_text(), feature_version=(3, 7))


def test_neither_tensorflow_nor_torch_is_needed():
    assert not [
        r for group in (PROJECT["dependencies"], *EXTRAS.values()) for r in group if re.match("tensor|torch", r)
    ]


def test_where_nothing_can_be_written_functions_are_compiled_anew_and_that_is_said_once(tmp_path):
    package = tmp_path / "xlstm_jax" / "dataset"
    shutil.copytree(ROOT / "src" / "xlstm_jax", package.parent, ignore=shutil.ignore_patterns("__pycache__"))
    # Folders that cannot be made, for whomever: a file stands where each of them would.
    for path in (package / "__pycache__", tmp_path / "file"):
        path.touch()
    code = (
        "from xlstm_jax.dataset.order import keyed_permutation, keyed_permutation_plain\n"
        "assert keyed_permutation(70, 1, 0, 70).tolist() == keyed_permutation_plain(70, 1, 0, 70)"
    )
    places = {name: str(tmp_path / "file") for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment = os.environ | places | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Let NUMBA_CACHE_DIR name one that can be") == 1
    assert done.stderr.count("\n") == 1
