from __future__ import annotations

import builtins
import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahlm.data.safe_pickle import load_objects
from ahlm.errors import DataError


def objects(*items: Any) -> np.ndarray:
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array


def npy(path: Path, payload: bytes, shape: tuple[int, ...]) -> Path:
    """A .npy of objects with this pickle in it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": shape})
    path.write_bytes(header.getvalue() + payload)
    return path


ITEMS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i2"),
    np.ones((2, 2), np.float16),
    np.zeros((0, 4)),
    np.array(["abc", "ü"]),
    np.array([b"abc"]),
    np.array([True, False]),
    objects([1, 2.5], ["run", "jump"]),
    [[0.5, 1.0], ["3", "4"]],
    np.float64(2.5),
    np.int64(7),
    {"a": (1, None)},
    "text",
    b"bytes",
    10**30,
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_reads_what_numpy_writes(tmp_path: Path, protocol: int) -> None:
    shared = np.arange(5000.0)
    array = objects(*ITEMS, shared, shared)
    path = npy(tmp_path / "a.npy", pickle.dumps(array, protocol=protocol), array.shape)
    loaded = load_objects(path)
    assert loaded.shape == array.shape
    for got, expected in zip(loaded, array, strict=True):
        assert type(got) is type(expected)
        if isinstance(expected, np.ndarray):
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(got, expected)
        else:
            assert got == expected
    assert loaded[-1] is loaded[-2]


def test_reads_files_of_numpy_save(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", objects(np.ones(3), ["x"]), allow_pickle=True)
    assert load_objects(tmp_path / "a.npy")[1] == ["x"]
    np.save(tmp_path / "b.npy", np.array([b"validation", b"test"]))
    np.testing.assert_array_equal(load_objects(tmp_path / "b.npy"), [b"validation", b"test"])


def test_strings_of_python_2(tmp_path: Path) -> None:
    """Python 2 wrote raw data and text as byte strings, which only its pickles have."""
    raw = np.arange(300, dtype="<f8").tobytes()
    inner = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I300\ntcnumpy\ndtype\n(S'f8'\nI0\n"
        b"I1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nT" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    outer = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'O8'\nI0\n"
        b"I1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\n(l" + inner + b"aS'run'\natb."
    )
    loaded = load_objects(npy(tmp_path / "a.npy", outer, (2,)))
    np.testing.assert_array_equal(loaded[0], np.arange(300))
    assert loaded[1] == "run"


def test_arrays_are_handed_over_one_by_one(tmp_path: Path) -> None:
    arrays = [np.full((3, 2), i, np.float32) for i in range(4)]
    np.save(tmp_path / "a.npy", objects(*arrays, np.array(["no number"])), allow_pickle=True)
    seen: list[tuple[int, float]] = []

    def on_array(number: int, array: np.ndarray) -> str:
        seen.append((number, float(array[0, 0])))
        return f"array {number}"

    loaded = load_objects(tmp_path / "a.npy", on_array)
    assert seen == [(i, float(i)) for i in range(4)]
    assert list(loaded[:4]) == [f"array {i}" for i in range(4)]


def test_one_array_is_in_memory_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    size = 1 << 20
    np.save(tmp_path / "a.npy", objects(*(np.full(size, i, np.uint8) for i in range(12))), allow_pickle=True)
    tracemalloc.start()
    load_objects(tmp_path / "a.npy", lambda number, array: number)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size


class Evil:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("item", "named"),
    [
        (Evil(os.mkdir, "made"), "mkdir"),
        (Evil(builtins.exec, "open('made', 'w')"), "exec"),
        (Evil(builtins.getattr, "x", "upper"), "getattr"),
        (Evil(np.load, "made"), "load"),
        (Evil(np.ndarray, (2,)), "ndarray"),
        (np.zeros(1, [("a", "f8")]), "dtype"),
        (np.array(["2020-01-01"], "M8[D]"), "dtype"),
        (Path("x"), "Path"),
        (DataError, "DataError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: Any, named: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(objects(item), protocol=protocol)
    assert any(named in str(argument) for _, argument, _ in pickletools.genops(payload)) or named == "dtype"
    path = npy(tmp_path / "a.npy", payload, (1,))
    with pytest.raises(DataError, match=r"a\.npy: pickle: expected arrays, numbers, strings and containers, got"):
        load_objects(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"(S'made'\nios\nmkdir\n.",  # INST
        b"cos\nmkdir\n(S'made'\no.",  # OBJ
        b"\x80\x02cos\nmkdir\nU\x04made\x85\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02U\x01xQ.",  # BINPERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"cnumpy\ndtype\n}U\x08__init__Nsb.",  # BUILD on one of our own classes
        b"cnumpy\nndarray\n(tR.",  # a call of what cannot be called
        b"cnumpy.core.multiarray\n_reconstruct\n(S'b'\ntR.",  # not an ndarray
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",  # an array without content
        b"I1\n.",
        b"",
        b"\x00",
    ],
)
def test_refuses_hand_made_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"a\.npy: (file|pickle): expected"):
        load_objects(npy(tmp_path / "a.npy", payload, (1,)))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x03K\x02\x86", b"K\x04K\x02\x86", r"24 bytes for an array \[4, 2\] of float32"),
        (b"K\x03K\x02\x86", b"U\x01xK\x02\x86", "an array of shape"),
        (b"f4", b"V4", "dtype 'V4'"),
        (b"<", b"!", "byte order '!'"),
    ],
)
def test_refuses_arrays_that_do_not_add_up(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    payload = pickle.dumps(objects(np.ones((3, 2), np.float32)), protocol=2)
    assert payload.count(old) == 1
    with pytest.raises(DataError, match=message):
        load_objects(npy(tmp_path / "a.npy", payload.replace(old, new), (1,)))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
DTYPE = b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (ARRAY + b"I1\nb.", "an array of unknown form"),
        (ARRAY + b"(I1\n(I1\ntS'f8'\nI00\nS'xxxxxxxx'\ntb.", "an array without dtype"),
        (ARRAY + b"(I1\n(I1\nt" + DTYPE % b"f8" + b"I00\nI3\ntb.", "int in the place of raw data"),
        (ARRAY + b"(I1\n(I2\nt" + DTYPE % b"O8" + b"I00\n(lI1\natb.", r"an object array \[2\] without its items"),
        (b"cnumpy\ndtype\n(I8\nI0\nI1\ntR.", "int in the place of a string"),
        (b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'<'\nI1\nNNtb.", "dtype 'f8' with fields"),
        (b"cnumpy.core.multiarray\nscalar\n(S'f8'\nS'x'\ntR.", "a number without dtype"),
        (b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"f8" + b"S'x'\ntR.", "1 bytes for one float64"),
        (b"c_codecs\nencode\n(Vx\nVutf-7\ntR.", "encoding 'utf-7'"),
        (b"I1\nI2\nb.", "state for a int"),
    ],
)
def test_says_what_is_malformed(tmp_path: Path, payload: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_objects(npy(tmp_path / "a.npy", payload, (1,)))


def test_byte_strings_for_text(tmp_path: Path) -> None:
    payload = ARRAY + b"(I1\n(I1\ntcnumpy\ndtype\n(C\x02f8I0\nI1\ntRI00\nS'" + b"\\x00" * 8 + b"'\ntb."
    with pytest.raises(DataError, match=r"expected an object array \[1\], got ndarray"):
        load_objects(npy(tmp_path / "a.npy", payload, (1,)))


def test_truncated_and_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, objects(np.ones(1000)), allow_pickle=True)
    whole = path.read_bytes()
    for size in (0, 5, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.npy: file: expected a complete \.npy file"):
            load_objects(path)
    with pytest.raises(DataError, match="no such file"):
        load_objects(tmp_path / "no.npy")
    # a pickle of another shape than the header says
    npy(path, pickle.dumps(objects(1, 2)), (3,))
    with pytest.raises(DataError, match=r"expected an object array \[3\]"):
        load_objects(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_damaged_pickles_end_in_one_kind_of_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(objects(np.arange(6.0), ["run"], objects([1, 2.5]), np.float32(1)), protocol=protocol)
    rng = np.random.default_rng(protocol)
    refused = 0
    for _ in range(300):
        damaged = bytearray(payload)
        for position in rng.integers(0, len(payload), 3):
            damaged[position] = rng.integers(0, 256)
        try:
            load_objects(npy(tmp_path / "a.npy", bytes(damaged), (4,)))
        except DataError:
            refused += 1
    assert refused > 100  # the others changed a number or a letter
