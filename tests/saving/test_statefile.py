"""Files of states: every layout goes round, every damage shows, nothing hostile is executed."""

import errno
import io
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from downhill_rms.saving import statefile
from downhill_rms.saving.statefile import CheckpointError, read_metadata, read_state, write_state
from tests.reliability import damage, full_disk

NAN_PAYLOAD = np.array([0x7FF8DEADBEEF0001], dtype="uint64").view("float64")
LAYOUTS = {
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20)[::3],
    "backwards": np.arange(5.0)[::-1],
    "0-d": np.array(3.5),
    "empty": np.zeros((0, 3), dtype="float32"),
    "complex": np.array([1 + 2j, complex(np.nan, -0.0)]),
    "big-endian": np.arange(4, dtype=">i4"),
    "bool": np.array([True, False]),
    "NaN payload": NAN_PAYLOAD,
    "negative zero": np.array([-0.0, 0.0]),
}


def round_trip(state, path):
    write_state(path, state)
    return read_state(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_come_back_to_the_byte(layout, tmp_path):
    array = LAYOUTS[layout]
    found = round_trip({"x": array}, tmp_path / "state.npz")["x"]
    assert (found.dtype.str, found.shape) == (array.dtype.str, array.shape)
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable
    assert found.flags.c_contiguous


@settings(max_examples=60, deadline=None)
@given(
    array=stn.arrays(
        st.one_of(stn.floating_dtypes(), stn.integer_dtypes(), stn.complex_number_dtypes()),
        stn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    )
)
def test_any_array_comes_back(array, tmp_path_factory):
    found = round_trip({"x": array}, tmp_path_factory.mktemp("any") / "state.npz")["x"]
    assert (found.dtype.str, found.shape) == (array.dtype.str, array.shape)
    assert found.tobytes() == array.tobytes()


def test_plain_values_come_back_as_what_they_are(tmp_path):
    state = {
        "i": 2**80,
        "f": 0.1 + 0.2,
        "nan": float("nan"),
        "inf": float("-inf"),
        "s": "é",
        "none": None,
        "true": True,
        "one": 1,
        "one.0": 1.0,
        "zero": -0.0,
    }
    found = round_trip(state, tmp_path / "state.npz")
    assert {k: (type(v), repr(v)) for k, v in found.items()} == {
        k: (type(v), repr(v)) for k, v in state.items()
    }


def test_numpy_opens_the_file(tmp_path):
    state = {"param/w": np.arange(3), "n": 1, "accumulator/w_mean": np.ones(2)}
    write_state(tmp_path / "state.npz", state, {"note": "hello"})
    with np.load(tmp_path / "state.npz") as file:
        assert file.files == ["header.json", "param/w", "accumulator/w_mean"]
        np.testing.assert_array_equal(file["param/w"], np.arange(3))
        np.testing.assert_array_equal(file["accumulator/w_mean"], 1)
    metadata = read_metadata(tmp_path / "state.npz")
    assert metadata["note"] == "hello"
    assert metadata["versions"]["numpy"] == np.__version__


UNSAFE = [
    "../w",
    "/w",
    "a/../w",
    "a//w",
    "C:w",
    "a\\w",
    "a\0w",
    "a\nw",
    "",
    ".",
    ".w",
    "a/",
    "w\ud800",
]


def test_names_that_are_no_safe_paths_stay_inside_the_file(tmp_path):
    """Whoever unpacks it writes nowhere else, and no two names become one member."""
    odd = [*UNSAFE, "x" * 300, "unnamed/0", "unnamed/20", "0", "header.json", "größe", "grad(w)"]
    state = {name: np.full(2, index) for index, name in enumerate(odd)}
    path = tmp_path / "state.npz"
    write_state(path, state)
    found = read_state(path)
    assert list(found) == odd
    assert [array.tolist() for array in found.values()] == [v.tolist() for v in state.values()]
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        archive.extractall(tmp_path / "out")
    assert len(set(members)) == len(odd) + 1
    assert {p.relative_to(tmp_path / "out").as_posix() for p in files_in(tmp_path / "out")} == set(
        members
    )
    assert {"größe.npy", "grad(w).npy", "0.npy", "header.json.npy"} <= set(members)


def files_in(directory):
    return [path for path in directory.rglob("*") if path.is_file()]


def test_damage_shows(tmp_path):
    """The short form of python -m tests.reliability.damage."""
    result = damage.run(tmp_path, truncations=20, flips=150, blocks=20)
    assert result.silent == 0
    assert result.other_exceptions == 0
    assert result.told == 3 * 190


# Files that are made to harm, with a digest that is right


def hostile(path, members, compression=zipfile.ZIP_STORED):
    """A file with the right digest, so that nothing but the reader's own checks refuses it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
        archive.comment = b"0" * 64
    sign(path)


def sign(path):
    """Put the right digest at the end, where the file is sound enough to have one."""
    content = path.read_bytes()[:-64]
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        try:
            digest = statefile._digest(file, archive)
        except CheckpointError:
            return
    path.write_bytes(content + digest.encode())


def header(arrays, **changes):
    fields = {"format": 1, "versions": {}, "metadata": {}, "values": {}, "arrays": arrays}
    return ("header.json", json.dumps(fields | changes))


def npy(array, **kwargs):
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


class Bomb:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def raw(dtype, shape):
    return npy_header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}")


ARRAY = npy(np.zeros(3))
FLOATS = {"x": ["<f8", [3]]}
HUGE = ARRAY.replace(b"(3,), }", b"(9999999999,), }")[: len(ARRAY)]
HOSTILE = {
    "no header": [("0.npy", ARRAY)],
    "header is no JSON": [("header.json", "{")],
    "header is a list": [("header.json", "[]")],
    "header is deep": [("header.json", "[" * 100_000)],
    "no arrays": [("header.json", json.dumps({"format": 1}))],
    "older format": [header({}, format=0)],
    "newer format": [header({}, format=3)],
    "path outside": [header(FLOATS), ("../0.npy", ARRAY)],
    "path outside, by name": [header({"../x": ["<f8", [3]]}, format=2), ("../x.npy", ARRAY)],
    "another member than its name": [header(FLOATS, format=2), ("0.npy", ARRAY)],
    "a member too many": [header(FLOATS), ("0.npy", ARRAY), ("1.npy", ARRAY)],
    "a member too few": [header(FLOATS)],
    "another dtype": [header({"x": ["<f4", [3]]}), ("0.npy", ARRAY)],
    "another shape": [header({"x": ["<f8", [4]]}), ("0.npy", ARRAY)],
    "absurd shape": [header({"x": ["<f8", [9999999999]]}), ("0.npy", HUGE)],
    "negative shape": [header({"x": ["<f8", [-1]]}), ("0.npy", ARRAY)],
    "shape of text": [header({"x": ["<f8", ["3"]]}), ("0.npy", ARRAY)],
    "object dtype": [header({"x": ["|O", [3]]}), ("0.npy", ARRAY)],
    "record dtype": [header({"x": [[["a", "<f8"]], [3]]}), ("0.npy", ARRAY)],
    "no npy": [header(FLOATS), ("0.npy", b"x" * 100)],
    "short npy": [header(FLOATS), ("0.npy", ARRAY[:-8])],
    "long npy": [header(FLOATS), ("0.npy", ARRAY + b"x")],
    "items of no bytes": [header({"x": ["|S0", [10**13]]}), ("0.npy", raw("|S0", (10**13,)))],
    "subarray dtype": [
        header({"x": ["(3,)<f8", [2]]}),
        ("0.npy", raw("(3,)<f8", (2,)) + bytes(48)),
    ],
    "dates": [header({"x": ["<M8[s]", [1]]}), ("0.npy", raw("<M8[s]", (1,)) + bytes(8))],
    "deprecated dtype": [header({"x": ["a8", [1]]}), ("0.npy", raw("a8", (1,)) + bytes(8))],
    "no dtype": [header({"x": [None, [3]]}), ("0.npy", ARRAY)],
    "unfinished npy header": [header(FLOATS), ("0.npy", npy_header("{'descr': ("))],
    "deep npy header": [header(FLOATS), ("0.npy", npy_header("-" * 60_000 + "1"))],
    "npy header of Python 2": [
        header({"x": ["<f8", [1]]}),
        ("0.npy", raw("<f8", "(1L,)") + bytes(8)),
    ],
    "values that are not plain": [header({}, values={"x": [1]})],
    "name of an array and a value": [header(FLOATS, values={"x": 1}), ("0.npy", ARRAY)],
    "name twice": [
        ("header.json", header({})[1].replace('"values": {}', '"values": {"x":1,"x":2}'))
    ],
    "format of truth": [header({}, format=True)],
    "giant npy header": [
        header(FLOATS),
        ("0.npy", b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 999),
    ],
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_files_are_refused(kind, tmp_path):
    path = tmp_path / "state.npz"
    hostile(path, HOSTILE[kind])
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="state.npz"):
        read_state(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_pickles_are_not_executed(tmp_path):
    mark = tmp_path / "mark"
    array = np.array([Bomb(mark)], dtype=object)
    pickle.loads(pickle.dumps(array))
    assert mark.exists()  # the bomb is live
    mark.unlink()
    for dtype in ("|O", "<f8"):
        path = tmp_path / "state.npz"
        hostile(path, [header({"x": [dtype, [1]]}), ("0.npy", npy(array, allow_pickle=True))])
        with pytest.raises(CheckpointError, match="state.npz"):
            read_state(path)
    assert not mark.exists()


def test_compression_bombs_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    big = npy(np.zeros(10_000_000))
    members = [header({"x": ["<f8", [10_000_000]]}), ("0.npy", big)]
    hostile(path, members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1e6
    with pytest.raises(CheckpointError, match="compressed member"):
        read_state(path)


def peak_of_reading(path):
    tracemalloc.start()
    try:
        read_state(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.with_suffix(".peak").write_text(str(peak))
    return peak


def test_members_that_overlap_are_refused(tmp_path):
    """Each holds the next, so that 50 arrays of 2 MB would come out of a file of 2 MB."""
    count, content, directory, places = 50, b"", [], {}
    arrays = {}
    for index in reversed(range(count)):
        payload = content or bytes(2_000_000)
        data = raw("|u1", f"({len(payload)},)") + payload
        arrays[str(index)], name = ["|u1", [len(payload)]], f"{index}.npy".encode()
        crc, size = zlib.crc32(data), len(data)
        local = (b"PK\3\4", 20, 0, 0, 0, 0, 33, crc, size, size, len(name), 0)
        content = struct.pack("<4s2B4HL2L2H", *local) + name + data
        places[index] = (name, crc, size, len(content))
    name, text = header({str(index): arrays[str(index)] for index in range(count)})
    name, text = name.encode(), text.encode()
    fields = (20, 0, 0, 0, 0, 33, zlib.crc32(text), len(text), len(text), len(name), 0)
    body = struct.pack("<4s2B4HL2L2H", b"PK\3\4", *fields) + name + text + content
    entries = [(name, zlib.crc32(text), len(text), len(body))]
    for name, crc, size, back in entries + [places[index] for index in range(count)]:
        fields = (20, 3, 20, 0, 0, 0, 0, 33, crc, size, size, len(name), 0, 0, 0, 0, 0)
        entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *fields, len(body) - back)
        directory.append(entry + name)
    end = (b"PK\5\6", 0, 0, count + 1, count + 1, len(b"".join(directory)), len(body), 64)
    whole = body + b"".join(directory) + struct.pack("<4s4H2LH", *end)
    path = tmp_path / "state.npz"
    path.write_bytes(whole + b"0" * 64)
    sign(path)
    with zipfile.ZipFile(path) as archive:
        assert sum(member.file_size for member in archive.infolist()) > 40 * len(whole)
    with pytest.raises(CheckpointError, match="overlapping member"):
        read_state(path)


def test_a_header_of_absurdly_many_fields_is_not_parsed(tmp_path):
    path = tmp_path / "state.npz"
    hostile(path, [("header.json", '{"a": [' + "[]," * 3_000_000 + "1]}")])
    with pytest.raises(CheckpointError, match="absurdly many fields"):
        peak_of_reading(path)
    assert int(path.with_suffix(".peak").read_text()) < 3 * path.stat().st_size  # not 22 times


def test_reading_takes_little_more_than_the_array(tmp_path):
    path = tmp_path / "state.npz"
    write_state(path, {"x": np.zeros(2_000_000)})
    assert peak_of_reading(path) < 1.5 * 16e6


@pytest.mark.parametrize("value", [{1}, [1], np.float32(1), np.array([{}]), np.array(["a"])])
def test_what_a_file_cannot_hold_is_named(value, tmp_path):
    with pytest.raises(TypeError, match="state has 'x', a "):
        write_state(tmp_path / "state.npz", {"x": value})
    assert names(tmp_path) == []


def test_a_state_is_saved_while_the_interpreter_shuts_down(tmp_path):
    """No thread can be started there."""
    program = (
        "import atexit, sys\nimport numpy as np\nfrom downhill_rms.statefile import write_state\n"
        "atexit.register(write_state, sys.argv[1], {'x': np.arange(3)})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state.npz")],
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert read_state(tmp_path / "state.npz")["x"].tolist() == [0, 1, 2]


# Writes that fail


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    write_state(path, {"x": np.arange(3)})

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(statefile.os, call, fail)
    with pytest.raises(CheckpointError, match="No space left.*is intact") as error:
        write_state(path, {"x": np.arange(4)})
    assert isinstance(error.value.__cause__, OSError)
    assert names(tmp_path) == ["state.npz"]
    np.testing.assert_array_equal(read_state(path)["x"], np.arange(3))


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    write_state(path, {"x": np.arange(3)})

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(statefile.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_state(path, {"x": np.arange(4)})
    assert names(tmp_path) == ["state.npz"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from downhill_rms.saving.statefile import CheckpointError, read_state, write_state
path = Path(sys.argv[1]) / "state.npz"
write_state(path, {"x": np.arange(3)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in range(0, 40_000, 2_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_state(path, {"x": np.zeros(5_000)})
    except CheckpointError:
        assert [p.name for p in path.parent.iterdir()] == ["state.npz"]
        assert read_state(path)["x"].tolist() == [0, 1, 2]
        print("raised")
"""


def test_a_file_size_limit_at_twenty_offsets(tmp_path):
    assert hasattr(resource, "RLIMIT_FSIZE")
    assert hasattr(signal, "SIGXFSZ")
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["raised"] * 20


def test_a_directory_that_vanished(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        write_state(tmp_path / "gone" / "state.npz", {"x": 1})


def test_a_disk_that_is_really_full(tmp_path):
    """The same as python -m tests.reliability.full_disk, where mounting is allowed."""
    try:
        raised, whole = full_disk.run(tmp_path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    assert raised == 20
    assert whole
