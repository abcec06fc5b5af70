"""The error that a user's data can cause; command lines end with exit code 3 on it."""

from __future__ import annotations

from pathlib import Path


class DataError(Exception):
    """A file is missing or holds something else than it should.

    One line names the file, the field, what was expected and what came, and the remedy if there is one.
    """

    def __init__(self, file: str | Path, field: str, expected: object, got: object, hint: str = "") -> None:
        self.file, self.field, self.expected, self.got = str(file), field, str(expected), str(got)
        super().__init__(f"{file}: {field}: expected {expected}, got {got}" + (f" ({hint})" if hint else ""))
