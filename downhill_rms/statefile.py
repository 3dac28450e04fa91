"""A trainer's state on disk: one file for each checkpoint, whole or not there at all.

A file is an uncompressed ``.npz`` with a JSON member for what is no array. The last 64 bytes, the
zip's comment, are the SHA-256 of all bytes before them: no flipped bit goes unnoticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = 1
HEADER = "header.json"
PIECE = 1 << 22  # bytes that are checked, hashed and written together
DIGEST_SIZE = 64  # hexadecimal digits of a SHA-256
NPY_HEADER_LIMIT = 1 << 16


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or a file is no whole checkpoint."""


class _Hashing:
    """A file that is hashed while it is written, but for its last 64 bytes.

    Large pieces are hashed by a thread, while the disk is waited for.
    """

    def __init__(self, file: IO[bytes], thread: Executor) -> None:
        self.file, self.thread = file, thread
        self.digest, self.position, self.tail = hashlib.sha256(), 0, b""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= DIGEST_SIZE:
            self.thread.submit(self.digest.update, self.tail)
            self.thread.submit(self.digest.update, view[:-DIGEST_SIZE])
            self.tail = bytes(view[-DIGEST_SIZE:])
        else:
            joined = self.tail + bytes(view)
            self.thread.submit(self.digest.update, joined[:-DIGEST_SIZE])
            self.tail = joined[-DIGEST_SIZE:]
        self.file.write(view)
        self.position += len(view)
        return len(view)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        self.file.flush()


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
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            with ThreadPoolExecutor(1) as thread:
                hashing = _Hashing(file, thread)
                _write(hashing, state, metadata or {})
                file.flush()
                os.fsync(file.fileno())  # the disk works while the thread still hashes
            file.seek(-DIGEST_SIZE, os.SEEK_END)
            file.write(hashing.digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"A checkpoint is written whole or not at all: {path} could not be written ({error}). "
            "What was there before is intact. Make room, or give another directory."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
        for index, array in enumerate(arrays.values()):
            contiguous = np.asarray(array, order="C")
            with archive.open(f"{index}.npy", "w", force_zip64=True) as member:
                fields = np.lib.format.header_data_from_array_1_0(contiguous)
                np.lib.format.write_array_header_1_0(member, fields)
                # A flat view, since memoryview knows no empty, foreign or 0-d shapes.
                content = contiguous.reshape(-1).view(np.uint8)
                for start in range(0, len(content), PIECE):
                    member.write(content[start : start + PIECE].data)
        archive.comment = b"0" * DIGEST_SIZE  # to be replaced by the digest


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    """
    with _opened(Path(path)) as (archive, header):
        state = dict(header["values"])
        for index, (name, (dtype, shape)) in enumerate(header["arrays"].items()):
            state[name] = _read_array(archive, f"{index}.npy", dtype, shape)
        return state


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_state` was given as metadata, and ``versions`` of Python and NumPy."""
    with _opened(Path(path)) as (_, header):
        return {**header["metadata"], "versions": header["versions"]}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """A verified file and its header; whatever is wrong with it becomes one kind of error."""
    try:
        with open(path, "rb") as file:
            _verify(file)
            with zipfile.ZipFile(file) as archive:
                header = _read_header(archive)
                yield archive, header
    except CheckpointError as error:
        raise CheckpointError(
            f"A checkpoint is whole and of a known format: {path} {error}"
        ) from None
    except (
        *(OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, RecursionError),
        *(zipfile.BadZipFile, NotImplementedError, OverflowError, IndexError, RuntimeError),
    ) as error:
        raise CheckpointError(
            f"A checkpoint is whole and of a known format: {path} cannot be read "
            f"({type(error).__name__}: {error}). Take an older one."
        ) from error


def _verify(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    if size <= DIGEST_SIZE:
        raise CheckpointError(f"has {size} bytes. Take an older one.")
    file.seek(0)
    digest, left = hashlib.sha256(), size - DIGEST_SIZE
    while left:
        block = file.read(min(left, 1 << 20))
        digest.update(block)
        left -= len(block)
    if file.read() != digest.hexdigest().encode():
        raise CheckpointError("is damaged: its SHA-256 is another. Take an older one.")
    file.seek(0)


def _read_header(archive: zipfile.ZipFile) -> dict[str, Any]:
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(f"has a compressed member {member.filename!r}. Do not use it.")
    if not members or members[0].filename != HEADER:
        raise CheckpointError("has no header. Do not use it.")
    header = json.loads(archive.read(members[0]))
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"has format {header['format']!r} instead of {FORMAT}. Use the release that wrote it."
        )
    for field in ("values", "arrays", "metadata", "versions"):
        if not isinstance(header[field], dict):
            raise CheckpointError(f"has a header without {field}. Do not use it.")
    names = [HEADER, *(f"{index}.npy" for index in range(len(header["arrays"])))]
    if [member.filename for member in members] != names:
        raise CheckpointError("has other members than its header says. Do not use it.")
    return dict(header)


def _read_array(archive: zipfile.ZipFile, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.hasobject or kind.fields is not None or not all(type(n) is int for n in shape):
        raise CheckpointError(f"has an array of {dtype} in {name}. Do not use it.")
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise CheckpointError(f"has an array of npy version {version}. Do not use it.")
        found = np.lib.format.read_array_header_1_0(member, max_header_size=NPY_HEADER_LIMIT)
        if found != (tuple(shape), False, kind):
            raise CheckpointError(f"has {found} in {name}, not what its header says.")
        count = 1
        for length in shape:
            count *= length
        left = archive.getinfo(name).file_size - member.tell()
        if min(shape, default=0) < 0 or count * kind.itemsize != left:
            raise CheckpointError(f"has {left} bytes for {shape} of {dtype} in {name}.")
        array = np.empty(shape, dtype=kind)
        flat: Any = array.reshape(-1).view(np.uint8)
        reader: Any = member
        filled = 0
        while filled < left:
            filled += reader.readinto(flat[filled:].data)
        return array
