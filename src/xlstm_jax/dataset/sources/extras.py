"""Optional dependencies: imported where they are used, with an error that names the extra to install."""

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """Import an optional dependency.

    Args:
        module: Dotted name of the module, such as "pyarrow.parquet".
        extra: Extra of this distribution that installs it.

    Raises:
        ImportError: The dependency is not installed; the message names the extra. A dependency that is there and fails
            to import raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{module.partition('.')[0]} is needed here and not installed; run: pip install 'xlstm-data[{extra}]'"
        ) from error
