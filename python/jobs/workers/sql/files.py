"""Files of the worker's machine as tables, where its operator allows: read_csv, read_json, read_parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datafusion import DataFrame, Expr, SessionContext, udtf


class FileRefused(Exception):
    """The file may not be read, or is none."""


def register_readers(context: SessionContext, directories: Sequence[str]) -> None:
    """Add the functions to a context, if there is a directory that they may read."""
    if not directories:
        return
    allowed = [Path(directory) for directory in directories]
    readers: dict[str, Callable[[str], DataFrame]] = {
        "read_csv": context.read_csv,
        "read_json": context.read_json,
        "read_parquet": context.read_parquet,
    }
    for name, read in readers.items():
        context.register_udtf(udtf(_function(name, read, allowed), name))


def _function(name: str, read: Callable[[str], DataFrame], allowed: Sequence[Path]) -> Callable[..., Any]:
    def made(*arguments: Expr) -> Any:
        path = _text(arguments[0]) if len(arguments) == 1 else None
        if path is None:
            raise FileRefused(f"{name} takes the path of a file, as text")
        # Planning calls this on a thread that may wait for nothing of DataFusion's.
        with ThreadPoolExecutor(1) as other:
            return other.submit(read, str(checked(path, allowed))).result().into_view()

    return made


def _text(argument: Expr) -> str | None:
    """Return the text that an argument is, if it is one."""
    if argument.variant_name() != "Literal":
        return None
    value = argument.python_value().as_py()
    return value if isinstance(value, str) else None


def checked(path: str, allowed: Sequence[Path]) -> Path:
    """Return where the file really is. Raises FileRefused outside of the directories that are allowed."""
    try:
        real = Path(path).resolve(strict=True)
        roots = [root.resolve(strict=True) for root in allowed]
    except (OSError, RuntimeError, ValueError) as error:
        raise FileRefused(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not real.is_file() or not any(real.is_relative_to(root) for root in roots):
        raise FileRefused(f"{path} is no file in the directories that queries may read (workers.sql.allow_files)")
    return real
