"""Build the wheel, install it into an environment of its own, and load a batch with it, as a user would.

What it depends on is taken from the environment that this script runs in: installing it all once more takes minutes.
"""

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")

LOAD_A_BATCH = """
import sys, numpy as np, jax
from jax.sharding import Mesh
from xlstm_jax.dataset import make_grain_llm_iterator, open_source, write_token_store
import xlstm_jax

write_token_store("store", [np.arange(1, n) for n in range(2, 200)])
mesh = Mesh(np.array(jax.devices()), ("data",))
with make_grain_llm_iterator(0, 1, mesh, open_source("store"), 4, 64, True, 0, grain_packing=True) as loader:
    batch = next(loader)
assert batch.inputs.shape == (4, 64), batch.inputs.shape
assert xlstm_jax.__path__[0].startswith(sys.prefix), xlstm_jax.__path__
print(f"Loaded {batch.inputs.shape} from {xlstm_jax.__path__[0]}.")
"""


def main() -> int:
    """Build, look inside, install, load; the exit code tells."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = _build(Path(folder))
        _check_content(wheel)
        python = _install(wheel, Path(folder) / "venv")
        print("Loading a batch ...", flush=True)
        _run([python, "-I", "-c", LOAD_A_BATCH], cwd=folder)
        _run([python, "-I", "-m", "xlstm_jax", "info", "--help"], cwd=folder, quiet=True)
        _run([Path(python).with_name("xlstm-data"), "--help"], cwd=folder, quiet=True)
    print("The wheel is sound.")
    return 0


def _build(folder: Path) -> Path:
    print("Building the wheel ...", flush=True)
    _run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT])
    (wheel,) = folder.glob("*.whl")
    return wheel


def _check_content(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    missing = (sources | {"xlstm_jax/py.typed"}) - names
    foreign = {name for name in names - sources if "dist-info/" not in name and not name.endswith("py.typed")}
    if missing or foreign:
        raise SystemExit(f"{wheel.name} lacks {sorted(missing)} and should not hold {sorted(foreign)}.")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        raise SystemExit(f"{wheel.name} holds no licence.")
    print(f"{wheel.name}: {len(sources)} modules, py.typed, the licence, and nothing else.")


def _install(wheel: Path, venv: Path) -> Path:
    print("Installing it ...", flush=True)
    _run([sys.executable, "-m", "venv", "--without-pip", venv])
    python = venv / "bin" / "python"
    _run([*PIP, "--python", python, "install", "--quiet", "--no-deps", wheel])
    (packages,) = (venv / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def _run(command: list[str | Path], cwd: str | Path = ROOT, *, quiet: bool = False) -> None:
    stdout = subprocess.DEVNULL if quiet else None
    status = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, check=False).returncode
    if status:
        raise SystemExit(f"{' '.join(map(str, command[:4]))} … ended with status {status}.")


if __name__ == "__main__":
    sys.exit(main())
