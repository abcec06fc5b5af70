"""Files that are never half written, and JSON that says what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ahlm.errors import DataError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Raises:
        OSError: names `path`, where what went wrong has no name or the temporary one.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files private; a result should have the permissions of any other file of the user's
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:  # on the disk before its name is, or a power cut leaves an empty file
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # NumPy's, of a write that stopped half way
            raise OSError(f"{path} could not be written ({error}); is the disk full?") from error
        named = error.filename is not None and not Path(error.filename).name.startswith(f".{path.name}.")
        if named or error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as strict JSON (no NaN), atomically."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_text(path: str | Path, expected: str) -> str:
    """Read UTF-8, a byte order mark dropped; raises `DataError` when there is no such file or something else in it."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(path, "file", expected, "no such file") from None
    except IsADirectoryError:
        raise DataError(path, "file", expected, "a folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, "file", f"{expected}, in UTF-8", error) from None


def read_json(path: str | Path) -> Any:
    """Read JSON; raises `DataError` when the file is missing, truncated or not JSON."""
    text = read_text(path, "a JSON file")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(path, f"line {error.lineno}", "valid JSON", error.msg) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists without end
        raise DataError(path, "file", "JSON of sane numbers and depth", error) from None
