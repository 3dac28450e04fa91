"""A trainer's state on disk: one file for each checkpoint, whole or not there at all.

A file is an uncompressed ``.npz`` with a JSON member for what is no array. The values of arrays are
guarded by the zip's CRC-32, which tells every flipped bit; all other bytes, those checksums among
them, by a SHA-256 in the file's last 64 bytes, the zip's comment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from downhill_rms.saving.files import regular, sync_directory

FORMAT = 2  # in format 1 members were called by their numbers alone
HEADER = "header.json"
DIGEST_SIZE = 64  # hexadecimal digits of a SHA-256
CHUNK = 1 << 20  # bytes read at a time, so that reading takes little more than the array
STRUCTURE_LIMIT = 1 << 20  # bytes of a header outside its strings; parsed, each may take twenty
MEMBERS_LIMIT = 1 << 16  # of a zip; each takes far more memory than the bytes that name it
DIRECTORY_LIMIT = 1 << 24  # bytes of a zip's directory, which is read at once
PLAIN = (bool, int, float, str, type(None))
# What is no path out of a directory, nor two names for one member.
MEMBER = re.compile(r"(?!unnamed/)[\w(|][\w()|+=, .-]*(/[\w(|][\w()|+=, .-]*)*")
NAME_LIMIT = 200  # characters, which are 800 bytes at most
DTYPE = re.compile(r"[<>|][biufc]\d{1,2}")  # no objects, records, subarrays, or empty items


def _members(names: Iterable[str], file_format: int = FORMAT) -> list[str]:
    """What the members of arrays are called: ``param/w.npy``, or by number if that is unsafe."""
    members = []
    for index, name in enumerate(names):
        safe = len(name) <= NAME_LIMIT and MEMBER.fullmatch(name)
        member = name if safe else f"unnamed/{index}"
        members.append(f"{index}.npy" if file_format == 1 else f"{member}.npy")
    return members


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or a file is no whole checkpoint."""


class _Hashing:
    """A file that is hashed while it is written, but for arrays' values and its last 64 bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.position, self.tail = file, hashlib.sha256(), 0, b""
        self.values = False  # whether what is written are arrays' values

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if not self.values:
            joined = self.tail + bytes(view)
            self.digest.update(joined[:-DIGEST_SIZE])
            self.tail = joined[-DIGEST_SIZE:]
        self.file.write(view)
        self.position += len(view)
        return len(view)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        self.file.flush()


def check_path(name: str, value: Any) -> Path:
    """The path of a file or directory, if it is one."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r:.80}: it takes a path. Give a str or a Path.")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{name} is {value!r:.80}: no file has that name. Give another.")
    return Path(path)


