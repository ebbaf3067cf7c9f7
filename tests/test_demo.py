"""`make demo`, on a few files and for a few steps: the example that newcomers start from stays true."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"
SMALL = "--files 12 --steps 200 --save-every 20 --vocab-size 300 --batch-size 2 --row-length 64 --width 16 --layers 1"
"""Some 35 reports fill a pipe of 4096 bytes, and the kill at step 110 may find as many more read and not looked at."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "work"
    command = [sys.executable, str(DEMO), "--work-dir", str(folder), *SMALL.split()]
    # Most of the time would go into compiling the same small model three times.
    quick = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    env = os.environ | quick
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env)
    return done, folder


def test_the_demo_succeeds_and_finds_its_losses_equal(demo):
    done, _ = demo
    assert done.returncode == 0, done.stdout + done.stderr
    after = re.search(r"EQUAL, bit for bit: \d+ steps up to the kill, (\d+) after the resume", done.stdout)
    assert after
    assert int(after[1]) < 200, "a run that resumes does not begin anew"
    assert "DIFFERS" not in done.stdout


def test_the_demo_prints_speed_padding_and_a_decoded_row(demo):
    done, _ = demo
    for expected in (r"[\d,]+ tokens/s", r"padding +\d+\.\d+%", r"segment +positions", r"\n +1 +0-\d+ "):
        assert re.search(expected, done.stdout), f"no {expected} in\n{done.stdout}"


def test_the_demo_draws_its_losses(demo):
    _, folder = demo
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_removes_no_folder_but_its_own(tmp_path, monkeypatch):
    (tmp_path / "precious").touch()
    monkeypatch.syspath_prepend(DEMO.parent)
    monkeypatch.setattr(sys, "argv", [str(DEMO), "--work-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="not from this demo"):
        importlib.import_module("demo").main()
    assert (tmp_path / "precious").exists()
