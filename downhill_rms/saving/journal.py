"""What grows with every epoch, written once: lines in a file beside the checkpoints.

A checkpoint names the file, how much of it is its own, and the hash of that. What comes after, of
later checkpoints or of a process that was killed, it does not see; so lines are only ever added,
and a run that goes on from an earlier place begins another file.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from downhill_rms.saving.files import regular, sync_directory
from downhill_rms.saving.statefile import CheckpointError, read_metadata, read_state

NAME = re.compile(r"journal-(\d+)\.jsonl")
FIELD = "journal"  # of a checkpoint's metadata, and of a state that was read with its lines


@dataclass(frozen=True)
class Mark:
    """A place in a journal: all that comes before it.

    Attributes
    ----------
    file : str
        The journal's name.
    size : int
        Bytes before the place.
    sha256 : str
        Their hash, in hexadecimal digits.
    """

    file: str
    size: int
    sha256: str

    def to_metadata(self) -> dict[str, Any]:
        """As a checkpoint's metadata hold it."""
        return {FIELD: asdict(self)}


class Journal:
    """A file of lines that only grows.

    Parameters
    ----------
    path : Path
        The file, which is not there yet.

    Attributes
    ----------
    count : int
        Lines so far.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._digest, self._size = hashlib.sha256(), 0
        self._pending: list[bytes] = []
        self._written = 0

    def add(self, lines: Iterable[str]) -> Mark:
        """Take up further lines, which `flush` writes; where they end."""
        for line in lines:
            content = line.encode() + b"\n"
            self._pending.append(content)
            self._digest.update(content)
            self._size += len(content)
            self.count += 1
        return Mark(self.path.name, self._size, self._digest.hexdigest())

    def flush(self) -> None:
        """Write what was added, so that it lasts.

        Raises
        ------
        CheckpointError
            If it cannot be written; what was there before is intact then.
        """
        if not self._pending:
            return
        try:
            with open(self.path, "ab" if self._written else "xb", opener=regular) as file:
                found = os.fstat(file.fileno()).st_size
                if found != self._written:
                    raise OSError(f"it has {found} bytes where {self._written} were written")
                try:
                    _append(file.fileno(), b"".join(self._pending))
                except BaseException:
                    os.ftruncate(file.fileno(), self._written)
                    if not self._written:
                        self.path.unlink()
                    raise
            if not self._written:
                sync_directory(self.path.parent)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error}). What was there before is intact. Make "
                "room, or give another directory."
            ) from error
        self._pending, self._written = [], self._size


def _append(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state, with the lines that belong to it, if there are any, as ``journal``.

    Raises
    ------
    CheckpointError
        If the state or its lines are damaged.

    Warns
    -----
    UserWarning
        If the journal is not there: it may have been left behind when a checkpoint was moved.
    """
    state = read_state(path)
    mark = _mark(path)
    if mark is None:
        return state
    try:
        state[FIELD] = _read(path.parent / mark.file, mark) if mark.size else ""
    except FileNotFoundError:
        state[FIELD] = ""
        warnings.warn(
            f"{mark.file} is not beside {path}, whose history it holds. All else is loaded. Put "
            "the file there, or do without the history.",
            stacklevel=2,
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{mark.file} beside {path}, whose history it holds, is not whole ({error}). Restore "
            "it, or remove it to do without."
        ) from error
    return state


def referred(path: Path) -> str | None:
    """The name of the journal that a checkpoint needs; None if it needs none."""
    mark = _mark(path)
    return mark.file if mark is not None and mark.size else None


def _mark(path: Path) -> Mark | None:
    fields = read_metadata(path).get(FIELD)
    if fields is None:
        return None
    kinds = {"file": str, "size": int, "sha256": str}
    good = isinstance(fields, dict) and {n: type(v) for n, v in fields.items()} == kinds
    if not good or not NAME.fullmatch(fields["file"]) or fields["size"] < 0:
        raise CheckpointError(f"{path} has {fields!r:.80}, which names no journal. Do not use it.")
    return Mark(**fields)


def _read(path: Path, mark: Mark) -> str:
    with open(path, "rb", opener=regular) as file:
        found = os.fstat(file.fileno()).st_size
        if found < mark.size:
            raise ValueError(f"it has {found} of {mark.size} bytes")
        content = file.read(mark.size)
    if hashlib.sha256(content).hexdigest() != mark.sha256:
        raise ValueError("its SHA-256 is another")
    return content.decode()
