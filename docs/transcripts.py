"""What the commands of command_line.rst print: ``python docs/transcripts.py`` writes it there.

The commands run in the order of the page, in one directory, as a reader would run them. What
training prints depends on the machine and the clock: `still` leaves of it what does not, which is
what the page is tested for.
"""

import contextlib
import glob
import io
import itertools
import os
import pty
import re
import shlex
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from downhill_rms.command.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "command_line.rst"
PROMPT = "    $ downhill-rms "
LINES, COLUMNS = 40, 110
AND_MORE = "..."  # in the place of lines that the page leaves out
EXACT = ("check", "demo")  # what computes the same on every machine
MACHINE = "this machine"  # and what follows, which another machine words otherwise
FIGURE = re.compile(r"\d[\d.,:e+-]*( [mu]?s\b)?")
BLOCKS = re.compile(r"[▁-▏█]+")


class Terminal(io.StringIO):
    """What is written to a terminal; a bar leaves the last line that it drew."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.ends = pty.openpty()
        termios.tcsetwinsize(self.ends[1], (LINES, COLUMNS))

    def isatty(self) -> bool:  # noqa: D102
        return True

    def fileno(self) -> int:
        """Where its size is asked for."""
        return self.ends[1]

    def close(self) -> None:  # noqa: D102
        super().close()
        for end in self.ends:
            os.close(end)

    def lines(self) -> list[str]:  # noqa: D102
        return [
            line.rpartition("\r")[2].rstrip() for line in self.getvalue().rstrip("\n").split("\n")
        ]


def printed(commands: list[str]) -> Iterator[list[str]]:
    """The lines that each command prints, run one after another in a directory of their own."""
    surroundings = {"COLUMNS": str(COLUMNS), "DOWNHILL_RMS_FINISH_COMPILING": "0"}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, surroundings),
    ):
        os.symlink(ROOT / "examples", "examples")
        for command in commands:
            words = [sorted(glob.glob(w)) or [w] for w in shlex.split(command)]
            with contextlib.closing(Terminal()) as screen:
                with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                    main(list(itertools.chain(*words)), standalone_mode=False)
                yield screen.lines()


def on_page(text: str) -> dict[str, list[str]]:
    """The lines that a page shows of each command, by command."""
    shown: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        if line.startswith(PROMPT):
            lines = shown[line.removeprefix(PROMPT)] = []
        elif lines is not None and line.startswith("    "):
            lines.append(line.removeprefix("    "))
        else:
            lines = None
    return shown


def as_shown(lines: list[str], shown: list[str]) -> list[str]:
    """What a command prints, as far as a page shows it."""
    if shown[-1:] == [AND_MORE]:
        return [*lines[: len(shown) - 1], AND_MORE]
    if MACHINE in lines:
        return lines[: lines.index(MACHINE)] + shown[shown.index(MACHINE) :]
    return lines


def still(command: str, lines: list[str]) -> list[str]:
    """Lines without what the machine and the clock decide: figures, and bars and curves."""
    return [
        line
        if command.startswith(EXACT) and not BLOCKS.search(line)
        else " ".join(FIGURE.sub("0", BLOCKS.sub("█", line)).split())
        for line in lines
    ]


def write() -> None:
    """Put what the commands print today on the page; what is of a machine stays as it is."""
    text = PAGE.read_text(encoding="utf-8")
    shown = on_page(text)
    for (command, before), lines in zip(shown.items(), printed(list(shown)), strict=True):
        former, now = (
            "\n".join([PROMPT + command, *(f"    {line}" for line in block)]) + "\n"
            for block in (before, as_shown(lines, before))
        )
        text = text.replace(former, now)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
