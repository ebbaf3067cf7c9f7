"""Write the help of the commands into docs/prepare.md, where a test holds it to be."""

import re
from pathlib import Path

from xlstm_jax.cli import reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "prepare.md"


def main() -> None:
    """Replace the one block of text that begins with a command's usage."""
    page = PAGE.read_text()
    block = re.compile(r"```text\nusage: .*?\n```", re.DOTALL)
    PAGE.write_text(block.sub(lambda _: f"```text\n{reference()}\n```", page, count=1))


if __name__ == "__main__":
    main()
