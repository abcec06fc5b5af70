"""NumPy object arrays read without running what a pickle says: only arrays, numbers, strings and containers are made.

`numpy.load(allow_pickle=True)` executes whatever a downloaded file asks for. Here no callable of another module is ever
looked up: the few names that NumPy writes into its pickles lead to functions of this file, which build arrays from
checked bytes, and any other name ends the reading.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ahlm.errors import DataError

_DTYPE = re.compile(r"(b1|[iu][1248]|f[248]|[SU]\d+|O8?)")
# raw data beyond this many bytes is not kept for a second reference, so that one array is in memory at a time
_LARGE = 4096
# opcodes that NumPy does not write: other ways to name, make and call things
_FOREIGN = {pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4}
_FOREIGN |= {pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER}

OnArray = Callable[[int, NDArray[Any]], Any]


def load_objects(path: str | Path, on_array: OnArray | None = None) -> NDArray[Any]:
    """The array in a .npy file, pickled or not.

    Args:
        path: the file; written by NumPy under Python 2 or 3.
        on_array: called with each array of numbers inside an object array as soon as it is read, and with its number
            from 0; what it returns stands in the array's place: a file larger than memory can be worked through.

    Raises:
        DataError: no .npy file, truncated, or holding anything else than arrays, numbers, strings and containers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if not dtype.hasobject:
                file.seek(0)
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
            array = _Unpickler(file, on_array).load()
    except DataError:
        raise  # of `on_array`
    except FileNotFoundError:
        raise DataError(path, "file", "a .npy file", "no such file") from None
    except _Refused as error:
        raise DataError(path, "pickle", "arrays, numbers, strings and containers", error) from None
    except Exception as error:
        # a pickle is a program: a broken one may fail in any way, and none of them is ours
        raise DataError(path, "file", "a complete .npy file", f"{type(error).__name__}: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype != object or array.shape != tuple(shape):
        raise DataError(path, "pickle", f"an object array {list(shape)}", type(array).__name__)
    return array


class _Refused(Exception):
    """The pickle asks for something that is not data."""


class _Dtype:
    """A dtype as pickled: its code, to which its state adds the byte order."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = _text(code)
        if not _DTYPE.fullmatch(self.code):
            raise _Refused(f"dtype {self.code!r}")

    def build(self, state: object) -> _Dtype:
        """State as NumPy writes it: version, byte order, subarray, names, fields, ..."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused(f"dtype {self.code!r} with fields")
        order = _text(state[1])
        if order not in tuple("<>=|"):
            raise _Refused(f"byte order {order!r}")
        self.code = order + self.code
        return self

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code)


class _NoArrayYet:
    """Stands for an array until its state is read."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []


class _Memo(dict[int, Any]):
    """Values that the pickle may refer to again; large raw data is forgotten, as NumPy never refers to it again."""

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(value, _NoArrayYet):
            value.memo_keys.append(key)
        # raw data, or the state of an array with raw data in it
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, bytes | str) and len(part) > _LARGE for part in parts):
            value = None
        super().__setitem__(key, value)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if not isinstance(value, str):
        raise _Refused(f"{type(value).__name__} in the place of a string")
    return value


def _bytes(value: object) -> bytes:
    if isinstance(value, str):  # Python 2's strings, read as latin1
        value = value.encode("latin1")
    if not isinstance(value, bytes):
        raise _Refused(f"{type(value).__name__} in the place of raw data")
    return value


def _array(state: object) -> NDArray[Any]:
    """An array from its pickled state: version, shape, dtype, Fortran order, and items or raw data."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("an array of unknown form")
    _, shape, pickled_dtype, fortran, data = state
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused(f"an array of shape {shape!r}")
    if not isinstance(pickled_dtype, _Dtype):
        raise _Refused("an array without dtype")
    dtype, size = pickled_dtype.dtype(), math.prod(shape)
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != size:
            raise _Refused(f"an object array {list(shape)} without its items")
        array = np.empty(size, object)
        for i, item in enumerate(data):
            array[i] = item
    else:
        raw = _bytes(data)
        if len(raw) != size * dtype.itemsize:
            raise _Refused(f"{len(raw)} bytes for an array {list(shape)} of {dtype}")
        array = np.frombuffer(raw, dtype) if raw else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: object, raw: object = None) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.dtype().hasobject:
        raise _Refused("a number without dtype")
    value = _bytes(raw)
    if len(value) != dtype.dtype().itemsize:
        raise _Refused(f"{len(value)} bytes for one {dtype.dtype()}")
    return np.frombuffer(value, dtype.dtype())[0]


def _encode(text: object, encoding: object) -> bytes:
    # how Python 3 writes bytes for Python 2
    if encoding != "latin1" or not isinstance(text, str):
        raise _Refused(f"encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # how Python 3 writes empty bytes for Python 2
    return b""


def _ndarray(*_: object) -> None:
    raise _Refused("a call of numpy.ndarray")


def _reconstruct(kind: object, *_: object) -> _NoArrayYet:
    if kind is not _ndarray:
        raise _Refused("a subclass of numpy.ndarray")
    return _NoArrayYet()


_NAMES: dict[tuple[str, str], Any] = {("_codecs", "encode"): _encode, ("__builtin__", "bytes"): _no_bytes}
_NAMES |= {("numpy", "ndarray"): _ndarray, ("numpy", "dtype"): _Dtype}
for _package in ("numpy.core", "numpy._core"):
    _NAMES |= {(f"{_package}.multiarray", "_reconstruct"): _reconstruct, (f"{_package}.multiarray", "scalar"): _scalar}


# the one in Python: the one in C keeps all that it reads, and takes no other table of opcodes
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: IO[bytes], on_array: OnArray | None) -> None:
        super().__init__(file, encoding="latin1")  # strings of Python 2
        self.memo = _Memo()
        self.on_array = on_array
        self.n_arrays = 0
        self.stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        value = self.stack[-1]
        if isinstance(value, _Dtype):
            value.build(state)
            return
        if not isinstance(value, _NoArrayYet):
            raise _Refused(f"state for a {type(value).__name__}")
        array: Any = _array(state)
        if self.on_array is not None and array.dtype.kind in "iuf":
            array = self.on_array(self.n_arrays, array)
            self.n_arrays += 1
        self.stack[-1] = array
        for key in value.memo_keys:
            self.memo[key] = array

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _FOREIGN
    } | {pickle.BUILD[0]: load_build}
