"""`make demo`, on a few files and for a few steps: the example that newcomers start from stays true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"
SMALL = "--files 40 --steps 6 --save-every 2 --vocab-size 300 --batch-size 2 --row-length 64 --width 16 --layers 1"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "work"
    command = [sys.executable, str(DEMO), "--work-dir", str(folder), *SMALL.split()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done, folder


def test_the_demo_succeeds_and_finds_its_losses_equal(demo):
    done, _ = demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"EQUAL, bit for bit: \d+ steps up to the kill, \d+ after the resume", done.stdout)
    assert "DIFFERS" not in done.stdout


def test_the_demo_prints_speed_padding_and_a_decoded_row(demo):
    done, _ = demo
    for expected in (r"[\d,]+ tokens/s", r"padding +\d+\.\d+%", r"segment +positions", r"\n +1 +0-\d+ "):
        assert re.search(expected, done.stdout), f"no {expected} in\n{done.stdout}"


def test_the_demo_draws_its_losses(demo):
    _, folder = demo
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_removes_no_folder_but_its_own(tmp_path):
    (tmp_path / "precious").touch()
    command = [sys.executable, str(DEMO), "--work-dir", str(tmp_path), *SMALL.split()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "not from this demo" in done.stderr
    assert (tmp_path / "precious").exists()
