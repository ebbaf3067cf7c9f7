"""Make the virtual environment that the targets of the Makefile run in.

    python3 tools/environment.py dev

Does nothing where the environment is complete, adds what is missing, and starts anew after a set-up that was cut short.
It needs nothing installed, and is read by any Python since 3.7, so that an old one gets to say what is wrong.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "complete.json"
LOG = ROOT / ".venv.log"

OLDEST = (3, 11)
EVERYTHING = "dev"
LARGE_DOWNLOAD = re.compile(r"\s*Downloading (.+?)-\d\S* \((.* MB)\)")
INSTALLATION = re.compile(r"Installing collected packages: (.*)")


def main() -> None:
    """Make the environment, or say why it cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extra", help="extra of pyproject.toml that the environment must hold")
    parser.add_argument("--same-python", action="store_true", help="make it anew where it has another Python than this")
    options = parser.parse_args()
    with (ROOT / ".venv.lock").open("w") as lock:
        # Two targets at a time (make -j) need one environment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        present = _present()
        if present and options.same_python and present["python"] != sys.version:
            present = {}
        if not {options.extra, EVERYTHING} & set(present.get("extras", ())):
            _check_version()
            _set_up(options.extra, present)


def _check_version() -> None:
    if sys.version_info < OLDEST:
        wanted, got = ".".join(map(str, OLDEST)), sys.version.split()[0]
        raise SystemExit(
            f"Python {wanted} or newer is needed, and {sys.executable} is {got}. Name one: make … PYTHON=python{wanted}"
        )


def _present() -> dict[str, Any]:
    """What a complete environment holds; nothing where there is none."""
    if not STAMP.is_file() or not PYTHON.exists():
        return {}
    found = json.loads(STAMP.read_text())
    return found if found["project"] == _project() else {"python": found["python"], "extras": []}


def _project() -> str:
    """What decides the packages: a fingerprint of pyproject.toml."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()


def _set_up(extra: str, present: dict[str, Any]) -> None:
    begun = time.monotonic()
    _say(f"Setting up .venv for Python {sys.version.split()[0]}, once; it takes some minutes.")
    if not present:
        shutil.rmtree(VENV, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(VENV)], "On Debian and Ubuntu: apt install python3-venv.")
    STAMP.unlink(missing_ok=True)
    install = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    _run([*install, "--editable", f".[{extra}]"], "Is there a connection to the package index?")
    complete = {"project": _project(), "python": sys.version, "extras": [*present.get("extras", ()), extra]}
    STAMP.write_text(json.dumps(complete, indent=2))
    _say(f"Set up in {time.monotonic() - begun:.0f} s.\n")


def _run(command: list[str], hint: str) -> None:
    """Run a command; show how it gets on, and all that it said should it fail."""
    with LOG.open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            _show(line)
        process.wait()
    if process.returncode:
        tail = "".join(LOG.read_text().splitlines(keepends=True)[-30:])
        raise SystemExit(f"{tail}\nSetting up failed, see above and {LOG.name}. {hint}")


def _show(line: str) -> None:
    """Of what pip says, what a person wants to read; all of it stands in the log."""
    download, installation = LARGE_DOWNLOAD.match(line), INSTALLATION.match(line)
    if download:
        _say(f"  downloading {download[1]}, {download[2]}")
    if installation:
        _say(f"  installing {len(installation[1].split(', '))} packages")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