def write_state(
    path: Path, state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a state to a file, replacing one that is there only when the new one is whole.

    Parameters
    ----------
    path : Path
        The file.
    state : mapping of str to ndarray or plain value
        What to write.
    metadata : mapping, optional
        Further plain values for people and tools.

    Raises
    ------
    CheckpointError
        If it cannot be written; an old file is intact then, and nothing else is left.
    TypeError
        If the state holds what such a file cannot.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "state.npz")
    >>> write_state(path, {"w": np.zeros(3), "updates": 10})
    >>> read_state(path)["w"]
    array([0., 0., 0.])
    """
    path = check_path("path", path)
    for name, values in (("state", state), ("metadata", metadata or {})):
        if not (isinstance(values, Mapping) and all(isinstance(key, str) for key in values)):
            raise TypeError(
                f"{name} is {values!r:.80}: it takes a mapping whose keys are texts. Give a dict."
            )
    for name, value in state.items():
        kind = value.dtype.kind if isinstance(value, np.ndarray) else "plain"
        if kind not in "biufc" and not isinstance(value, PLAIN):
            raise TypeError(
                f"state has {name!r}, a {type(value).__name__} ({value!r:.80}): it takes arrays of "
                "numbers and plain values. Convert it."
            )
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            hashing = _Hashing(file)
            _write(hashing, state, metadata or {})
            file.seek(-DIGEST_SIZE, os.SEEK_END)
            file.write(hashing.digest.hexdigest().encode())
            file.flush()
            _check_readable(temporary, path)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); what was there before is intact. Make room, "
            "or give another path."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_readable(temporary: Path, path: Path) -> None:
    """Refuse to write what the reader would refuse, whatever it is in the state."""
    try:
        with _opened(temporary):
            pass
    except CheckpointError as error:
        reason = str(error).partition(str(temporary))[2].strip() or str(error)
        raise CheckpointError(
            f"{path} {reason} A checkpoint can be read again: save less in one file. What was "
            "there before is intact."
        ) from error


def _write(file: Any, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    arrays = {name: np.asarray(v) for name, v in state.items() if isinstance(v, np.ndarray)}
    header = {
        "format": FORMAT,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "metadata": dict(metadata),
        "values": {name: value for name, value in state.items() if name not in arrays},
        "arrays": {n: [a.dtype.str, list(a.shape)] for n, a in arrays.items()},
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(HEADER, json.dumps(header))
        for name, array in zip(_members(arrays), arrays.values(), strict=True):
            contiguous = np.asarray(array, order="C")
            with archive.open(name, "w", force_zip64=True) as member:
                fields = np.lib.format.header_data_from_array_1_0(contiguous)
                np.lib.format.write_array_header_1_0(member, fields)
                # A flat view, since memoryview knows no empty, foreign or 0-d shapes.
                file.values = True
                member.write(contiguous.reshape(-1).view(np.uint8).data)
                file.values = False
        archive.comment = b"0" * DIGEST_SIZE  # to be replaced by the digest


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to ndarray or plain value
        Arrays are writable and C-contiguous.

    Raises
    ------
    CheckpointError
        If the file is not there, is damaged, or is no checkpoint of this format. Nothing in it is
        executed, and no more is allocated than the file holds.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "state.npz")
    >>> write_state(path, {"w": np.zeros(3), "updates": 10})
    >>> read_state(path)["updates"]
    10
    """
    with _opened(check_path("path", path)) as (archive, header):
        state = dict(header["values"])
        members = _members(header["arrays"], header["format"])
        for member, (name, (dtype, shape)) in zip(members, header["arrays"].items(), strict=True):
            state[name] = _read_array(archive, member, dtype, shape)
        return state


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_state` was given as metadata, and ``versions`` of Python and NumPy."""
    with _opened(check_path("path", path)) as (_, header):
        return {**header["metadata"], "versions": header["versions"]}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """A verified file and its header; whatever is wrong with it becomes one kind of error."""
    try:
        with open(path, "rb", opener=regular) as file, _open_zip(file) as archive:
            _check_members(archive)
            if archive.comment != _digest(file, archive).encode():
                raise CheckpointError("is damaged: its SHA-256 is another. Take an older one.")
            header = _read_header(archive)
            yield archive, header
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except Exception as error:  # zipfile and json raise many kinds for what they cannot parse
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}). Take an "
            "older one."
        ) from error


class _Bounded:
    """A file, while zipfile reads the directory of members at its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.opening = file, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if not self.opening:
            return self._file.read(size)
        content = self._file.read(
            DIRECTORY_LIMIT + 1 if size < 0 else min(size, DIRECTORY_LIMIT + 1)
        )
        if len(content) > DIRECTORY_LIMIT or content.count(b"PK\1\2") > MEMBERS_LIMIT:
            raise CheckpointError("has absurdly many members. Do not use it.")
        return content


def _open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    bounded: Any = _Bounded(file)
    archive = zipfile.ZipFile(bounded)
    bounded.opening = False
    return archive


def _digest(file: IO[bytes], archive: zipfile.ZipFile) -> str:
    """The SHA-256 of all bytes but arrays' values, which zipfile checks as they are read."""
    size = file.seek(0, os.SEEK_END)
    digest, position = hashlib.sha256(), 0
    for member in archive.infolist():
        if member.filename != HEADER:
            start, end = _values(file, member)
            _hash(file, position, start, digest)
            position = end
    _hash(file, position, size - DIGEST_SIZE, digest)
    return digest.hexdigest()


def _values(file: IO[bytes], member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the values of an array begin and end: after the zip's and NumPy's headers."""
    file.seek(member.header_offset + 26)
    lengths = file.read(4)
    start = member.header_offset + 30
    start += int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    file.seek(start + 8)
    return start + 10 + int.from_bytes(file.read(2), "little"), start + member.file_size


def _hash(file: IO[bytes], start: int, end: int, digest: Any) -> None:
    file.seek(start)
    while start < end:
        block = file.read(min(end - start, CHUNK))
        if not block:
            raise CheckpointError("is damaged: it is too short. Take an older one.")
        digest.update(block)
        start += len(block)


def _check_members(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(f"has a compressed member {member.filename!r}. Do not use it.")
    end = archive.start_dir
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        # Members that overlap would let a small file fill any amount of memory.
        if member.header_offset + member.file_size > end:
            raise CheckpointError(f"has an overlapping member {member.filename!r}. Do not use it.")
        end = member.header_offset


def _read_header(archive: zipfile.ZipFile) -> dict[str, Any]:
    members = archive.infolist()
    if not members or members[0].filename != HEADER:
        raise CheckpointError("has no header. Do not use it.")
    header = _parse(archive.read(members[0]))
    if type(header["format"]) is not int or header["format"] not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"has format {header['format']!r}, of 1 to {FORMAT}. Use the release that wrote it."
        )
    for field in ("values", "arrays", "metadata", "versions"):
        if not isinstance(header[field], dict):
            raise CheckpointError(f"has a header without {field}. Do not use it.")
    for name, value in header["values"].items():
        if not isinstance(value, PLAIN) or name in header["arrays"]:
            raise CheckpointError(f"has a value {name!r} that is not plain. Do not use it.")
    names = [HEADER, *_members(header["arrays"], header["format"])]
    if [member.filename for member in members] != names:
        raise CheckpointError("has other members than its header says. Do not use it.")
    return dict(header)


def _parse(text: bytes) -> Any:
    """Parse a header, unless it would take far more memory than it has bytes."""
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = bare.count(b'"')
    if structure <= STRUCTURE_LIMIT:
        structure += sum(map(len, bare.split(b'"')[::2]))
    if structure > STRUCTURE_LIMIT:
        raise CheckpointError("has a header of absurdly many fields. Do not use it.")
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise CheckpointError("has a name twice in its header. Do not use it.")
    return found


def _read_array(archive: zipfile.ZipFile, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    if not (isinstance(dtype, str) and DTYPE.fullmatch(dtype) and isinstance(shape, list)):
        raise CheckpointError(f"has an array of {dtype!r} in {name}. Do not use it.")
    kind = np.dtype(dtype)
    if kind.str != dtype or not all(type(n) is int and n >= 0 for n in shape):
        raise CheckpointError(f"has {shape} of {dtype} in {name}. Do not use it.")
    fields = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
    with archive.open(name) as member:
        start = member.read(10)
        # Compared and never parsed: NumPy's parser evaluates, warns, and may exhaust the stack.
        found = member.read(int.from_bytes(start[8:], "little")).decode("latin1").split()
        expected = ("{" + "".join(f"{key!r}: {fields[key]!r}, " for key in fields) + "}").split()
        if start[:8] != b"\x93NUMPY\x01\x00" or found != expected:
            raise CheckpointError(f"has {name} not as its header says. Do not use it.")
        left = archive.getinfo(name).file_size - member.tell()
        if math.prod(shape) * kind.itemsize != left:
            raise CheckpointError(f"has {left} bytes for {shape} of {dtype} in {name}.")
        array = np.empty(shape, dtype=kind)
        flat: Any = array.reshape(-1).view(np.uint8)
        reader: Any = member
        filled = 0
        while filled < left:
            filled += reader.readinto(flat[filled : filled + CHUNK].data)
        return array
