"""Errors, from what a user's data can cause to the exit code of a command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


class DataError(Exception):
    """A file is missing or holds something else than it should.

    One line names the file, the field, what was expected and what came, and the remedy if there is one.
    """

    def __init__(self, file: str | Path, field: str, expected: object, got: object, hint: str = "") -> None:
        self.file, self.field, self.expected, self.got = str(file), field, str(expected), str(got)
        super().__init__(f"{file}: {field}: expected {expected}, got {got}" + (f" ({hint})" if hint else ""))


class NoSplit(DataError):
    """Nothing in a data set names a split of this name."""


def exit_code(body: Callable[[], int], stopped: str = "interrupted") -> int:
    """Exit code of a command's body: its own, or that of what ended it, which is one line on stderr.

    1: it failed; 2: what the command line asks for cannot be; 3: missing or malformed data; 130: Ctrl-C, with the line
    `stopped`.
    """
    try:
        return body()
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except (DataError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, DataError):
            return 3
        return 2 if isinstance(error, FileExistsError | ModuleNotFoundError) else 1
