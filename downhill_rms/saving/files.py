"""Opening files that others may have put there: regular ones only."""

from __future__ import annotations

import errno
import os
import stat

# Windows has neither links nor pipes under a file's name.
FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def regular(path: str, flags: int) -> int:
    """Open a regular file, as an ``opener`` of `open`: no link is followed, no pipe waited for.

    Raises
    ------
    OSError
        If it is anything else, or cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | FLAGS, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "it is a link, which is not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Make new names in a directory last, where the system can."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
